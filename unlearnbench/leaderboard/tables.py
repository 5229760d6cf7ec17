"""Turn the board into tables: choose rows and columns, order them, and format values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from unlearnbench import registry
from unlearnbench.errors import UserError, unknown
from unlearnbench.leaderboard.rows import Board, BoardRow, Stat, TableKey
from unlearnbench.metric import Metric
from unlearnbench.registry import words


class Derived(NamedTuple):
    """A column that is computed from metrics."""

    title: str
    meaning: str
    better: str | None = "higher"
    unit: str = ""
    scale: float = 1.0
    digits: int = 2
    everywhere: bool = True


DERIVED = {
    "efficacy": Derived("efficacy", "0 = original, 1 = retrain, by UA; never clipped."),
    "utility": Derived("utility", "0 = destroy, 1 = original, by RA; never clipped."),
    "score": Derived("score", "The worse of efficacy and utility."),
    "robustness": Derived(
        "worst attack",
        "The largest excess of ASR over retrain's among the standard attacks, or plain ASR where no retrain was "
        "attacked; ≥ where an attack is missing.",
        "lower",
        "%",
        100.0,
        1,
        everywhere=False,
    ),
}
AXES = ("efficacy", "utility", "robustness", "cost")
OF_DERIVED = {"efficacy": "efficacy", "utility": "utility", "score": "efficacy", "robustness": "robustness"}
"""The axis that a derived column is shown with."""
ARROWS = {"higher": "↑", "lower": "↓", None: ""}
FIRST = ("ua", "ra", "score", "coherence", "fid", "unlearn_time", "ua_closed")
"""Columns that come first where not all fit."""
LEAST = 2
"""Number of these that are shown however narrow the terminal is."""
LABEL = 24
"""Width up to which labels stay on one line in the terminal."""
WRAPPED = ("flags", "by", "chosen")
"""Heads of text columns, which may be broken into several lines."""
SHORT = 12
"""Least width of text columns."""
FLAGS = "flags"
"""Head of the column that says what went wrong."""
LAST = ("division", "overrides", FLAGS)
"""Heads of the columns that a terminal shows on the right."""
MEANING = (
    "{} over n unlearning seeds{}, equal runs counted once; {} best mean among methods with equal data access, "
    "† not significantly different from it (five seeds or more)"
)
Bold = Callable[[str], str]


def starred(text: str) -> str:
    """Mark the best value where there is no bold type."""
    return f"{text} *"


def legend(intervals: bool = False, seeds: str = "", best: str = "*") -> str:
    """Explain the numbers of a table."""
    spread = "mean with its 95 % interval" if intervals else "mean ± standard deviation"
    return MEANING.format(spread, seeds, best)


class Sheet(NamedTuple):
    """One table with rows in sections: controls first, then methods by the data that they need."""

    title: str
    heads: list[str]
    sections: list[tuple[str, list[list[str]]]]
    note: str
    """A line below it: what real images score, rows of another version."""
    caption: str = ""
    """Protocol, seeds, judge and hardware, for a table that stands alone."""


def columns_of(metrics: Mapping[str, Metric]) -> dict[str, Metric | Derived]:
    """All columns that a table can show."""
    return {**metrics, **DERIVED}


def choose_columns(names: str | None, metrics: Mapping[str, Metric]) -> list[str]:
    """The columns named in a comma-separated list, or all."""
    known = columns_of(metrics)
    if names is None:
        return list(known)
    wanted = words([names])
    if not wanted:
        raise UserError("--columns is empty: name at least one, or leave the option out")
    for name in wanted:
        if name not in known:
            raise unknown("metric", name, known)
    return wanted


def shown(metric: Metric | Derived, value: float | None, sd: float | None = None) -> str:
    """Format a value with its spread in the metric's unit and decimals; — where it is unknown."""
    if value is None or math.isnan(value):
        return "—"
    text = f"{value * metric.scale:.{metric.digits}f}"
    return text if sd is None or math.isnan(sd) else f"{text} ± {sd * metric.scale:.{metric.digits}f}"


def head(metric: Metric | Derived) -> str:
    """A column's head: title, unit, arrow."""
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.title}{unit} {ARROWS[metric.better]}".rstrip()


