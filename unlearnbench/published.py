"""Numbers that papers and other benchmarks have published, beside what was measured here: never mixed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from unlearnbench.board import Estimate, Images, estimate, no_images
from unlearnbench.errors import UserError
from unlearnbench.leaderboard import head, shown
from unlearnbench.metric import Metric
from unlearnbench.record import Record

COLUMNS = ("task", "forget", "method", "metric", "value", "source", "status", "note")
TABLES = Path(__file__).parent / "tables"
HEADS = ["method", "metric", "published", "measured", "protocol", "status", "source"]


class Published(NamedTuple):
    """One published number, in the field's usual unit (shares of 0 to 1, FID as it is)."""

    task: str
    forget: str
    method: str
    """`erasediff[uniform]`: the method with that setting."""
    metric: str
    value: float
    source: str
    status: str
    """verified: read where it was first published; secondary: read in another text; unverified."""
    note: str


def load(path: Path | None = None) -> list[Published]:
    """Every row of every table; refuses one whose columns are others."""
    import pandas as pd

    rows: list[Published] = []
    for file in [path] if path else sorted(TABLES.glob("*.csv")):
        table = pd.read_csv(file, keep_default_na=False)
        if tuple(table.columns) != COLUMNS:
            raise UserError(f"{file} has the columns {', '.join(table.columns)}: they must be {', '.join(COLUMNS)}")
        rows += [Published(**{**row, "value": float(row["value"])}) for row in table.to_dict("records")]
    return rows


def compared(
    rows: Sequence[Published], records: Sequence[Record], metrics: Mapping[str, Metric], images: Images = no_images
) -> list[list[str]]:
    """`HEADS` for each published number: what was measured of the same, by every protocol that did, or —."""
    lines = []
    for row in rows:
        metric = metrics.get(row.metric)
        title = head(metric) if metric else row.metric
        published = f"{row.value:g}" if metric is None else shown(metric, row.value)
        groups: dict[str, list[Record]] = {}
        for record in records:
            if (record.task, record.forget) == (row.task, row.forget) and is_of(record, row.method):
                groups.setdefault(record.protocol.name, []).append(record)
        found: dict[str, Estimate | None] = {
            protocol: estimate(group, row.metric, images)
            for protocol, group in groups.items()
            if metric is not None and any(row.metric in record.scores for record in group)
        }
        for protocol, own in (found or {"—": None}).items():
            measured = "—" if own is None or metric is None else shown(metric, own.value, own.sd)
            lines.append([row.method, title, published, measured, protocol, row.status, row.source])
    return lines


def is_of(record: Record, method: str) -> bool:
    """Whether a record is of the method that a table names, with the setting in brackets and no other given."""
    name, setting = re.fullmatch(r"([^\[]+)(?:\[(.+)\])?", method).groups()  # type: ignore[union-attr]
    given = set(map(str, record.method.overrides.values())) - {setting}
    return record.method.name == name and not given and setting in {None, *map(str, record.method.settings.values())}
