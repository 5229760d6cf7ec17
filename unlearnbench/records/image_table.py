"""Per-image values, stored next to a record as Parquet."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearnbench.errors import Damaged
from unlearnbench.hashing import file_hash
from unlearnbench.judges import Verdict
from unlearnbench.metric import Metric, Score
from unlearnbench.records.schema import Record
from unlearnbench.storage.lazy_arrays import Table
from unlearnbench.task import Plan

if TYPE_CHECKING:
    import pandas as pd

ROUNDING = 1e-9
"""Allowed between a score and the mean of its column."""
LARGEST = 16 * 2**20
"""Largest size of a file in bytes."""
UNPACKED = 256 * 2**20
"""Largest size of the columns in bytes once they are unpacked, according to the file."""
MOST_ROWS = 1_000_000
MOST_FEATURES = 1_000
"""Forget images whose features are kept: as many as KID compares."""
FEATURES = np.dtype("<f2")
"""How the judge's features of an image are kept: half precision, little-endian, one after the other."""
KINDS = {
    "group": "text",
    "concept": "text",
    "prompt": "text",
    "label": "integers",
    "seed": "integers",
    "other": "integers",
    "guidance": "numbers",
    "judged": "integers",
    "refused": "truth values",
    "p_asked": "numbers",
    "features": "bytes",
}
"""Contents of the columns; every other column belongs to a metric and holds numbers."""


def build_image_table(
    plan: list[Plan],
    verdict: Verdict,
    metrics: Mapping[str, Metric],
    scores: Mapping[str, Score],
    prompts: bool = True,
    features: Table | None = None,
) -> pd.DataFrame:
    """Make a table with one row per image: its plan, judged, refused, p_asked, and a column for each per-image metric.

    `features` (F, D) are those of the forget images in the plan's order, of which the first `MOST_FEATURES` are kept.

    Null means missing, or an image of a group that the metric does not use. Prompt and other label are left out where
    the task has none; prompts also if `prompts` is False.
    """
    import pandas as pd
    import torch

    missing = verdict.missing.numpy()
    plan = plan if prompts else [item._replace(prompt="") for item in plan]
    asked = [item.label for item in plan]
    frame = pd.DataFrame(plan, columns=list(Plan._fields)).astype({"seed": "uint64"})
    frame = frame.drop(columns=[name for name, empty in Plan._field_defaults.items() if (frame[name] == empty).all()])
    frame["judged"] = pd.Series(verdict.closed.numpy(), dtype="Int16").mask(missing)
    frame["refused"] = pd.Series(verdict.refused.numpy(), dtype="boolean").mask(missing)
    about = torch.tensor(asked, dtype=torch.long)
    probability = verdict.probabilities[range(len(asked)), about.clamp(min=0)] if asked else verdict.probabilities[:, 0]
    frame["p_asked"] = pd.Series(probability.numpy(), dtype="Float32").mask(missing | (about < 0).numpy())
    for name, score in scores.items():
        if score.per_image is not None and metrics[name].side is not None:
            column = np.full(len(plan), np.nan)
            column[(frame.group == metrics[name].side).to_numpy()] = score.per_image
            frame[name] = pd.Series(column, dtype="Float64").mask(np.isnan(column))
    if features is not None and len(features):
        kept = features[:MOST_FEATURES].numpy().astype(FEATURES)
        cells = dict(zip(np.flatnonzero(frame.group == "forget").tolist(), map(bytes, kept), strict=False))
        frame["features"] = [cells.get(place) for place in range(len(frame))]
    return frame


def read_features(frame: pd.DataFrame) -> np.ndarray | None:
    """Features (F, D) of the table's forget images, float32; None where it has none.

    Raises `Damaged` where they are not of one length.
    """
    if "features" not in frame:
        return None
    cells = [cell for cell in frame["features"] if isinstance(cell, bytes)]
    if not cells or len({len(cell) for cell in cells}) > 1 or len(cells[0]) % FEATURES.itemsize:
        raise Damaged("the features in a table of images are not of one length: run it again")
    return np.stack([np.frombuffer(cell, FEATURES) for cell in cells]).astype(np.float32)


