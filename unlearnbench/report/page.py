"""Make a report: a results folder as one self-contained HTML page with tables, plots, samples and every record."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from unlearnbench import __version__, registry
from unlearnbench.leaderboard.attacks import LEGEND as ATTACKS
from unlearnbench.leaderboard.board import board
from unlearnbench.leaderboard.tables import DERIVED, Derived, head
from unlearnbench.metric import Metric
from unlearnbench.printable import printable
from unlearnbench.records.identity import strip_suffix
from unlearnbench.report.first_view import WORDS
from unlearnbench.report.section import group_by_label, section
from unlearnbench.report.sources import Gap, RecordSource
from unlearnbench.report.table import BOXES, meaning
from unlearnbench.reporting import track

ASSETS = Path(__file__).parent / "assets"


class Report(NamedTuple):
    """The page, and the number of tables and records on it."""

    html: str
    tables: int
    records: int
    gaps: list[Gap]


def build_page(results: Path, task: str | None = None, include_unsafe: bool = False) -> Report:
    """Make a page of all records in a folder, or of one task's; the same records give the same bytes.

    Raises `UserError` where no record can be read. Samples of unsafe tasks, and of tasks that this version does not
    know, are left out unless `include_unsafe` is set.
    """
    source, metrics = RecordSource(results, task), registry.load_metrics()
    for record in track(source.records, len(source.records), "reading values by image"):
        source.images(record)
    tables = board(source.records, metrics, source.images).tables()
    groups = group_by_label(source.records)
    labels = {row.label for _, table in tables for row in table}
    names = sorted(labels | {strip_suffix(label) for label in labels})
    sections = [
        section(f"t{i}", table, groups, source, metrics, include_unsafe, names)
        for i, (_, table) in enumerate(track(tables, len(tables), "drawing tables"), 1)
    ]
    known: dict[str, Metric | Derived] = {**metrics, **DERIVED, **BOXES}
    shown = {column.name for part in sections for column in part.columns}
    gaps = sorted(source.gaps)
    html = _rendered(
        sections=sections,
        tasks=list(dict.fromkeys(part.task for part in sections)),
        methods=len({record.label() for record in source.records}),
        records=len(source.records),
        newest=max(record.created for record in source.records)[:16].replace("T", " "),
        gaps=gaps,
        meanings=[(head(column), meaning(column)) for name, column in known.items() if name in shown],
    )
    return Report(html, len(sections), len(source.records), gaps)


def _shown(value: Any) -> Any:
    """Remove invisible characters from text of records."""
    return printable(value, keep="\n") if type(value) is str else value


def _rendered(**values: Any) -> str:
    """Render the page with style and script inside, under a policy that blocks other scripts and all loading."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"style": Markup(style), "script": Markup(script), "script_hash": hash}
    about = {"attack_legend": ATTACKS, "became_words": WORDS, "version": __version__}
    return environment.get_template("page.html").render(**values, **own, **about)