def floors_line(metrics: Mapping[str, Metric], floors: Mapping[str, float | None]) -> str:
    """The line about what real images score in place of the samples."""
    known = [
        f"{metrics[name].title} {shown(metrics[name], value)}" for name, value in floors.items() if value is not None
    ]
    return f"real images score against the reference: {', '.join(known)}"


def narrowed(columns: Sequence[str], axis: str | None, metrics: Mapping[str, Metric]) -> list[str]:
    """The columns of these comma-separated axes; anchored scores go with efficacy and utility."""
    if axis is None:
        return list(columns)
    wanted = set(words([axis]))
    if not wanted:
        raise UserError("--axis is empty: name at least one, or leave the option out")
    for name in wanted - set(AXES):
        raise unknown("axis", name, AXES)
    of = {**{name: metric.axis for name, metric in metrics.items()}, **OF_DERIVED}
    return [name for name in columns if of[name] in wanted]


def ordered(board: Board, by: str | None, metrics: Mapping[str, Metric]) -> Board:
    """Sort rows by a column, the best first, or the worst with `-` before its name; controls stay above the others.

    Rows without a value come last. Lower bounds come just before them: the missing attack may find more.
    """
    if not by:
        return board
    name = by.removeprefix("-")
    known = columns_of(metrics)
    if name not in known:
        raise unknown("column", name, known)
    sign = (-1 if known[name].better == "higher" else 1) * (-1 if by.startswith("-") else 1)
    places = {key: place for place, (key, _) in enumerate(board.tables())}

    def place(row: BoardRow) -> tuple[int, bool, bool, float]:
        stat = row.stat(name)
        at = math.inf if stat.value is None else sign * stat.value
        return places[row.table], not row.is_control, stat.bound, at

    return board.of(sorted(board, key=place))


def tables(
    board: Board,
    metrics: Mapping[str, Metric],
    columns: Sequence[str],
    bold: Bold = starred,
    all_keys: bool = True,
    intervals: bool = False,
) -> list[Sheet]:
    """Make one table for each task, protocol and concept, which are never mixed.

    Without `all_keys`, division and number of overrides are left out where every row has the default settings. With
    `intervals`, values have their 95 % interval instead of the deviation over seeds.
    """
    return [_sheet(key, table, metrics, columns, bold, all_keys, intervals) for key, table in board.tables()]


def _sheet(
    key: TableKey,
    table: Board,
    metrics: Mapping[str, Metric],
    columns: Sequence[str],
    bold: Bold,
    all_keys: bool,
    intervals: bool,
) -> Sheet:
    known, (task, protocol, hash, forget) = columns_of(metrics), key
    names = [name for name in columns if known[name].everywhere or any(row.stat(name).n > 0 for row in table)]
    names = [name for name in names if name not in registry.without(task)]
    plain = all(row.division == "default" and row.overrides == 0 for row in table)
    keyed = all_keys or not plain
    flagged = any(row.flags for row in table)
    sections: dict[str, list[list[str]]] = {}
    for row in table:
        cells = [row.label, *([row.division, str(row.overrides)] if keyed else []), str(row.n)]
        cells += [_cell(known[name], name, row, bold, intervals) for name in names]
        sections.setdefault(row.section, []).append([*cells, *([row.flags] if flagged else [])])
    heads = ["method", *(["division", "overrides"] if keyed else []), "n"]
    heads += [*(head(known[name]) for name in names), *([FLAGS] if flagged else [])]
    title = f"{task}, protocol {protocol} ({hash[:8]}), forget {forget}"
    title += f"; {registry.UNTRIED} by this project" if registry.untried(task) else ""
    caption = f"{title}. {_caption(table, intervals)}"
    return Sheet(title, heads, list(sections.items()), notes_of(table, metrics), caption)


def notes_of(table: Board, metrics: Mapping[str, Metric]) -> str:
    """The line below a table: what real images score, and how many rows are of another version; may be empty."""
    floors = {name: next((f for row in table if (f := row.stat(name).floor) is not None), None) for name in metrics}
    notes = [floors_line(metrics, floors)] if any(value is not None for value in floors.values()) else []
    if older := [row.older for row in table if row.older]:
        parts = ", ".join(dict.fromkeys(part for some in older for part in some))
        notes.append(f"of another version of unlearnbench ({parts}): {len(older)} of {len(table)} rows")
    return "; ".join(notes)


