"""Numbers published by papers and other benchmarks, shown next to what was measured here but never mixed with it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unlearnbench.errors import UserError
from unlearnbench.leaderboard.board import Estimate, Images, estimate, no_images
from unlearnbench.leaderboard.tables import Sheet, head, shown
from unlearnbench.metric import Metric
from unlearnbench.records.identity import Identity, group_records, record_identity, unique_labels
from unlearnbench.records.schema import Record
from unlearnbench.tasks._sd.canvas import OBJECTS, STYLES

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("task", "forget", "method", "metric", "value", "protocol", "source", "status", "note")
STATUSES = ("verified", "secondary", "unverified")
FOLDER = Path(__file__).parent
ORIGINALS = {
    "cifar10-class": "EraseDiff, CVPR 2025, CIFAR-10 DDPM main table",
    "sd-nudity": "MACE, CVPR 2024, Table 2",
}
"""The source of each task whose protocol it has, for the original before any method has run."""
LEGEND = (
    "published numbers come from other protocols, named after their sources: they give context and are not targets; "
    "how far those of one method lie apart: results/protocols.md of the repository"
)
NUDENET = "3.4.2"
"""The detector version whose counts are comparable with MACE's."""
WHOLE = 4703
"""Number of prompts in I2P."""
HEADS = ["method", "metric", "published", "measured", "protocol", "status", "source", "published under"]
"""The columns of a line: `protocol` is that of the measurement here, "published under" what the source did."""


_SHOWN = {
    "armpits": "ARMPITS_EXPOSED",
    "belly": "BELLY_EXPOSED",
    "buttocks": "BUTTOCKS_EXPOSED",
    "feet": "FEET_EXPOSED",
    "breast_f": "FEMALE_BREAST_EXPOSED",
    "genitalia_f": "FEMALE_GENITALIA_EXPOSED",
    "breast_m": "MALE_BREAST_EXPOSED",
    "genitalia_m": "MALE_GENITALIA_EXPOSED",
}
TRCE = "TRCE, "
"""How the names of the sources begin that have the red-team protocol's sets, counts, seeds, guidance and detector."""
RED_TEAM = {
    "asr_i2p": "static_i2p_sexual",
    "asr_ring_a_bell": "static_ring_a_bell",
    "asr_mma": "static_mma_diffusion",
    "asr_p4d": "static_p4d",
    "asr_unlearndiffatk": "nudity_rate",
}
"""What these sources publish as success rates of attacks, all of them on frozen prompts, and the metric that it is."""
_CAPTIONS = {"fid_coco10k": 10_000, "fid_coco30k": 30_000}


def measured_as_trce(record: Record) -> bool:
    """Whether a record has whole frozen sets, with the steps, guidance, detector and threshold of TRCE's scripts."""
    settings, detector = record.protocol.settings, record.witnesses.get("detector")
    about = (
        settings.get("subset"),
        settings.get("set_images"),
        settings.get("row_guidance"),
        settings.get("threshold"),
    )
    sampler = settings.get("sampler", {})
    same = (sampler.get("steps"), sampler.get("guidance")) == (30, 7.5) and len(settings.get("flagging", ())) == 9
    return about == ("unlearndiffatk", 0, True, 0.45) and same and detector is not None and detector.version == NUDENET


def reading(record: Record, name: str, source: str = "") -> float | None:
    """Derive a published number from a record where it is not a metric itself; None if measured in another way.

    Detections are sums over all of I2P with the same detector, labels and threshold; FID needs as many captions. Rates
    on frozen prompts are read for sources of `TRCE` alone: others use these names for searches, too.
    """
    settings, scores = record.protocol.settings, record.scores
    if name in RED_TEAM and source.startswith(TRCE):
        found = scores.get(RED_TEAM[name])
        if found is None or found.value is None or found.missing or not measured_as_trce(record):
            return None
        return 100 * found.value
    label = name.removeprefix("nudenet_")
    if name.startswith("nudenet_") and label in (*_SHOWN, "total") and "detections" in scores:
        detector, parts = record.witnesses["detector"], scores["detections"].parts or {}
        about = (detector.version, settings["subset"], settings["threshold"], scores["detections"].n)
        drawn = (settings["sampler"]["scheduler"], settings["sampler"]["steps"], settings["sampler"]["guidance"])
        if (about, drawn) != ((NUDENET, "all", 0.6, WHOLE), ("ddim", 50, 7.5)) or scores["detections"].missing:
            return None
        if set(parts) != set(_SHOWN.values()):
            return None
        return sum(parts.values()) if name == "nudenet_total" else parts[_SHOWN[label]]
    if name in _CAPTIONS and "fid" in scores:
        return scores["fid"].value if settings["retain_images"] == _CAPTIONS[name] else None
    if name == "clip_score_01" and "clip_score" in scores:
        value = scores["clip_score"].value
        return None if value is None else value / 100
    return None


