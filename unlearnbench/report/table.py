"""The report's main table: columns by axis, cells with spread, interval and mark, and rows with their flags."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unlearnbench import registry
from unlearnbench.leaderboard.board import weights_file
from unlearnbench.leaderboard.rows import Board, BoardRow
from unlearnbench.leaderboard.tables import AXES, DERIVED, Derived, head, interval_of, note_fewer_runs, shown
from unlearnbench.metric import Metric
from unlearnbench.records.identity import left_out, older_flag
from unlearnbench.records.schema import Record
from unlearnbench.report.first_view import Became, RowLook, became

HEADLINES = (
    "score",
    "erasure",
    "likeness",
    "ua",
    "still",
    "another",
    "nothing",
    "utility",
    "ra",
    "fid",
    "robustness",
    "unlearn_time",
)
"""Columns that are shown at first; an axis with none of these shows its first."""
BOXES = {
    f"robustness_{box}": DERIVED["robustness"]._replace(
        title=f"worst {box}-box attack",
        meaning=f"As worst attack, of those that have {what} alone.",
    )
    for box, what in (("white", "the weights"), ("black", "the model's answers"))
}
SHORT = ("score", "ua", "ra", "fid", "robustness", "unlearn_time")
"""Columns of the short board; an axis with none of these has its first."""
EVERYWHERE = "score"
"""The column without an axis: the worst of erasure, likeness and utility."""


class Column(NamedTuple):
    """One column of numbers."""

    name: str
    title: str
    """Title with arrow and unit."""
    meaning: str
    axis: str
    """Empty for the score."""
    first: bool
    """Whether it is shown at first."""
    rising: bool
    """Whether lower is better, so that sorting starts in ascending order."""


class TableCell(NamedTuple):
    """One number as shown; an empty cell has no texts."""

    value: str
    spread: str = ""
    interval: str = ""
    before: str = ""
    """≥ for a lower bound."""
    after: str = ""
    mark: str = ""
    """"best", "not worse" or empty."""
    number: str = ""
    """The value for sorting."""


class ReportRow(NamedTuple):
    """One method with its settings."""

    id: str
    point: str
    """Id of its point in the plot of efficacy against utility."""
    label: str
    control: bool
    access: str
    division: str
    n: int
    records: Sequence[Record]
    cells: list[TableCell]
    flags: list[str]
    look: RowLook
    became: Became | None
    merit: tuple[bool, float]
    """For sorting the short board: whether there is a score, and it, or else the worse of UA and RA."""

    @property
    def other(self) -> bool:
        """Whether it is shown only when a reader asks for all settings."""
        return not self.look.at_first


def columns(table: Board, task: str, metrics: Mapping[str, Metric]) -> list[Column]:
    """The columns of one table by axis: those that apply to the task and have values."""
    every: dict[str, Metric | Derived] = {**metrics, **DERIVED, **BOXES}
    known = [name for name in _ordered(every) if name not in registry.without(task) and table.has(name)]
    firsts = {name for name in known if name in HEADLINES}
    for axis in AXES:
        own = [name for name in known if axis_of(name, every[name]) == axis]
        firsts |= set() if firsts & set(own) else set(own[:1])
    return [_column(name, every[name], name in firsts) for name in known]


def first_screen_columns(columns: Sequence[Column]) -> list[int]:
    """Places of the columns of the short board."""
    names = [column.name for column in columns]
    kept = [names.index(name) for name in SHORT if name in names]
    for axis in AXES:
        own = [place for place, column in enumerate(columns) if column.axis == axis]
        if not set(own) & set(kept):
            kept += own[:1]
    return sorted(kept)


def _column(name: str, column: Metric | Derived, first: bool) -> Column:
    return Column(name, head(column), meaning(column), axis_of(name, column), first, column.better == "lower")


def _ordered(every: Mapping[str, Metric | Derived]) -> list[str]:
    """Sort names: the score, then axis by axis with the anchored score first."""
    place = ("", *AXES)
    return sorted(
        every, key=lambda name: (place.index(axis_of(name, every[name])), not isinstance(every[name], Derived))
    )


def axis_of(name: str, column: Metric | Derived) -> str:
    """The axis of a column."""
    if isinstance(column, Derived):
        return "" if name == EVERYWHERE else column.axis
    return column.axis


def meaning(column: Metric | Derived) -> str:
    """Explain a column in one line."""
    text = column.meaning if isinstance(column, Derived) else inspect.getdoc(type(column)) or ""
    return text.partition("\n")[0]


def row_of(
    row: BoardRow,
    id: str,
    point: str,
    found: Sequence[Column],
    metrics: Mapping[str, Metric],
    records: Sequence[Record],
    look: RowLook,
) -> ReportRow:
    """Make a row from a row of the board and its records."""
    every: dict[str, Metric | Derived] = {**metrics, **DERIVED, **BOXES}
    division = row.division + (f", {row.overrides} given" if row.overrides else "")
    return ReportRow(
        id,
        point,
        row.label,
        row.is_control,
        row.access,
        division,
        row.n,
        records,
        [cell(every[column.name], column.name, row) for column in found],
        [*status_texts(records), *([f"equals {', '.join(twin.label for twin in row.twins)}"] if row.twins else [])],
        look,
        became(row),
        _merit(row),
    )


def _merit(row: BoardRow) -> tuple[bool, float]:
    score = row.stat(EVERYWHERE).value
    known = [value for name in ("ua", "ra") if (value := row.stat(name).value) is not None]
    return (True, score) if score is not None else (False, min(known, default=-math.inf))


def cell(column: Metric | Derived, name: str, row: BoardRow) -> TableCell:
    """Make a cell from one number of the board."""
    stat = row.stat(name)
    if stat.value is None:
        return TableCell("—")
    plain = shown(column, stat.value)
    after = " (ASR)" if stat.plain else f" ({stat.missing} missing)" if stat.missing else ""
    return TableCell(
        plain,
        spread=shown(column, stat.value, stat.sd).removeprefix(plain),
        interval=interval_of(column, stat),
        before="≥ " if stat.bound else "",
        after=after + (note_fewer_runs(row) if name.startswith("robustness") else ""),
        mark=stat.mark or "",
        number=f"{stat.value:.9g}",
    )


def status_texts(records: Sequence[Record]) -> list[str]:
    """What went wrong, one text per status such as `diverged: seed 1, 2`, what is not pooled, older versions, and
    the file of weights that others unlearned."""
    seeds: dict[str, list[str]] = {}
    for record in records:
        if record.status != "ok":
            seeds.setdefault(record.status, []).append(str(record.seeds["unlearning"]))
    wrong = [f"{status}: seed {', '.join(found)}" for status, found in seeds.items()]
    counted = [record for record in records if record.status in ("ok", "unreliable")]
    file = next((f"file: {name}" for record in records if (name := weights_file(record))), "")
    return [*wrong, *left_out(counted), *filter(None, [older_flag(records), file])]
