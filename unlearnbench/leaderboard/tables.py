"""Turn the board into tables: choose rows and columns, order them, and format values."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from unlearnbench import registry
from unlearnbench.errors import UserError, unknown
from unlearnbench.leaderboard.likeness import LEAST_RETRAINS
from unlearnbench.leaderboard.rows import Board, BoardRow, Stat, TableKey
from unlearnbench.metric import Metric
from unlearnbench.registry import words


class Derived(NamedTuple):
    """A column that is computed from metrics."""

    title: str
    meaning: str
    axis: str
    better: str | None = "higher"
    unit: str = ""
    scale: float = 1.0
    digits: int = 2
    everywhere: bool = True


DERIVED = {
    "score": Derived(
        "score", "The worst of erasure, likeness to retrain (where there is one) and utility.", "efficacy"
    ),
    "erasure": Derived("erasure", "1 - still: 0 = original, 1 = no forget sample shows the concept.", "efficacy"),
    "likeness": Derived(
        "likeness",
        "Likeness of forget samples to retrain's: 0 = original, 1 = another run of retrain; the worse of that by "
        "verdicts and that by features, never clipped.",
        "efficacy",
        everywhere=False,
    ),
    "likeness_verdicts": Derived(
        "likeness (verdicts)",
        "By total variation between the shares of the judge's verdicts.",
        "efficacy",
        everywhere=False,
    ),
    "likeness_features": Derived(
        "likeness (features)", "By KID in the judge's features.", "efficacy", everywhere=False
    ),
    "utility": Derived("utility", "The worse of utility by RA and by FID, never clipped.", "utility"),
    "utility_ra": Derived("utility (RA)", "0 = destroy, 1 = original, by RA.", "utility", everywhere=False),
    "utility_fid": Derived("utility (FID)", "0 = destroy, 1 = original, by log FID.", "utility", everywhere=False),
    "robustness": Derived(
        "worst attack",
        "The largest excess of ASR over retrain's among the standard attacks as a share of its ceiling, 1 minus "
        "retrain's ASR, corrected for being the largest; plain ASR where no retrain was attacked; ≥ where an attack is "
        "missing.",
        "robustness",
        "lower",
        "%",
        100.0,
        1,
        everywhere=False,
    ),
}
AXES = ("efficacy", "utility", "robustness", "cost")
RANKS = ("rank", "with attacks")
"""Heads of the columns of ranks, by score and by the worse of the score and of what the worst attack leaves."""
ARROWS = {"higher": "↑", "lower": "↓", None: ""}
EVERY = "all"
"""What stands for every column in `--columns`."""
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
    "{} over n unlearning seeds{}, equal runs counted once; {} better than the second best among methods with equal "
    "data access (paired test, Holm, p < 0.05), † not told from the best; both only from five seeds on"
)
Bold = Callable[[str], str]


def starred(text: str) -> str:
    """Mark the best value where there is no bold type."""
    return f"{text}*"


def legend(intervals: bool = False, seeds: str = "", best: str = "*", spread: bool = True) -> str:
    """Explain the numbers of a table; without `spread` they are means alone."""
    said = "mean with its 95 % interval" if intervals else "mean ± standard deviation" if spread else "mean"
    return MEANING.format(said, seeds, best)


class Sheet(NamedTuple):
    """One table with rows in sections: controls first, then methods by the data that they need."""

    title: str
    heads: list[str]
    sections: list[tuple[str, list[list[str]]]]
    note: str
    """Lines below it: what real images score, rows of another version."""
    caption: str = ""
    """Protocol, seeds, judge and hardware, for a table that stands alone."""


def columns_of(metrics: Mapping[str, Metric]) -> dict[str, Metric | Derived]:
    """All columns that a table can show."""
    return {**metrics, **DERIVED}


def choose_columns(names: str | None, metrics: Mapping[str, Metric]) -> list[str]:
    """The columns in a comma-separated list of names or titles, or all; `all` among them stands for all."""
    known = columns_of(metrics)
    wanted = [EVERY] if names is None else words([names])
    if not wanted:
        raise UserError("--columns is empty: name at least one, or leave the option out")
    if EVERY in wanted:
        return list(known)
    return list(dict.fromkeys(column_named(name, known, [EVERY]) for name in wanted))


def column_named(text: str, known: Mapping[str, Metric | Derived], besides: Sequence[str] = ()) -> str:
    """The name of the column that a user means: its name, or its title in any case, as a table's head has it.

    Raises `UserError` for an unknown one, with similar names; `besides` are other words that may stand there.
    """
    titles = {column.title.casefold(): name for name, column in known.items()}
    found = text if text in known else titles.get(text.casefold())
    if found is None:
        raise unknown("column", text, [*known, *besides])
    return found


def shown(metric: Metric | Derived, value: float | None, sd: float | None = None) -> str:
    """Format a value with its spread in the metric's unit and decimals; — where it is unknown."""
    if value is None or math.isnan(value):
        return "—"
    text = f"{value * metric.scale:.{metric.digits}f}"
    text = text if float(text) else text.removeprefix("-")
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
    of = columns_of(metrics)
    return [name for name in columns if of[name].axis in wanted]