def as_parquet(
    plan: list[Plan],
    verdict: Verdict,
    metrics: Mapping[str, Metric],
    scores: Mapping[str, Score],
    prompts: bool = True,
    features: Table | None = None,
) -> tuple[bytes, str]:
    """The table as a file's content with its SHA-256, which the record stores."""
    buffer = io.BytesIO()
    build_image_table(plan, verdict, metrics, scores, prompts, features).to_parquet(buffer, index=False)
    return buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest()


def read_images(record: Record, results: Path) -> pd.DataFrame | None:
    """Read a record's table and check it against its hash; None where it has none."""
    return read_beside(record, record.path(results))


def read_content(record: Record, content: bytes) -> pd.DataFrame:
    """Read a record's table from a file's content, which must have the hash that the record names."""
    import pandas as pd

    if hashlib.sha256(content).hexdigest() != record.images:
        raise Damaged(f"the per-image values sent with {record.place()} are not those of its record: send it again")
    _require_plain(io.BytesIO(content), f"the table of {record.place()}", set(record.scores))
    return pd.read_parquet(io.BytesIO(content), use_threads=False)


def read_beside(record: Record, path: Path) -> pd.DataFrame | None:
    """Like `read_images`, for a record that was read from this path, wherever that is."""
    import pandas as pd

    path = path.with_suffix(".parquet")
    if record.images is None or not path.is_file():
        return None
    if path.stat().st_size > LARGEST:
        raise Damaged(f"{path} has {path.stat().st_size:,} bytes, at most {LARGEST:,} are read: run it again")
    if file_hash(path) != record.images:
        raise Damaged(
            f"{path} was changed after its record was written (its hash does not fit): "
            "restore it, or delete the record and run its command again"
        )
    try:
        _require_plain(path, str(path), set(record.scores))
        return pd.read_parquet(path, use_threads=False)  # small files: threads take longer to begin
    except (ValueError, OSError) as error:
        raise Damaged(f"{path} is no Parquet file: delete the record and run its command again") from error


def _require_plain(file_or_path: Path | io.BytesIO, path: str, metrics: set[str]) -> None:
    """Refuse a table by its footer, before unpacking values, if it is too large or has unexpected columns."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file_or_path) as file:
        about, schema = file.metadata, file.schema_arrow
        unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    wrong = None
    if about.num_rows > MOST_ROWS or unpacked > UNPACKED:
        wrong = f"has {about.num_rows:,} rows of {unpacked:,} bytes, at most {MOST_ROWS:,} of {UNPACKED:,} are read"
    elif len(set(schema.names)) < len(schema.names):
        wrong = "has two columns of one name"
    else:
        for column in schema:
            expected = KINDS.get(column.name, "numbers")
            if column.name not in KINDS and column.name not in metrics:
                wrong = f"has a column {column.name!r}, which is no metric of its record"
            elif _kind(column.type) != expected:
                wrong = f"has {column.type} in the column {column.name!r} in place of {expected}"
    if wrong:
        raise Damaged(f"{path} {wrong}: delete the record and run its command again")


def _kind(column: Any) -> str | None:
    from pyarrow import types

    tests = {
        "text": (types.is_string, types.is_large_string),
        "integers": (types.is_integer,),
        "numbers": (types.is_floating,),
        "truth values": (types.is_boolean,),
        "bytes": (types.is_binary, types.is_large_binary),
    }
    return next((kind for kind, known in tests.items() if any(test(column) for test in known)), None)


def unreproduced(record: Record, images: pd.DataFrame) -> dict[str, float | None]:
    """Find scores that are not the mean of their column; returns that mean by metric."""
    means = {name: mean_of(images[name]) for name in record.scores if name in images}
    return {name: mean for name, mean in means.items() if not _equal(mean, record.scores[name].value)}


def mean_of(column: pd.Series) -> float | None:
    """Mean of the values that are not missing."""
    kept = column.dropna().astype(float)
    return float(kept.mean()) if len(kept) else None


def _equal(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else abs(a - b) <= ROUNDING


def reader(results: Path) -> Callable[[Record], pd.DataFrame | None]:
    """Return a function like `read_images` for one results folder that reads and checks each file once."""
    known: dict[Path, pd.DataFrame | None] = {}

    def read(record: Record) -> pd.DataFrame | None:
        path = record.path(results)
        if path not in known:
            known[path] = read_images(record, results)
        return known[path]

    return read
