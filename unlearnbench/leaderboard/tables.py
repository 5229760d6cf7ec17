"""The board as tables: which rows and columns, in what order, and how a value is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench import registry
from unlearnbench.errors import UserError, unknown
from unlearnbench.leaderboard.board import CONTROLS, TABLE
from unlearnbench.metric import Metric
from unlearnbench.registry import words

if TYPE_CHECKING:
    import pandas as pd


class Derived(NamedTuple):
    """A column that is made from metrics."""

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
        "What the worst of the standard attacks recovers: the excess of its ASR over retrain's, or plain ASR where no "
        "retrain was attacked; ≥ where an attack is missing.",
        "lower",
        "%",
        100.0,
        1,
        everywhere=False,
    ),
}
AXES = ("efficacy", "utility", "robustness", "cost")
OF_DERIVED = {"efficacy": "efficacy", "utility": "utility", "score": "efficacy", "robustness": "robustness"}
"""The axis that a derived column goes with."""
ARROWS = {"higher": "↑", "lower": "↓", None: ""}
FIRST = ("ua", "ra", "score", "coherence", "fid", "unlearn_time", "ua_closed")
"""Columns that come first where there is no room for all."""
LEAST = 2
"""Of which so many are shown however narrow it is."""
LABEL = 24
"""Width up to which labels are kept on one line in the terminal."""
WRAPPED = ("flags", "by", "chosen")
"""Heads of columns of words, which may be broken into several lines."""
SHORT = 12
"""Width that columns of words are given at least."""
FLAGS = "flags"
"""Head of the column that says what went wrong."""
LAST = ("division", "overrides", FLAGS)
"""Heads of the columns that a terminal shows on the right."""
MEANING = (
    "{} over n unlearning seeds{}, equal runs counted once; {} best mean among methods of equal data access, "
    "† no significant difference from it (five seeds or more)"
)
Bold = Callable[[str], str]


def starred(text: str) -> str:
    """The best value, where there is no bold type."""
    return f"{text} *"


def legend(intervals: bool = False, seeds: str = "", best: str = "*") -> str:
    """What the numbers of a table are."""
    spread = "mean with its 95 % interval" if intervals else "mean ± standard deviation"
    return MEANING.format(spread, seeds, best)


class Sheet(NamedTuple):
    """One table: rows in sections, controls first, then methods by the data that they need."""

    title: str
    heads: list[str]
    sections: list[tuple[str, list[list[str]]]]
    note: str
    """What real images score, where known."""
    caption: str = ""
    """Protocol, seeds, judge and hardware, for where a table stands alone."""


def columns_of(metrics: Mapping[str, Metric]) -> dict[str, Metric | Derived]:
    """All that a table can show."""
    return {**metrics, **DERIVED}


def chosen(names: str | None, metrics: Mapping[str, Metric]) -> list[str]:
    """The columns named in a comma-separated list, or all."""
    known = columns_of(metrics)
    if names is None:
        return list(known)
    wanted = words([names])
    if not wanted:
        raise UserError("--columns is empty: name at least one, or leave it out")
    for name in wanted:
        if name not in known:
            raise unknown("metric", name, known)
    return wanted


def shown(metric: Metric | Derived, value: float | None, sd: float | None = None) -> str:
    """A value with its spread, in the metric's unit and decimals; — where it is not known."""
    if value is None or math.isnan(value):
        return "—"
    text = f"{value * metric.scale:.{metric.digits}f}"
    return text if sd is None or math.isnan(sd) else f"{text} ± {sd * metric.scale:.{metric.digits}f}"


def head(metric: Metric | Derived) -> str:
    """A column's name: title, arrow, unit."""
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.title}{unit} {ARROWS[metric.better]}".rstrip()


def floors_line(metrics: Mapping[str, Metric], floors: Mapping[str, float | None]) -> str:
    """What real images score in place of the samples."""
    known = [
        f"{metrics[name].title} {shown(metrics[name], value)}" for name, value in floors.items() if value is not None
    ]
    return f"real images score against the reference: {', '.join(known)}"


def narrowed(columns: Sequence[str], axis: str | None, metrics: Mapping[str, Metric]) -> list[str]:
    """The columns of these axes, comma-separated; anchored scores go with efficacy and utility."""
    if axis is None:
        return list(columns)
    wanted = set(words([axis]))
    if not wanted:
        raise UserError("--axis is empty: name at least one, or leave it out")
    for name in wanted - set(AXES):
        raise unknown("axis", name, AXES)
    of = {**{name: metric.axis for name, metric in metrics.items()}, **OF_DERIVED}
    return [name for name in columns if of[name] in wanted]


def ordered(result: pd.DataFrame, by: str | None, metrics: Mapping[str, Metric]) -> pd.DataFrame:
    """Rows by a column, the best first, with `-` before its name the worst; within a table, controls above the others.

    Rows without a value come last, and lower bounds before them: what is missing could be worse.
    """
    if not by:
        return result
    name = by.removeprefix("-")
    known = columns_of(metrics)
    if name not in known:
        raise unknown("column", name, known)
    sign = (-1 if known[name].better == "higher" else 1) * (-1 if by.startswith("-") else 1)
    places = {key: place for place, key in enumerate(dict.fromkeys(result[TABLE].itertuples(index=False, name=None)))}

    def place(i: Any) -> tuple[int, bool, bool, float]:
        value, bound = result[name][i], bool(result[f"{name}_bound"][i]) if f"{name}_bound" in result else False
        at = math.inf if value is None or math.isnan(value) else sign * value
        return places[tuple(result.loc[i, TABLE])], result.method[i] not in CONTROLS, bound, at

    return result.loc[sorted(result.index, key=place)]