def ordered(board: Board, by: str | None, metrics: Mapping[str, Metric]) -> Board:
    """Sort rows by a column, the best first, or the worst with `-` before its name; controls stay above the others.

    Rows without a value come last. Lower bounds come just before them: the missing attack may find more.
    """
    if not by:
        return board
    known = columns_of(metrics)
    name = column_named(by.removeprefix("-"), known)
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
    known = columns_of(metrics)
    names = [name for name in columns if applies(name, known[name], table)]
    plain = all(row.division == "default" and row.overrides == 0 for row in table)
    keyed = all_keys or not plain
    flagged = any(row.flags or row.file for row in table)
    has_ranks = any(row.rank for row in table)
    sections: dict[str, list[list[str]]] = {}
    for row in table:
        cells = [row.title, *([row.division, str(row.overrides)] if keyed else []), str(row.n)]
        cells += rank_cells(row) if has_ranks else []
        cells += [cell_text(known[name], name, row, bold, intervals) for name in names]
        sections.setdefault(row.section, []).append(
            [*cells, *(["; ".join(filter(None, (row.file, row.flags)))] if flagged else [])]
        )
    heads = ["method", *(["division", "overrides"] if keyed else []), "n"]
    heads += [*(RANKS if has_ranks else ()), *(head(known[name]) for name in names), *([FLAGS] if flagged else [])]
    title = title_of(key)
    return Sheet(title, heads, list(sections.items()), notes_of(table, metrics), caption_of(title, table, intervals))


def rank_cells(row: BoardRow) -> list[str]:
    """A row's ranks without and with attacks; — where it has none."""
    return ["—" if rank is None else str(rank) for rank in (row.rank, row.rank_attacked)]


def applies(name: str, column: Metric | Derived, table: Board) -> bool:
    """Whether a table has this column: its task allows it, and all tasks have it or a row of the table does."""
    without = {missing for row in table for missing in registry.without(row.task)}
    return name not in without and (column.everywhere or any(row.stat(name).n or row.stat(name).known for row in table))


def title_of(key: TableKey) -> str:
    """A table's title: task, protocol with its hash, concept, and whether the task was never run for real."""
    task, protocol, hash, forget = key
    title = f"{task}, protocol {protocol} ({hash[:8]}), forget {forget}"
    return title + (f"; {registry.UNTRIED} by this project" if registry.untried(task, protocol) else "")


def notes_of(table: Board, metrics: Mapping[str, Metric]) -> str:
    """The line below a table: what real images score, and how many rows are of another version; may be empty."""
    floors = {name: next((f for row in table if (f := row.stat(name).floor) is not None), None) for name in metrics}
    notes = [floors_line(metrics, floors)] if any(value is not None for value in floors.values()) else []
    if older := [row.older for row in table if row.older]:
        parts = ", ".join(dict.fromkeys(part for some in older for part in some))
        notes.append(f"of another version of unlearnbench ({parts}): {len(older)} of {len(table)} rows")
    return "; ".join(notes)


