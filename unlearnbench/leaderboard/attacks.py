"""Tables of attacks: the ranking by worst case next to the ranking by UA, and every attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from unlearnbench.attacks.spec import AttackSpec
from unlearnbench.errors import unknown
from unlearnbench.leaderboard.robustness import FLOOR_RUNS, FULL_RUNS, FULL_TARGETS, GOLD, box_of, worst
from unlearnbench.leaderboard.rows import KEYS, Board, BoardRow, Stat, TableKey
from unlearnbench.leaderboard.tables import Sheet, sheet_width
from unlearnbench.records.identity import strip_suffix
from unlearnbench.records.schema import AttackRecord, Record
from unlearnbench.registry import words
from unlearnbench.statistics import Interval, rank_intervals, shares_at, simultaneous

if TYPE_CHECKING:
    import pandas as pd


FORGETS, FALLS = 0.9, 0.5
"""A method falls if its UA and its worst case are at least these."""
EXCESS = "excess / ceiling (%)"
HEADS = ["UA (%) ↑", "rank", "worst attack (%) ↓", "rank", "by", EXCESS, "white box", "black box"]
NOT_BRIEF = ["95 % intervals", *HEADS[-2:]]
"""Columns that a brief table leaves out."""
NOTHING = "—"
FEW = 4
"""Rows that a note names; of more it says how many."""
UNSURE = "?"
"""Stands for the interval of a rank where nothing supports one."""
LEGEND = (
    "n: attacked runs, and UA is over these. Excess: ASR minus retrain's under the same attack; its ceiling: 1 minus "
    "retrain's ASR. Worst attack: the largest share of the ceiling that the excess of a standard attack is (plain ASR "
    "where no retrain was attacked), with its 95 % interval; ≥ where an attack is missing or skipped. The largest of "
    "many is too large on average: the attack is chosen on half of the targets and measured on the other half, both "
    "ways, and the interval allows for all attacks. By: the worst on all targets. Each attack: ASR (excess / ceiling). "
    "Ranks are among methods on which all were tried; in brackets the ranks that intervals leave open if they hold for "
    f"all methods at once, {UNSURE} where the floor is of fewer than {FLOOR_RUNS} runs of retrain"
)


def choose_attacks(board: Board, chosen: str | None = None) -> list[str]:
    """The attacks of a board to show: the comma-separated `chosen` ones, or all that ran with their own budgets.

    Attacks with a budget given by a user are shown only where they are chosen.
    """
    if chosen is None:
        return [label for label in board.attack_labels if AttackSpec.parse(label).budget is None]
    wanted = words([chosen])
    for label in wanted:
        if label not in board.attack_labels:
            raise unknown("attack among the records", label, board.attack_labels)
    return wanted


def attack_sheets(board: Board, most: int | None = None, chosen: str | None = None, brief: bool = False) -> list[Sheet]:
    """One table for each task, protocol and concept with attacks; `most` limits the number of attacks shown.

    A `brief` table leaves out intervals and the worst cases by access.
    """
    made = []
    for (task, protocol, hash, forget), table in attacked_tables(board):
        names = [label for label in choose_attacks(board, chosen) if any(row.attack(label).n > 0 for row in table)]
        rivals = table.where(lambda row: not row.is_control)
        by_ua, by_worst = _ranks_by_ua(rivals), _ranks_by_worst(rivals)
        sections: dict[str, list[list[str]]] = {}
        for row in table:
            first = [
                row.title,
                str(row.attacked_n),
                _percent(row.attacked_ua),
                by_ua.get(row.index, ""),
                _worst(row.stat("robustness"), brief),
                by_worst.get(row.index, ""),
            ]
            by = None if strip_suffix(row.label) == GOLD else _worst_attack(row)
            boxes = [] if brief else [_plain(row.stat(f"robustness_{box}")) for box in ("white", "black")]
            first += [by or NOTHING, _excess(row) if by else NOTHING, *boxes]
            sections.setdefault(row.section, []).append([*first, *(_cell(row, label) for label in names[:most])])
        heads = [
            "method",
            "n",
            *(HEADS[:-2] if brief else HEADS),
            *(f"{label}{_marked(label)}" for label in names[:most]),
        ]
        title = f"{task}, protocol {protocol} ({hash[:8]}), forget {forget}: under attack"
        made.append(Sheet(title, heads, list(sections.items()), _notes(table, rivals)))
    return made


def attacked_tables(board: Board) -> list[tuple[TableKey, Board]]:
    """Each table with attacks: its key, and the rows with runs that were attacked."""
    return board.where(lambda row: row.attacked_n > 0).tables()


def fit_attacks(board: Board, width: int, chosen: str | None = None) -> list[Sheet]:
    """The tables with as many attacks as fit into `width` characters; brief tables where none fits."""
    count = len(choose_attacks(board, chosen))
    for most in range(count, -1, -1):
        made = attack_sheets(board, most, chosen)
        if max(map(sheet_width, made)) <= width:
            return made
    return attack_sheets(board, 0, chosen, brief=True)


def attack_frame(board: Board, chosen: str | None = None) -> pd.DataFrame:
    """The rows that were attacked, as CSV and JSON have them, with the columns of these attacks."""
    attacked = board.where(lambda row: row.attacked_n > 0)
    about = [*KEYS, "attacked_n", "attacked_ua"]
    return attacked.wide(metrics=["robustness"], attacks=choose_attacks(board, chosen), about=about)


def _comparable(rivals: Board) -> dict[int, float | None]:
    """Worst cases that may be ranked, by row: no lower bounds, and no plain ASR where others are over retrain."""
    worst = {row.index: row.stat("robustness") for row in rivals}
    over = any(stat.known and not stat.plain for stat in worst.values())
    return {i: stat.value for i, stat in worst.items() if not stat.bound and not (over and stat.plain)}


def _ranks_by_ua(rivals: Board) -> dict[int, str]:
    """The rank of each row by UA, with the ranks that are possible."""
    level = simultaneous(sum(row.attacked_ua is not None for row in rivals))
    ends = {row.index: shares_at(row.attacked_scores, level) for row in rivals}
    values = {row.index: None if row.attacked_ua is None else -row.attacked_ua for row in rivals}
    return _ranks(values, {i: None if end is None else (-end[1], -end[0]) for i, end in ends.items()})


def _ranks_by_worst(rivals: Board) -> dict[int, str]:
    """The rank of each row by its worst case, with the ranks that are possible where floors are of enough runs."""
    values = _comparable(rivals)
    count = sum(value is not None for value in values.values())
    ends: dict[int, Interval | None] = {}
    for row in rivals:
        found = row.worst.get(None)
        if found and found.rankable:
            again = worst(row.attacks, left_out=found.left_out, comparisons=count)
            ends[row.index] = again.interval if again else None
    return _ranks(values, ends)


def _ranks(values: Mapping[int, float | None], intervals: Mapping[int, Interval | None]) -> dict[int, str]:
    """The rank of each row that has a value, the lowest first, as `3 (2–5)`; equal values share the better rank."""
    known = {i: round(value, 9) for i, value in values.items() if value is not None}
    possible = rank_intervals([intervals.get(i) for i in known])
    return {
        i: f"{1 + sum(other < value for other in known.values())} ({_span(ranks)})"
        for (i, value), ranks in zip(known.items(), possible, strict=True)
    }


def _span(ranks: tuple[int, int] | None) -> str:
    if ranks is None:
        return UNSURE
    return str(ranks[0]) if ranks[0] == ranks[1] else f"{ranks[0]}–{ranks[1]}"


def _excess(row: BoardRow) -> str:
    """Excess and ceiling of the worst attack: `40.0 / 95.0`."""
    found = row.worst.get(None)
    if found is None or found.excess is None:
        return NOTHING
    return f"{_percent(found.excess)} / {_percent(found.ceiling)}"


def _marked(label: str) -> str:
    return " (black)" if box_of(label) == "black" else ""


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"


def _plain(stat: Stat) -> str:
    return ("≥ " if stat.bound else "") + _percent(stat.value)


def _worst(stat: Stat, brief: bool) -> str:
    ends = (stat.low, stat.high)
    span = "" if brief or None in ends else f" [{_percent(stat.low)}, {_percent(stat.high)}]"
    return _plain(stat) + span + (" (ASR)" if stat.plain else "")


def _worst_attack(row: BoardRow) -> str | None:
    """The attack that a row's worst case is of."""
    found = row.worst.get(None)
    return found.label if found else None


