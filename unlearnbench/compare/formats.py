"""Format a comparison as markdown, CSV or JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from unlearnbench.compare.differences import ComparisonRow
from unlearnbench.compare.wording import (
    HEADS,
    Comparison,
    cells,
    describe_sides,
    group_differences,
    names_of,
    notes,
    summary,
    title,
    worst_line,
)
from unlearnbench.leaderboard.board import pool_flags
from unlearnbench.leaderboard.formats import markdown_text
from unlearnbench.printable import cleaned

if TYPE_CHECKING:
    import pandas as pd


SHOWN = ("group", "what", "a", "b", "change")
"""Fields of a difference in JSON."""


def markdown(found: Comparison) -> str:
    """GitHub tables with the text around them."""
    sheets = [(title(found), ["metric", *HEADS], [cells(row) for row in found.metrics])]
    if found.attacks:
        sheets.append(("Under attack", ["attack", *HEADS], [cells(row) for row in found.attacks]))
    lines = [*describe_sides(found), summary(found), *notes(found)]
    parts = ["".join(f"{markdown_text(line)}\n\n" for line in lines if line)]
    for name, heads, rows in sheets:
        parts.append(_table(name, heads, rows))
    if found.attacks:
        parts.append(f"\n{markdown_text(worst_line(found))}\n")
    if found.little:
        parts.append(f"\nMade differently: {found.little}.\n")
    elif found.apart:
        parts.append("\n" + _table("Made differently", ["group", "what", "A", "B"], group_differences(found.apart)))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _table(name: str, heads: list[str], rows: list[list[str]]) -> str:
    lines = [["---"] + ["---:"] * (len(heads) - 1)]
    text = "\n".join(f"| {' | '.join(map(markdown_text, line))} |" for line in [heads, *lines, *rows])
    return f"### {markdown_text(name)}\n\n{text}\n"


def values(row: ComparisonRow) -> dict[str, Any]:
    """A row's numbers, unscaled."""
    low, high = row.interval or (None, None)
    return {
        "name": row.name,
        "axis": row.axis,
        "a": row.a,
        "b": row.b,
        "change": row.change,
        "low": low,
        "high": high,
        "p": row.p,
        "p_holm": row.adjusted,
        "ratio": row.ratio,
        "runs": row.runs,
        "images": row.images,
        "independent": row.independent,
    }


def comparison_frame(found: Comparison) -> pd.DataFrame:
    """One row per metric or attack, numbers unscaled."""
    import pandas as pd

    tables = [("metric", found.metrics), ("attack", found.attacks)]
    return pd.DataFrame([{"kind": kind, **values(row)} for kind, rows in tables for row in rows])


def as_json(found: Comparison) -> str:
    """The whole comparison; unknown is null."""
    sides = {
        name: {"method": label, "records": [str(run.path) for run in one.runs], "flags": pool_flags(one.records)}
        for name, one, label in zip("ab", (found.a, found.b), names_of(found), strict=True)
    }
    about = found.a.runs[0].record
    said = {
        "task": about.task,
        "protocol": {"name": about.protocol.name, "hash": about.protocol.hash},
        "forget": about.forget,
        **sides,
        "metrics": [values(row) for row in found.metrics],
        "attacks": [values(row) for row in found.attacks],
        "worst": [None if worst is None else worst._asdict() for worst in found.worst],
        "made_otherwise": [{name: row._asdict()[name] for name in SHOWN} for row in found.apart],
        "little": found.little,
        "summary": summary(found),
        "notes": notes(found),
    }
    return json.dumps(cleaned(said), indent=1, ensure_ascii=False) + "\n"