def for_terminal(sheet: Sheet, first: Sequence[str] = ()) -> Sheet:
    """Order a table's columns for a narrow terminal.

    After the method come n, the columns with a head in `first` and the other metrics, then division and overrides,
    which labels show too, and flags last.
    """

    def place(i: int) -> int:
        name = sheet.heads[i]
        if name in LAST:
            return len(first) + 1 + LAST.index(name)
        return -1 if i == 0 or name == "n" else first.index(name) if name in first else len(first)

    order = sorted(range(len(sheet.heads)), key=place)
    sections = [(name, [[row[i] for i in order] for row in rows]) for name, rows in sheet.sections]
    return sheet._replace(heads=[sheet.heads[i] for i in order], sections=sections)


def headline_names(metrics: Mapping[str, Metric]) -> list[str]:
    """Heads of the metrics to show first where not all fit, the most important first."""
    known = columns_of(metrics)
    return [head(known[name]) for name in FIRST if name in known]


def _caption(table: Board, intervals: bool) -> str:
    seeds = sorted({seed for row in table for seed in row.seeds})
    parts = [legend(intervals, f" ({spans(seeds)})", "bold:").capitalize()]
    for name, texts in (("Judge", [row.judge for row in table]), ("Measured on", [row.hardware for row in table])):
        said = list(dict.fromkeys(part for text in texts for part in text.split("; ") if part))
        parts += [f"{name}: {'; '.join(said)}"] if said else []
    return ". ".join(parts) + "."


def spans(numbers: Sequence[int]) -> str:
    """Format ascending whole numbers as in `0-2, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _cell(column: Metric | Derived, name: str, row: BoardRow, bold: Bold, intervals: bool = False) -> str:
    stat = row.stat(name)
    if not stat.known:
        return "—"
    text = shown(column, stat.value, None if intervals else stat.sd)
    text = ("≥ " if stat.bound else "") + text + (" (ASR)" if stat.plain else "")
    text += note_fewer_runs(row) if name == "robustness" else ""
    text = bold(text) if stat.mark == "best" else text
    text += f" {interval_of(column, stat)}" if intervals and interval_of(column, stat) else ""
    return f"{text} †" if stat.mark == "not worse" else text


def interval_of(column: Metric | Derived, stat: Stat) -> str:
    """`[low, high]` in the column's unit; empty where there is no interval."""
    if stat.low is None or stat.high is None:
        return ""
    return f"[{shown(column, stat.low)}, {shown(column, stat.high)}]"


def note_fewer_runs(row: BoardRow) -> str:
    """` (n 2)` where only 2 of a row's runs were attacked; empty where all were."""
    return "" if row.attacked_n >= row.n else f" (n {row.attacked_n})"


def fit_metrics(
    board: Board, metrics: Mapping[str, Metric], every: Sequence[str], width: int, intervals: bool = False
) -> list[str]:
    """Choose the columns that fit into `width` characters, headline ones first, in their usual order."""
    kept: list[str] = []
    for name in [*(name for name in FIRST if name in every), *(name for name in every if name not in FIRST)]:
        trial = [column for column in every if column in (*kept, name)]
        for sheet in tables(board, metrics, trial, all_keys=False, intervals=intervals):
            if sheet_width(sheet) > width and len(kept) >= LEAST:
                return [column for column in every if column in kept]
        kept.append(name)
    return list(every)


def sheet_width(sheet: Sheet) -> int:
    """Characters that a table needs in a terminal; labels and flags may be broken, numbers not."""
    rows = [row for _, section in sheet.sections for row in section]
    most = [LABEL if number == 0 else SHORT if name in WRAPPED else math.inf for number, name in enumerate(sheet.heads)]
    widths = [max(map(len, cells)) for cells in zip(sheet.heads, *rows, strict=True)]
    return int(sum(map(min, widths, most))) + 3 * len(widths)