def for_terminal(sheet: Sheet) -> Sheet:
    """Put n right after the method, and on the right division and overrides, which labels show too, and flags."""

    def place(i: int) -> int:
        name = sheet.heads[i]
        return -1 if i == 0 or name == "n" else 1 + LAST.index(name) if name in LAST else 0

    order = sorted(range(len(sheet.heads)), key=place)
    sections = [(name, [[row[i] for i in order] for row in rows]) for name, rows in sheet.sections]
    return sheet._replace(heads=[sheet.heads[i] for i in order], sections=sections)


def caption_of(title: str, table: Board, intervals: bool) -> str:
    """A caption for a table that stands alone: title, meaning of the numbers, seeds, judge and hardware."""
    seeds = sorted({seed for row in table for seed in row.seeds})
    parts = [title, legend(intervals, f" ({spans(seeds)})", "bold:").capitalize()]
    for name, texts in (("Judge", [row.judge for row in table]), ("Measured on", [row.hardware for row in table])):
        said = list(dict.fromkeys(part for text in texts for part in text.split("; ") if part))
        parts += [f"{name}: {'; '.join(said)}"] if said else []
    return ". ".join(parts) + "."


def run_command(
    methods: Sequence[str], task: str, forget: str, protocol: str, results: Path | None, force: bool = False
) -> str:
    """The command that makes these methods' records, as it can be typed; retrain with the seeds that likeness needs."""
    typed = ["--method", ",".join(methods), "--task", task, "--forget", forget]
    typed += ["--seeds", f"0-{LEAST_RETRAINS - 1}"] if "retrain" in methods else []
    typed += ["--protocol", protocol] if protocol != "default" else []
    typed += ["--results", str(results)] if results is not None and results != Path("results") else []
    typed += ["--force"] if force else []
    return f"unlearnbench run {shlex.join(typed)}"


def spans(numbers: Sequence[int]) -> str:
    """Format ascending whole numbers as in `0-2, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def cell_text(
    column: Metric | Derived, name: str, row: BoardRow, bold: Bold, intervals: bool = False, spread: bool = True
) -> str:
    """A row's value in a column, with its interval, or its deviation where there is `spread`, and its mark."""
    stat = row.stat(name)
    if not stat.known:
        return "—"
    text = shown(column, stat.value, stat.sd if spread and not intervals else None)
    text = ("≥ " if stat.bound else "") + text + (" (ASR)" if stat.plain else "")
    text += note_fewer_runs(row) if name == "robustness" else ""
    text = bold(text) if stat.mark == "best" else text
    text += f" {interval_of(column, stat)}" if intervals and interval_of(column, stat) else ""
    return f"{text}†" if stat.mark == "not worse" else text


def interval_of(column: Metric | Derived, stat: Stat) -> str:
    """`[low, high]` in the column's unit; empty where there is no interval."""
    if stat.low is None or stat.high is None:
        return ""
    return f"[{shown(column, stat.low)}, {shown(column, stat.high)}]"


def note_fewer_runs(row: BoardRow) -> str:
    """` (n 2)` where only 2 of a row's runs were attacked; empty where all were."""
    return "" if row.attacked_n >= row.n else f" (n {row.attacked_n})"


def sheet_width(sheet: Sheet) -> int:
    """Characters that a table needs in a terminal; labels and flags may be broken, numbers not."""
    rows = [row for _, section in sheet.sections for row in section]
    most = [LABEL if number == 0 else SHORT if name in WRAPPED else math.inf for number, name in enumerate(sheet.heads)]
    widths = [max(map(len, cells)) for cells in zip(sheet.heads, *rows, strict=True)]
    return int(sum(map(min, widths, most))) + 3 * len(widths)
