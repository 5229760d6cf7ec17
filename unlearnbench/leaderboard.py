"""The board as tables: in the terminal, markdown, csv, json or LaTeX."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench import registry
from unlearnbench.board import CONTROLS, TABLE
from unlearnbench.errors import UserError, unknown
from unlearnbench.metric import Metric

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
Columns = Mapping[str, "Metric | Derived"]
ARROWS = {"higher": "↑", "lower": "↓", None: ""}
FIRST = ("ua", "ra", "score", "coherence", "fid", "unlearn_time", "ua_closed")
"""Columns that come first where there is no room for all."""
LABEL = 24
"""Width up to which method labels are kept on one line in the terminal."""
LEGEND = (
    "mean ± standard deviation over n unlearning seeds, equal runs counted once; * best mean among methods of equal "
    "data access, † no significant difference from it (five seeds or more)"
)
OPEN, CLOSE = "\x02", "\x03"  # around bold text until LaTeX's own characters are escaped
Bold = Callable[[str], str]


def starred(text: str) -> str:
    """The best value, where there is no bold type."""
    return f"{text} *"


class Sheet(NamedTuple):
    """One table: rows in sections, controls first, then methods by the data that they need."""

    title: str
    heads: list[str]
    sections: list[tuple[str, list[list[str]]]]
    note: str
    """What real images score, where known."""


def columns_of(metrics: Mapping[str, Metric]) -> dict[str, Metric | Derived]:
    """All that a table can show."""
    return {**metrics, **DERIVED}


def chosen(names: str | None, metrics: Mapping[str, Metric]) -> list[str]:
    """The columns named in a comma-separated list, or all."""
    known = columns_of(metrics)
    if not names:
        return list(known)
    wanted = [name.strip() for name in names.split(",")]
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


def tables(
    result: pd.DataFrame,
    metrics: Mapping[str, Metric],
    columns: Sequence[str],
    bold: Bold = starred,
    all_keys: bool = True,
) -> list[Sheet]:
    """One table for each task, protocol and concept: they are never mixed.

    Without `all_keys`, division and number of overrides are left out where every row has the default settings.
    """
    known, made = columns_of(metrics), []
    for (task, protocol, hash, forget), group in result.groupby(TABLE, sort=False):
        plain = (group.division == "default").all() and (group.overrides == 0).all()
        keys = [] if plain and not all_keys else ["division", "overrides"]
        names = [name for name in columns if known[name].everywhere or group[f"{name}_n"].max() > 0]
        names = [name for name in names if name not in registry.without(task)]
        flagged = ["flags"] if group["flags"].any() else []
        sections: dict[str, list[list[str]]] = {}
        for _, row in group.iterrows():
            access = "controls" if row.method in CONTROLS else f"with {row.access}"
            cells = [row.label, *(str(row[key]) for key in [*keys, "n"])]
            cells += [_cell(known[name], name, row, bold) for name in names]
            sections.setdefault(access, []).append([*cells, *(row[name] for name in flagged)])
        heads = ["method", *keys, "n", *(head(known[name]) for name in names), *flagged]
        floors = {name: _first(group[f"{name}_floor"]) for name in metrics if f"{name}_floor" in group}
        note = floors_line(metrics, floors) if any(value is not None for value in floors.values()) else ""
        title = f"{task}, protocol {protocol} ({hash[:8]}), forget {forget}"
        title += f"; {registry.UNTRIED} by this project" if registry.untried(task) else ""
        made.append(Sheet(title, heads, list(sections.items()), note))
    return made


def _cell(column: Metric | Derived, name: str, row: pd.Series, bold: Bold) -> str:
    text, mark = shown(column, row[name], row.get(f"{name}_sd")), row.get(f"{name}_mark")
    text = f"≥ {text}" if row.get(f"{name}_bound") and text != "—" else text
    text += " (ASR)" if row.get(f"{name}_over_retrain") is False and text != "—" else ""
    return bold(text) if mark == "best" else f"{text} †" if mark == "not worse" else text


def _first(values: Iterable[Any]) -> float | None:
    return next((float(value) for value in values if value is not None and not math.isnan(value)), None)


def fitting(result: pd.DataFrame, metrics: Mapping[str, Metric], width: int) -> list[str]:
    """The columns that fit into a terminal of this width, the headline ones first, in their usual order."""
    every = list(columns_of(metrics))
    kept: list[str] = []
    for name in [*FIRST, *(name for name in every if name not in FIRST)]:
        trial = [column for column in every if column in (*kept, name)]
        for sheet in tables(result, metrics, trial, all_keys=False):
            rows = [row for _, section in sheet.sections for row in section]
            widths = [max(map(len, [title, *cells])) for title, *cells in zip(sheet.heads, *rows, strict=True)]
            if sum(widths[1:]) + min(widths[0], LABEL) + 3 * len(widths) > width:
                return [column for column in every if column in kept]
        kept.append(name)
    return every


def markdown(result: pd.DataFrame, metrics: Mapping[str, Metric], columns: Sequence[str]) -> str:
    """GitHub's tables; mean ± standard deviation over n unlearning seeds."""
    return as_markdown(tables(result, metrics, columns, lambda text: f"**{text}**"))