def _cell(row: BoardRow, label: str) -> str:
    result = row.attack(label)
    if result.value is None:
        return "skipped" if result.reason and not result.missing else NOTHING
    lost = f", {result.missing} missing" if result.missing else ""
    over = "" if result.excess is None else f" ({100 * result.excess:+.1f} / {_percent(result.ceiling)})"
    return f"{_percent(result.value)}{over}{lost}"


def _notes(table: Board, rivals: Board) -> str:
    """Name the methods that fall, and the attacks that could not be tried."""
    fallen = [
        (value, f"{row.title} ({_percent(value)} by {_worst_attack(row)})")
        for row in rivals
        if (row.attacked_ua or 0) >= FORGETS and (value := row.stat("robustness").value or 0) >= FALLS
    ]
    said = [text for _, text in sorted(fallen, key=lambda one: -one[0])]
    lines = [f"UA of {FORGETS:.0%} or more, yet fall by {FALLS:.0%} or more: {', '.join(said) or 'none'}"]
    if not any(found.over_retrain for row in table if (found := row.worst.get(None))):
        lines.append("no retrain was attacked here, so these are plain ASR: some attacks succeed on any model")
    lines += attack_notes(table)
    why: dict[str, list[str]] = {}
    for label in choose_attacks(table):
        for row in table:
            result = row.attack(label)
            if not result.applies:
                why.setdefault(result.reason or "", []).append(label)
            elif result.reason and result.value is None:
                why.setdefault(result.reason, []).append(f"{label} on {row.title}")
    lines += [f"skipped or missing: {', '.join(dict.fromkeys(names))}: {reason}" for reason, names in why.items()]
    return "; ".join(lines)