def tables(
    result: pd.DataFrame,
    metrics: Mapping[str, Metric],
    columns: Sequence[str],
    bold: Bold = starred,
    all_keys: bool = True,
    intervals: bool = False,
) -> list[Sheet]:
    """One table for each task, protocol and concept: they are never mixed.

    Without `all_keys`, division and number of overrides are left out where every row has the default settings. With
    `intervals` values come with their 95 % interval in place of the deviation over seeds.
    """
    known, made = columns_of(metrics), []
    for (task, protocol, hash, forget), group in result.groupby(TABLE, sort=False):
        plain = (group.division == "default").all() and (group.overrides == 0).all()
        keys = [] if plain and not all_keys else ["division", "overrides"]
        names = [name for name in columns if known[name].everywhere or group[f"{name}_n"].max() > 0]
        names = [name for name in names if name not in registry.without(task)]
        flagged = [FLAGS] if group["flags"].any() else []
        sections: dict[str, list[list[str]]] = {}
        for _, row in group.iterrows():
            access = "controls" if row.method in CONTROLS else f"with {row.access}"
            cells = [row.label, *(str(row[key]) for key in [*keys, "n"])]
            cells += [_cell(known[name], name, row, bold, intervals) for name in names]
            sections.setdefault(access, []).append([*cells, *(row[name] for name in flagged)])
        heads = ["method", *keys, "n", *(head(known[name]) for name in names), *flagged]
        floors = {name: _first(group[f"{name}_floor"]) for name in metrics if f"{name}_floor" in group}
        note = floors_line(metrics, floors) if any(value is not None for value in floors.values()) else ""
        title = f"{task}, protocol {protocol} ({hash[:8]}), forget {forget}"
        title += f"; {registry.UNTRIED} by this project" if registry.untried(task) else ""
        made.append(Sheet(title, heads, list(sections.items()), note, f"{title}. {_caption(group, intervals)}"))
    return made


def for_terminal(sheet: Sheet, first: Sequence[str] = ()) -> Sheet:
    """The sheet with its columns in the order in which a narrow terminal should have them.

    After the method come n, the columns with a head in `first` and the other metrics; division and number of
    overrides, which labels say too, come after the metrics, and flags last.
    """

    def place(i: int) -> int:
        name = sheet.heads[i]
        if name in LAST:
            return len(first) + 1 + LAST.index(name)
        return -1 if i == 0 or name == "n" else first.index(name) if name in first else len(first)

    order = sorted(range(len(sheet.heads)), key=place)
    sections = [(name, [[row[i] for i in order] for row in rows]) for name, rows in sheet.sections]
    return sheet._replace(heads=[sheet.heads[i] for i in order], sections=sections)


def headline(metrics: Mapping[str, Metric]) -> list[str]:
    """Heads of the metrics to show first where there is no room for all, the most important first."""
    known = columns_of(metrics)
    return [head(known[name]) for name in FIRST if name in known]


def _caption(group: pd.DataFrame, intervals: bool) -> str:
    seeds = sorted({seed for some in group.seeds for seed in some})
    parts = [legend(intervals, f" ({spans(seeds)})", "bold:").capitalize()]
    for name, column in (("Judge", "judge"), ("Measured on", "hardware")):
        said = list(dict.fromkeys(part for text in group[column] for part in text.split("; ") if part))
        parts += [f"{name}: {'; '.join(said)}"] if said else []
    return ". ".join(parts) + "."


def spans(numbers: Sequence[int]) -> str:
    """Whole numbers in rising order as in `0-2, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _cell(column: Metric | Derived, name: str, row: pd.Series, bold: Bold, intervals: bool = False) -> str:
    text, mark = shown(column, row[name], None if intervals else row.get(f"{name}_sd")), row.get(f"{name}_mark")
    text = f"≥ {text}" if row.get(f"{name}_bound") and text != "—" else text
    text += " (ASR)" if row.get(f"{name}_over_retrain") is False and text != "—" else ""
    text += fewer(row) if name == "robustness" and text != "—" else ""
    text = bold(text) if mark == "best" else text
    if intervals and text != "—":
        low, high = (shown(column, row.get(f"{name}_{end}")) for end in ("low", "high"))
        text += "" if "—" in (low, high) else f" [{low}, {high}]"
    return f"{text} †" if mark == "not worse" else text


def fewer(row: pd.Series) -> str:
    """How many of a row's runs were attacked, where that is not all of them."""
    return "" if row.attacked_n >= row.n else f" (n {row.attacked_n:.0f})"


def _first(values: Iterable[Any]) -> float | None:
    return next((float(value) for value in values if value is not None and not math.isnan(value)), None)


def fitting(
    result: pd.DataFrame, metrics: Mapping[str, Metric], every: Sequence[str], width: int, intervals: bool = False
) -> list[str]:
    """Those of the columns that fit into so many characters, the headline ones first, in their usual order."""
    kept: list[str] = []
    for name in [*(name for name in FIRST if name in every), *(name for name in every if name not in FIRST)]:
        trial = [column for column in every if column in (*kept, name)]
        for sheet in tables(result, metrics, trial, all_keys=False, intervals=intervals):
            if width_of(sheet) > width and len(kept) >= LEAST:
                return [column for column in every if column in kept]
        kept.append(name)
    return list(every)


def width_of(sheet: Sheet) -> int:
    """Characters that a terminal needs for it: labels and flags may be broken, numbers not."""
    rows = [row for _, section in sheet.sections for row in section]
    most = [LABEL if number == 0 else SHORT if name in WRAPPED else math.inf for number, name in enumerate(sheet.heads)]
    widths = [max(map(len, cells)) for cells in zip(sheet.heads, *rows, strict=True)]
    return int(sum(map(min, widths, most))) + 3 * len(widths)