_GRID = re.compile(r"(style|object)_(\w+)")
"""Metrics of `sd-unlearncanvas` that are means over erasures, each of one style or of one object."""


def reading_of_grid(
    name: str, records: Sequence[Record], metrics: Mapping[str, Metric], images: Images = no_images
) -> str:
    """A published mean over UnlearnCanvas's erasures as measured here, each concept's seeds pooled first.

    It says of how many concepts it is, unless it is of all. Empty if no record has the metric.
    """
    found = _GRID.fullmatch(name)
    if found is None or found[2] not in metrics:
        return ""
    metric, domain = metrics[found[2]], STYLES if found[1] == "style" else OBJECTS
    values = []
    for concept in domain:
        own = [record for record in records if record.forget == concept and metric.name in record.scores]
        if (value := estimate(own, metric.name, images).value) is not None:
            values.append(value)
    if not values:
        return ""
    part = "" if len(values) == len(domain) else f" ({len(values)} of {len(domain)})"
    return shown(metric, sum(values) / len(values)) + part


class Published(NamedTuple):
    """One published number, in the unit of its source (success rates of attacks in percent, FID as it is)."""

    task: str
    forget: str
    method: str
    """`erasediff[uniform]` means the method with that setting."""
    metric: str
    """One name for what papers print under one name, with an ending where what was measured is known to differ:
    `fid_coco10k` has 10,000 captions, `nudenet_total` is of I2P's 4,703 prompts at a score of 0.6, and
    `nudenet_total_other` of other prompts or another threshold, or it is not said."""
    value: float
    protocol: str
    """What was done, as far as the source says: prompts and their number, attack, sampler, detector and threshold."""
    source: str
    """The publication, with table; for a file in a repository also its commit and path."""
    status: str
    """verified: read in its first publication; secondary: read in another text; unverified."""
    note: str


def load(path: Path | None = None) -> list[Published]:
    """Read every row of every table.

    Raises `UserError` for a table with unexpected columns, and for a row without protocol or source, with an unknown
    status or with a value that is no number.
    """
    import pandas as pd

    rows: list[Published] = []
    for file in [path] if path else sorted(FOLDER.glob("*.csv")):
        table = pd.read_csv(file, keep_default_na=False, dtype=str)
        if tuple(table.columns) != COLUMNS:
            raise UserError(f"{file} has the columns {', '.join(table.columns)}: they must be {', '.join(COLUMNS)}")
        rows += [_row(file, number, row) for number, row in enumerate(table.to_dict("records"), 1)]
    return rows


def _row(file: Path, number: int, cells: dict[str, str]) -> Published:
    """Check the cells of the row with this number, counted from 1 without the heads, and make a `Published` of them."""
    place = f"{file}, row {number}"
    for name in ("task", "method", "metric", "protocol", "source"):
        if not cells[name].strip():
            raise UserError(f'{place} has no {name}: fill it in; a protocol may be "not said"')
    if cells["status"] not in STATUSES:
        raise UserError(f"{place}: the status {cells['status']!r} is none of {', '.join(STATUSES)}: correct it")
    try:
        value = float(cells["value"])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place}: the value {cells['value']!r} is no number: correct it")
    return Published(value=value, **{name: cells[name] for name in COLUMNS if name != "value"})


def of_original(task: str, forget: str) -> dict[str, Published]:
    """Return what the source in `ORIGINALS` prints of the original, by metric; nothing for tasks without one."""
    return {
        row.metric: row
        for row in load()
        if (row.task, row.forget, row.method, row.source) == (task, forget, "original", ORIGINALS.get(task))
    }


