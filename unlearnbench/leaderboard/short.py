"""The short table: one line per method with the numbers that matter, which fits into 80 columns and onto a page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from unlearnbench import registry
from unlearnbench.attacks.base import STANDARD
from unlearnbench.leaderboard.attacks import attack_notes
from unlearnbench.leaderboard.robustness import GOLD
from unlearnbench.leaderboard.rows import ANCHORS, Board, BoardRow, TableKey
from unlearnbench.leaderboard.tables import (
    Bold,
    Sheet,
    applies,
    caption_of,
    cell_text,
    columns_of,
    head,
    notes_of,
    run_command,
    shown,
    starred,
    title_of,
)
from unlearnbench.metric import Metric
from unlearnbench.statistics import whole_percents

COLUMNS = (("score",), ("robustness",), ("still", "ua"), ("ra", "clip_score"), ("fid",), ("unlearn_time",))
"""Columns between the method and n; of several, a table has the first that its task allows."""
ATTACK_HEAD = "worst attack (excess / ceiling) (%) ↓"
BRIEF_ATTACK_HEAD = "worst attack (%) ↓"
"""Head of the worst attack alone, where there is no room for excess, ceiling and name."""
TIME_HEAD = "time (s) ↓"
RANK_HEAD = "rank / attacked"
FATE = ("still", "another", "nothing")
FATE_HEAD = " / ".join(FATE)
MEANINGS = {
    "score": "The worst of erasure (0 is the original, 1 is no image with the concept), likeness to retrain (0 is the "
    "original, 1 another retrain) and utility (by RA and FID: 0 is destroy, 1 is the original)",
    RANK_HEAD: "Place among the methods by score, and by the worse of score and what the worst attack leaves; controls "
    "have none",
    FATE_HEAD: "Shares of forget images, in percent, in which the judge still sees the concept, sees another one, or "
    "sees nothing that it knows, such as noise",
    "worst attack (excess / ceiling)": "The share of the ceiling, 1 minus retrain's ASR, that the strongest standard "
    "attack recovers beyond retrain, corrected for being the largest; in brackets both; plain ASR without retrain; ≥ "
    "where an attack is missing, n=1 where only 1 run was attacked",
    "time": "Time of unlearning alone, without preparing, sampling and scoring",
}
"""What a reader must know about a column, by its head without unit and arrow."""
FEW = 3
"""Rows that a note names; of more it says how many."""
AFTER_NAME = re.compile(r"( \([^()]*\))?( [↑↓])?$")
"""The end of a column's head: unit or kind, and arrow."""


def short_columns(table: Board, metrics: Mapping[str, Metric]) -> list[str]:
    """Names of the columns of a table's short form; no score where the task cannot train its anchors."""
    known = columns_of(metrics)
    task = next(iter(table)).task
    found = []
    for either in COLUMNS:
        allowed = [name for name in either if name in known and applies(name, known[name], table)]
        allowed.sort(key=lambda name: not table.has(name))  # records of earlier versions lack some
        found += [name for name in allowed[:1] if name != "score" or registry.trainable(task)]
    return found


def short_sheets(
    board: Board,
    metrics: Mapping[str, Metric],
    bold: Bold = starred,
    intervals: bool = False,
    spread: bool = True,
    results: Path | None = None,
) -> list[Sheet]:
    """Make the short table of each task, protocol and concept.

    Args:
        board: Its rows keep their order.
        metrics: By name.
        bold: Marks the best value.
        intervals: Show 95 % intervals in place of deviations.
        spread: Show deviations over seeds.
        results: The folder of the records, for the command that runs missing anchors; the default one if None.
    """
    return [_sheet(key, table, metrics, bold, intervals, spread, results) for key, table in board.tables()]


def _sheet(
    key: TableKey,
    table: Board,
    metrics: Mapping[str, Metric],
    bold: Bold,
    intervals: bool,
    spread: bool,
    results: Path | None,
) -> Sheet:
    names, brief = short_columns(table, metrics), not (spread or intervals)
    sections: dict[str, list[list[str]]] = {}
    for row in table:
        cells = [_cell(name, row, metrics, bold, intervals, spread) for name in names]
        if "score" in names:
            cells.insert(1, _places(row))
        sections.setdefault(row.section, []).append([row.name, *cells, str(row.n)])
    heads = ["method", *short_heads(names, table, metrics, brief), "n"]
    flagged = {row.name: row.flags.removesuffix("other version").removesuffix(", ") for row in table}
    notes = [f"{name}: {flags}" for name, flags in flagged.items() if flags]
    notes += [
        notes_of(table, {name: metrics[name] for name in names if name in metrics}),
        *_unscored(key, table, results),
        *([f"worst attack: {'; '.join(said)}"] if "robustness" in names and (said := attack_notes(table)) else []),
    ]
    meanings = short_meanings(table, metrics)
    caption = f"{caption_of(title_of(key), table, intervals)} {meanings}."
    return Sheet(title_of(key), heads, list(sections.items()), "\n".join(filter(None, notes)), caption)