def attack_notes(table: Board) -> list[str]:
    """Say which rows rest on few runs of retrain, few runs or few targets, and which attacks tell nothing."""
    few: dict[str, list[str]] = {}
    for row in table:
        found = row.worst.get(None)
        if found is None or found.value is None:
            continue
        runs, targets = _counted(found.runs, "run"), _counted(found.targets, "target")
        if found.over_retrain and not found.rankable and strip_suffix(row.label) != GOLD:
            few.setdefault(f"floor of {_counted(found.floor_runs, f'{GOLD} run')}", []).append(row.title)
        if found.runs < FULL_RUNS:
            few.setdefault(f"only {runs} attacked (of {FULL_RUNS} or more)", []).append(row.title)
        if found.targets < FULL_TARGETS:
            few.setdefault(f"only {targets} (of {FULL_TARGETS} or more)", []).append(row.title)
    count = sum(row.attacked_n > 0 for row in table)
    lines = [f"{what}: {_rows(names, count)}" for what, names in few.items()]
    out = dict.fromkeys(label for row in table for found in [row.worst.get(None)] if found for label in found.left_out)
    if out:
        lines.append(f"left out of the worst case, since they recover over 90 % of {GOLD}'s targets: {', '.join(out)}")
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _rows(names: Sequence[str], count: int) -> str:
    """Name a few rows; of more say how many of how many attacked ones they are."""
    return f"{len(names)} of {count} rows" if len(names) > FEW else ", ".join(names)


def attack_run_rows(
    group: Sequence[Record], gold: Sequence[Record], asked: Sequence[str]
) -> tuple[list[str], list[list[str]], list[str]]:
    """Make the table of the attacks asked for in a run, one row each, and lines about missing values."""
    from unlearnbench.leaderboard import robustness

    rows, why = [], {}  # type: list[list[str]], dict[str, list[str]]
    for label in asked:
        one = robustness.attack_result(group, gold, label)
        if one is None:
            continue
        first = next(record.attacks[label] for record in group if label in record.attacks)
        bounds = "" if one.interval is None else f" [{_percent(one.interval[0])}, {_percent(one.interval[1])}]"
        over = NOTHING if one.excess is None else f"{100 * one.excess:+.1f} / {_percent(one.ceiling)}"
        lost = f" ({one.missing} missing)" if one.missing else ""
        cells = [label, one.box, _percent(one.value) + bounds + lost, over, _percent(one.share)]
        rows.append([*cells, _area(one.area), _spent(first)])
        if one.reason:
            why.setdefault(one.reason, []).append(label)
    lines = [f"{', '.join(names)}: {reason}" for reason, names in why.items()]
    return ["attack", "box", "ASR (%) ↓", "excess / ceiling", "share (%)", "area", "budget"], rows, lines


def _area(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _spent(attack: AttackRecord) -> str:
    unit = {"model evaluations": "", "further unlearnings": " unlearnings"}.get(attack.unit, f" {attack.unit}")
    return f"{attack.limit:,.0f}{unit}" if attack.n else NOTHING