def as_markdown(sheets: Iterable[Sheet]) -> str:
    """GitHub's tables."""
    parts = []
    for sheet in sheets:
        blank = [""] * (len(sheet.heads) - 1)
        rows = [sheet.heads, ["---"] + ["---:"] * len(blank)]
        for name, section in sheet.sections:
            rows += [[f"*{name}*", *blank], *section]
        lines = ["| " + " | ".join(cells) + " |" for cells in rows]
        parts.append(f"### {sheet.title}\n\n" + "\n".join(lines) + "\n" + (f"\n{sheet.note}\n" if sheet.note else ""))
    return "\n".join(parts)


def page(result: pd.DataFrame, metrics: Mapping[str, Metric], columns: Sequence[str], more: str = "") -> str:
    """The README of a results folder; `more` comes between tables and columns."""
    known = columns_of(metrics)
    notes = "\n".join(f"- {head(known[name])}: {_meaning(known[name])}" for name in columns)
    return (
        "# Results\n\nMade by `unlearnbench leaderboard --write` from the records below this folder; edits are lost. "
        "Mean ± standard deviation over n unlearning seeds, equal runs counted once; bold: best mean among methods of "
        "equal data access, †: no significant difference from it (five seeds or more). Tables of different protocols "
        "must not be compared. Rankings on small worlds are no evidence about Stable Diffusion.\n\n"
        f"{markdown(result, metrics, columns)}\n{more}## Columns\n\n{notes}\n"
    )


def _meaning(column: Metric | Derived) -> str:
    return column.meaning if isinstance(column, Derived) else (type(column).__doc__ or "").strip().partition("\n")[0]


def latex(result: pd.DataFrame, metrics: Mapping[str, Metric], columns: Sequence[str]) -> str:
    """booktabs tables with a caption that says what was measured."""
    return as_latex(tables(result, metrics, columns, lambda text: OPEN + text + CLOSE))


def as_latex(sheets: Iterable[Sheet]) -> str:
    """booktabs tables with a caption that says what was measured."""
    parts = []
    for sheet in sheets:
        count = len(sheet.heads)
        body = []
        for name, section in sheet.sections:
            body += [r"\midrule", rf"\multicolumn{{{count}}}{{l}}{{\emph{{{_escape(name)}}}}} \\"]
            body += [" & ".join(map(_escape, cells)) + r" \\" for cells in section]
        caption = f"{sheet.title}. Mean ± standard deviation over n unlearning seeds; bold: best of equal data access."
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escape(caption)}}}"]
        heads = " & ".join(map(_escape, sheet.heads)) + r" \\"
        lines += [rf"\begin{{tabular}}{{l{'r' * (count - 1)}}}", r"\toprule", heads, *body]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        parts.append("\n".join(lines) + "\n")
    return "% needs \\usepackage{booktabs}\n" + "\n".join(parts)


def _escape(text: str) -> str:
    for plain, command in (
        ("\\", r"\textbackslash{}"),
        ("_", r"\_"),
        ("%", r"\%"),
        ("&", r"\&"),
        ("#", r"\#"),
        ("±", r"$\pm$"),
        ("↑", r"$\uparrow$"),
        ("↓", r"$\downarrow$"),
        ("—", "---"),
        ("~", r"\textasciitilde{}"),
        ("†", r"$\dagger$"),
        (OPEN, r"\textbf{"),
        (CLOSE, "}"),
    ):
        text = text.replace(plain, command)
    return text


def as_json(result: pd.DataFrame) -> str:
    """Rows as JSON; numbers are numbers, unknown is null."""
    return json.dumps(json.loads(result.to_json(orient="records")), indent=1, ensure_ascii=False) + "\n"


def formatted(result: pd.DataFrame, metrics: dict[str, Metric], columns: Sequence[str], kind: str) -> str:
    """The board as text of one kind."""
    if kind == "markdown":
        return markdown(result, metrics, columns)
    if kind == "latex":
        return latex(result, metrics, columns)
    if kind == "csv":
        return result.to_csv(index=False)
    if kind == "json":
        return as_json(result)
    raise no_format(kind)


def no_format(kind: str) -> UserError:
    """What to say of a format that is none."""
    return UserError(f"unknown format {kind!r}: known: terminal, markdown, csv, latex, json")