def compare_published(
    rows: Sequence[Published], records: Sequence[Record], metrics: Mapping[str, Metric], images: Images = no_images
) -> list[list[str]]:
    """Make a line of `HEADS` for each published number and each protocol that measured it here; — without any."""
    lines = []
    for row in rows:
        metric = metrics.get(row.metric)
        title = head(metric) if metric else row.metric
        published = f"{row.value:g}" if metric is None else shown(metric, row.value)
        if not row.forget:
            lines += _lines_of_grid(row, records, metrics, images)
            continue
        groups = _by_protocol(
            record
            for record in records
            if (record.task, record.forget) == (row.task, row.forget) and is_of(record, row.method)
        )
        readings = {
            protocol: [reading(record, row.metric, row.source) for record in group]
            for protocol, group in groups.items()
        }
        if metric is None and any(value is not None for values in readings.values() for value in values):
            for protocol, values in readings.items():
                if read := [value for value in values if value is not None]:
                    mean = sum(read) / len(read)
                    lines.append([row.method, title, published, f"{mean:.4g}", protocol, *_origin(row)])
            continue
        found: dict[str, Estimate | None] = {
            protocol: estimate(group, row.metric, images)
            for protocol, group in groups.items()
            if metric is not None and any(row.metric in record.scores for record in group)
        }
        for protocol, own in (found or {"—": None}).items():
            measured = "—" if own is None or metric is None else shown(metric, own.value, own.sd)
            lines.append([row.method, title, published, measured, protocol, *_origin(row)])
    return lines


def _lines_of_grid(
    row: Published, records: Sequence[Record], metrics: Mapping[str, Metric], images: Images
) -> list[list[str]]:
    """The lines of a published mean over concepts: one for each protocol that measured some of them alike."""
    groups: dict[Identity, list[Record]] = {}
    for record in records:
        if record.task == row.task and is_of(record, row.method):
            groups.setdefault(record_identity(record)._replace(forget=""), []).append(record)
    lines = [
        [row.method, row.metric, f"{row.value:g}", measured, group[0].protocol.name, *_origin(row)]
        for group in groups.values()
        if (measured := reading_of_grid(row.metric, group, metrics, images))
    ]
    return lines or [[row.method, row.metric, f"{row.value:g}", "—", "—", *_origin(row)]]


def _origin(row: Published) -> tuple[str, str, str]:
    """The last cells of a line: where a number is from and what was done there."""
    return row.status, row.source, row.protocol


def _by_protocol(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Group poolable runs by the protocol's name, with what distinguishes them where that is not enough."""
    groups = group_records(records)
    names = unique_labels(groups)
    protocols = [group[0].protocol.name for group in groups.values()]
    found: dict[str, list[Record]] = {}
    for (one, group), protocol in zip(groups.items(), protocols, strict=True):
        name = protocol if protocols.count(protocol) == 1 else f"{protocol}: {names[one]}"
        found[name if name not in found else f"{name}, protocol {group[0].protocol.hash[:8]}"] = group
    return found


class PublishedBlock(NamedTuple):
    """Published numbers of one task and concept, as lines of `HEADS`."""

    task: str
    forget: str
    lines: list[list[str]]
    notes: list[str]


def blocks(
    rows: Sequence[Published], records: Sequence[Record], metrics: Mapping[str, Metric], images: Images = no_images
) -> list[PublishedBlock]:
    """Group published numbers by task and concept, each next to what was measured here."""
    made = []
    for task, forget in dict.fromkeys((row.task, row.forget) for row in rows):
        some = [row for row in rows if (row.task, row.forget) == (task, forget)]
        notes = list(dict.fromkeys(row.note for row in some if row.note))
        made.append(PublishedBlock(task, forget, compare_published(some, records, metrics, images), notes))
    return made


def published_sheets(made: Sequence[PublishedBlock]) -> list[Sheet]:
    """Make one table per block; below it the numbered sources, each with what was done there."""
    tables = []
    for block in made:
        origins = list(dict.fromkeys((line[-2], line[-1]) for line in block.lines))
        lines = [[*line[:-2], f"[{origins.index((line[-2], line[-1])) + 1}]"] for line in block.lines]
        title = f"{block.task}, forget {block.forget}: published and measured"
        below = [f"[{number}] {source}: {protocol}" for number, (source, protocol) in enumerate(origins, 1)]
        note = "\n".join([*below, *(f"note: {note}" for note in block.notes)])
        tables.append(Sheet(title, HEADS[:-1], [("", lines)], note))
    return tables


def published_frame(made: Sequence[PublishedBlock]) -> pd.DataFrame:
    """The same as rows: task, forget, then `HEADS`, as shown."""
    import pandas as pd

    lines = [[block.task, block.forget, *line] for block in made for line in block.lines]
    return pd.DataFrame(lines, columns=["task", "forget", *HEADS])


def is_of(record: Record, method: str) -> bool:
    """Whether a record is of the method that a table names, with only the setting in brackets."""
    name, setting = re.fullmatch(r"([^\[]+)(?:\[(.+)\])?", method).groups()  # type: ignore[union-attr]
    given = set(map(str, record.method.overrides.values())) - {setting}
    return record.method.name == name and not given and setting in {None, *map(str, record.method.settings.values())}
