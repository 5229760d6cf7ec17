"""Tables of attacks: the ranking by worst case next to the ranking by UA, and every attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from unlearnbench.attacks.spec import AttackSpec
from unlearnbench.errors import unknown
from unlearnbench.leaderboard.robustness import GOLD, box_of
from unlearnbench.leaderboard.rows import KEYS, Board, BoardRow, Stat, TableKey
from unlearnbench.leaderboard.tables import Sheet, sheet_width
from unlearnbench.records.identity import strip_suffix
from unlearnbench.records.schema import AttackRecord, Record
from unlearnbench.registry import words

if TYPE_CHECKING:
    import pandas as pd


FORGETS, FALLS = 0.9, 0.5
"""A method falls if its UA and its worst case are at least these."""
HEADS = ["UA (%) ↑", "rank", "worst attack (%) ↓", "rank", "by", "white box", "black box"]
NOT_BRIEF = ["95 % intervals", *HEADS[-2:]]
"""Columns that a brief table leaves out."""
NOTHING = "—"
LEGEND = (
    "n: attacked runs, and UA is over these; worst attack: the largest excess of ASR over retrain's under the same "
    "attack among the standard attacks (plain ASR where no retrain was attacked), with its 95 % interval; ≥ where one "
    "of them is missing or skipped. Each attack: ASR, with its excess in brackets. Ranks are among methods on which "
    "all were tried. The largest of many attacks on few targets is biased upwards; intervals cover targets and seeds, "
    "not searches"
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
        by_ua = _ranks({row.index: row.attacked_ua for row in rivals}, rising=False)
        by_worst = _ranks(_comparable(rivals), rising=True)
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
            first += [by or NOTHING, *boxes]
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


def _ranks(values: Mapping[int, float | None], rising: bool) -> dict[int, str]:
    """The rank of each row that has a value, 1 being the best; equal values share the better rank."""
    known = {i: round(value if rising else -value, 9) for i, value in values.items() if value is not None}
    return {i: str(1 + sum(other < value for other in known.values())) for i, value in known.items()}


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
    worst = row.worst.get(None)
    return worst.label if worst else None


def _cell(row: BoardRow, label: str) -> str:
    result = row.attack(label)
    if result.value is None:
        return "skipped" if result.reason and not result.missing else NOTHING
    lost = f", {result.missing} missing" if result.missing else ""
    over = "" if result.excess is None else f" ({100 * result.excess:+.1f})"
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
    if not any(worst.over_retrain for row in table if (worst := row.worst.get(None))):
        lines.append("no retrain was attacked here, so these are plain ASR: some attacks succeed on any model")
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
        over = NOTHING if one.excess is None else f"{100 * one.excess:+.1f}"
        lost = f" ({one.missing} missing)" if one.missing else ""
        rows.append([label, one.box, _percent(one.value) + bounds + lost, over, _area(one.area), _spent(first)])
        if one.reason:
            why.setdefault(one.reason, []).append(label)
    lines = [f"{', '.join(names)}: {reason}" for reason, names in why.items()]
    return ["attack", "box", "ASR (%) ↓", "excess", "area", "budget"], rows, lines


def _area(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _spent(attack: AttackRecord) -> str:
    unit = {"model evaluations": "", "further unlearnings": " unlearnings"}.get(attack.unit, f" {attack.unit}")
    return f"{attack.limit:,.0f}{unit}" if attack.n else NOTHING