def _places(row: BoardRow) -> str:
    """Ranks without and with attacks, without the ranks that are possible: `3/11`."""
    if row.rank is None:
        return "—"
    return f"{row.rank.place}/{'—' if row.rank_attacked is None else row.rank_attacked.place}"


def short_heads(names: Sequence[str], table: Board, metrics: Mapping[str, Metric], brief: bool = False) -> list[str]:
    """The heads of these columns, with that of the rank after the score's."""
    heads = [short_head(name, table, metrics) for name in names]
    heads = [BRIEF_ATTACK_HEAD if brief and head == ATTACK_HEAD else head for head in heads]
    return [heads[0], RANK_HEAD, *heads[1:]] if names[:1] == ["score"] else heads


def short_head(name: str, table: Board, metrics: Mapping[str, Metric]) -> str:
    """The head of a column in the short table."""
    if name == "robustness":
        return ATTACK_HEAD
    if name == "still":
        return f"{FATE_HEAD} (%)"
    return TIME_HEAD if name == "unlearn_time" else head(columns_of(metrics)[name])


def short_meanings(board: Board, metrics: Mapping[str, Metric]) -> str:
    """Explain the columns of the short tables of a board that do not explain themselves."""
    told = {
        title: MEANINGS[title]
        for _, table in board.tables()
        for text in short_heads(short_columns(table, metrics), table, metrics)
        if (title := AFTER_NAME.sub("", text)) in MEANINGS
    }
    return "; ".join(f"{title}: {meaning[0].lower()}{meaning[1:]}" for title, meaning in told.items())


def _cell(name: str, row: BoardRow, metrics: Mapping[str, Metric], bold: Bold, intervals: bool, spread: bool) -> str:
    if name == "robustness":
        return _worst_attack(row) if spread or intervals else _worst_share(row)
    column = columns_of(metrics)[name]
    if name == "unlearn_time":
        return shown(column, row.stat(name).value)
    if name == "still":
        shares = [row.stat(part).value for part in FATE]
        if None in shares:
            return "/".join("—" if share is None else f"{100 * share:.0f}" for share in shares)
        return "/".join(map(str, whole_percents([share for share in shares if share is not None])))
    return cell_text(column, name, row, bold, intervals, spread)


def _worst_share(row: BoardRow) -> str:
    """Worst case alone, `≥42.1`; of retrain its highest floor."""
    found = row.worst.get(None)
    if row.method == GOLD:
        return f"{100 * _highest_floor(row)[1]:.1f}" if _highest_floor(row)[0] else "—"
    if found is None or found.value is None:
        return "—"
    return f"{'≥' if found.bound else ''}{100 * found.value:.1f}"


def _worst_attack(row: BoardRow) -> str:
    """Worst case, its excess and ceiling, and the worst attack on all targets: `42.1 (40.0/95.0) relearn@10`.

    Retrain has the attack that recovers most of it, and its floor: `floor 30.0 p4d`.
    """
    fewer = f" (n={row.attacked_n})" if row.attacked_n < row.n else ""
    found = row.worst.get(None)
    if row.method == GOLD:
        label, floor = _highest_floor(row)
        return f"floor {100 * floor:.1f} {label}{fewer}" if label else "—"
    if found is None or found.value is None:
        return "—"
    over = "ASR" if found.excess is None else f"{100 * found.excess:.1f}/{100 * (found.ceiling or 0.0):.1f}"
    return f"{'≥' if found.bound else ''}{100 * found.value:.1f} ({over}) {found.label}{fewer}"


def _highest_floor(row: BoardRow) -> tuple[str, float]:
    """The standard attack that recovers most targets, and its ASR; those apart that are left out for recovering too
    many."""
    out = found.left_out if (found := row.worst.get(None)) else ()
    known = {label: row.attack(label).value for label in STANDARD if label not in out}
    values = {label: value for label, value in known.items() if value is not None}
    label = max(values, key=lambda name: values[name], default="")
    return label, values.get(label, 0.0)


def _unscored(key: TableKey, table: Board, results: Path | None) -> list[str]:
    """Say why rows have no score, and which command runs what is missing."""
    task, protocol, _, forget = key
    rows = [row for row in table if row.n and not row.stat("score").known]
    rows = [row for row in rows if not row.is_control] or rows
    if not rows or not registry.trainable(task):
        return []
    missing = [name for name in ANCHORS if any(name in row.lacking and not row.older for row in rows)]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.older and row.lacking:
            reasons.setdefault(f"no {' or '.join(row.lacking)} of their version", []).append(row.name)
        elif not row.lacking:
            reasons.setdefault(row.unscored, []).append(row.name)
    notes = [
        f"no score for {', '.join(names) if len(names) <= FEW else f'{len(names)} rows'}: {reason}"
        for reason, names in reasons.items()
    ]
    if missing:
        # runs of another version are in the place of those that are missing
        stands = any(f"{name} is of another" in row.unscored for name in missing for row in rows)
        command = run_command(missing, task, forget, protocol, results, stands)
        notes.append(f"scores lack {', '.join(missing)}: `{command}` makes them")
    return notes
