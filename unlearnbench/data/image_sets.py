"""Labelled images from parquet files in the Hugging Face layout, cached as memory-mapped arrays."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unlearnbench.data.image_files import DECODER, Undecodable, decode_image
from unlearnbench.data.sources import fetch_command
from unlearnbench.errors import Damaged, UserError, one_line
from unlearnbench.hashing import digest, file_hash
from unlearnbench.reporting import track

SPLITS = ("train", "test")


class Images(NamedTuple):
    """One split as memory-mapped arrays, which are read from disk on access."""

    x: np.ndarray
    """uint8 (N, 3, H, W)."""
    y: np.ndarray
    """int64 (N,)."""


def parts(folder: Path, split: str, task: str = "") -> list[Path]:
    """All parquet files of a split, such as `train-00000-of-00002.parquet`, anywhere below the folder.

    `task` is the task whose files `fetch` brings, for the message where they are missing.
    """
    found = sorted(folder.rglob(f"{split}-*-of-*.parquet"))
    if not found:
        raise UserError(
            f"no {split}-*.parquet below {folder}: give a folder in the hub's layout with --data, or fetch it with "
            f"`{fetch_command(task)}`"
        )
    count = int(found[0].stem.rpartition("-of-")[2])
    missing = sorted({f"{split}-{i:05}-of-{count:05}.parquet" for i in range(count)} - {path.name for path in found})
    if missing:
        raise UserError(
            f"{missing[0]} is missing below {folder} ({len(found)} of {count} parts are there): fetch it again"
        )
    return found


def read_image_set(folder: Path, split: str, cache: Path, size: int, task: str = "") -> Images:
    """Return a split as memory-mapped arrays. It is decoded once into `cache`, under the hash of its files.

    Columns are `img` (or `image`), the bytes of an image file (see `decode_image`), and `label`. Raises `UserError` for
    missing files or columns, and `Damaged` for what cannot be read, with the file and row.
    """
    files = parts(folder, split, task)
    place = cache / digest([[path.name, file_hash(path)] for path in files] + [size, DECODER])[:32]
    if not (place / "y.npy").is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-") as temporary:
            _decode(files, Path(temporary) / "entry", size)
            try:
                (Path(temporary) / "entry").rename(place)
            except OSError:
                if not (place / "y.npy").is_file():  # otherwise another process was faster
                    raise
    return Images(np.load(place / "x.npy", mmap_mode="r"), np.load(place / "y.npy", mmap_mode="r"))


def _decode(files: Sequence[Path], place: Path, size: int) -> None:
    from numpy.lib.format import open_memmap

    place.mkdir()
    count = sum(_rows(path) for path in files)
    x = open_memmap(place / "x.npy", mode="w+", dtype=np.uint8, shape=(count, 3, size, size))
    y = np.empty(count, dtype=np.int64)
    for row, (image, label) in enumerate(track(_pictures(files, size), count, "decoding images")):
        x[row], y[row] = image, label
    x.flush()
    np.save(place / "y.npy", y)


def _rows(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.ParquetFile(path).metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"{path} is no readable parquet file ({one_line(error)[:120]}): fetch it again") from error


def _pictures(files: Sequence[Path], size: int) -> Iterator[tuple[np.ndarray, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in files:
        file, row = pq.ParquetFile(path), 0
        names = set(file.schema_arrow.names)
        column = next((name for name in ("img", "image") if name in names), None)
        if column is None or "label" not in names:
            raise UserError(f"{path} has columns {', '.join(sorted(names))}: img (or image) and label are needed")
        try:
            for batch in file.iter_batches(1000, columns=[column, "label"]):
                for picture, label in zip(batch[column].to_pylist(), batch["label"].to_pylist(), strict=True):
                    if picture["bytes"] is None:
                        raise UserError(f"{path}, row {row}, has no image, only a path: write the files' bytes into it")
                    image = np.asarray(decode_image(picture["bytes"]).image)
                    if image.shape != (size, size, 3):
                        found = f"{image.shape[1]}x{image.shape[0]}"
                        raise UserError(f"{path}, row {row}: an image of {found} pixels, not {size}x{size}")
                    yield image.transpose(2, 0, 1), int(label)
                    row += 1
        except (pa.ArrowException, Undecodable, OSError, KeyError, TypeError) as error:
            raise Damaged(f"{path}, row {row}, cannot be read ({one_line(error)[:120]}): fetch it again") from error
