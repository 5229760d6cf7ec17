"""Prompt files and reference photographs of the Stable Diffusion tasks: I2P, COCO."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unlearnbench.data.image_files import (
    Undecodable,
    central_square,
    decode_image,
    images_in_zip,
    opened_zip,
    read_from_zip,
)
from unlearnbench.data.prompt_files import PromptRow, as_number, read_prompts, require_column
from unlearnbench.data.published_files import published_file
from unlearnbench.data.sources import Source, check_given, fetch_command, missing_source, source_path
from unlearnbench.errors import Damaged, UserError
from unlearnbench.hashing import digest, seed_of

I2P = published_file("unsafe-prompts4703.csv").source
UNLEARNDIFFATK = published_file("nudity.csv").source
CAPTIONS = published_file("coco_30k.csv").source
I2P_HUB = Source(
    name="i2p_benchmark.csv",
    url="https://huggingface.co/datasets/AIML-TUDA/i2p/resolve/main/i2p_benchmark.csv",
    licence="mit",
    login=False,
    use="prompts, I2P",
)
"""I2P as the hub has it, with other names of columns. A data folder that has this file needs no other copy."""
PHOTOGRAPHS = Source(
    name="val2014.zip",
    # images.cocodataset.org has no certificate for its own name; its bucket is reached through the store's
    url="https://s3.amazonaws.com/images.cocodataset.org/zips/val2014.zip",
    licence="of each photograph's own",
    login=False,
    use="reference of FID",
)
Subset = Literal["all", "sexual", "nudity", "unlearndiffatk"]
SIZES: dict[str, int] = {"all": 4703, "sexual": 931, "nudity": 95, "unlearndiffatk": 142}
"""Rows of I2P's subsets: all; the category sexual; nudity_percentage over 50 (Ring-A-Bell's); UnlearnDiffAtk's."""
EmptyPrompts = Literal["nan", "kept", "left out"]
"""What is drawn for a row without a prompt: the text "nan", as the published code does; an empty prompt; nothing.

I2P has such a row, 2261 of 4,703, in erasing's copy. The published scripts read it with pandas, which makes it NaN, and
draw `str(row.prompt)`: rohitgandikota/erasing@25613d2, evalscripts/generate-images.py:64,70;
OPTML-Group/Diffusion-MU-Attack@5a3e5d3, src/execs/generate_dataset.py:66,73; Shilin-LU/MACE@057e7a6,
src/sample_images_from_csv.py:16,46. On the hub the row's prompt is a word, which is drawn as it is.
"""


def prompts(path: Path, subset: Subset = "all") -> list[PromptRow]:
    """Read the rows of a prompt file, or of a subset of I2P, in order; see `read_prompts`."""
    rows = read_prompts(path)
    if subset == "sexual":
        require_column(path, rows, "categories")
        return [row for row in rows if "sexual" in row.cells["categories"]]
    if subset == "nudity":
        require_column(path, rows, "nudity_percentage")
        return [row for row in rows if (as_number(row.cells["nudity_percentage"]) or 0.0) > 50]
    return rows


def drawn(rows: Sequence[PromptRow], empty: EmptyPrompts) -> list[PromptRow]:
    """The rows to draw, with empty prompts as asked for. Only a cell without any character becomes "nan"."""
    if empty == "left out":
        return [row for row in rows if not row.is_empty]
    return [row._replace(prompt="nan") if empty == "nan" and not row.prompt else row for row in rows]


def prompt_file(folder: Path, task: str, source: Source, *others: Source) -> Path:
    """Return the path of a prompt file in a data folder; see `check_given`.

    Args:
        folder: The data folder.
        task: The task's name, for the command that fetches the file.
        source: The file that `fetch` brings.
        others: Other copies of it. One that is in the folder is read instead.
    """
    for copy in (*others, source):
        if source_path(folder, copy).is_file():
            return check_given(folder, copy)
    raise missing_source(folder, source, *others, task=task)


def photographs(path: Path, size: int, count: int, skip: int = 0, batch: int = 50, task: str = "") -> Iterator[Tensor]:
    """Read `count` photographs of a zip after skipping `skip`, in a fixed random order; uint8 (n, 3, size, size).

    Each is cropped to its central square and resized (Lanczos). If there are too few, all that are left are returned.
    Raises `Damaged` for one that cannot be read: leaving it out would change the reference. `task` is the task whose
    files `fetch` brings, for the message where the zip is missing.
    """
    with _opened(path, task) as archive:
        chosen = _shuffled(tuple(images_in_zip(archive)))[skip : skip + count]
        for start in range(0, len(chosen), batch):
            rows = [_square(archive, name, size) for name in chosen[start : start + batch]]
            yield torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()


def count_photographs(path: Path, task: str = "") -> int:
    """Count the photographs of a zip."""
    with _opened(path, task) as archive:
        return len(images_in_zip(archive))


@contextmanager
def _opened(path: Path, task: str = "") -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise UserError(f"{path.name} is not in {path.parent}: fetch it with `{fetch_command(task)}`, or give --data")
    with opened_zip(path, "fetch it again") as archive:
        yield archive


def identity_of(path: Path) -> str:
    """Hash the names, sizes and checksums that a zip lists: fast even for gigabytes."""
    with _opened(path) as archive:
        return digest(sorted([each.filename, each.file_size, each.CRC] for each in archive.infolist()))


@lru_cache(maxsize=2)
def _shuffled(names: tuple[str, ...]) -> list[str]:
    generator = torch.Generator().manual_seed(seed_of("photographs") >> 1)
    return [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]


def _square(archive: zipfile.ZipFile, name: str, size: int) -> np.ndarray:
    try:
        picture = decode_image(read_from_zip(archive, name)).image
    except Undecodable as error:
        raise Damaged(
            f"{archive.filename}, {name}, cannot be read ({error}): fetch the zip again, or replace that photograph"
        ) from error
    return central_square(picture, size)
