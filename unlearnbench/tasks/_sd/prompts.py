"""Prompt files and reference photographs of the Stable Diffusion tasks: I2P, COCO."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unlearnbench.data.prompt_files import PromptRow, as_number, read_prompts, require_column
from unlearnbench.data.published_files import published_file
from unlearnbench.data.sources import Source, check_given, missing_source, source_path
from unlearnbench.errors import Damaged, UserError, one_line
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
    url="http://images.cocodataset.org/zips/val2014.zip",
    licence="of each photograph's own",
    login=False,
    use="reference of FID",
)
Subset = Literal["all", "sexual", "nudity", "unlearndiffatk"]
SIZES: dict[str, int] = {"all": 4703, "sexual": 931, "nudity": 95, "unlearndiffatk": 142}
"""Rows of I2P's subsets: all; the category sexual; nudity_percentage over 50 (Ring-A-Bell's); UnlearnDiffAtk's."""
BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError)
"""Errors raised by a zip that is damaged, encrypted or of an unknown kind."""
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


def photographs(path: Path, size: int, count: int, skip: int = 0, batch: int = 50) -> Iterator[Tensor]:
    """Read `count` photographs of a zip after skipping `skip`, in a fixed random order; uint8 (n, 3, size, size).

    Each is cropped to its central square and resized (Lanczos). If there are too few, all that are left are returned.
    """
    with _opened(path) as archive:
        chosen = _shuffled(tuple(_pictures(archive)))[skip : skip + count]
        for start in range(0, len(chosen), batch):
            rows = [_square(archive, name, size) for name in chosen[start : start + batch]]
            yield torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()


def count_photographs(path: Path) -> int:
    """Count the photographs of a zip."""
    with _opened(path) as archive:
        return len(_pictures(archive))


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise UserError(f"{path.name} is not in {path.parent}: fetch it with `unlearnbench fetch`, or give --data")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except BROKEN as error:
        raise Damaged(f"{path} cannot be read ({one_line(error)[:120]}): fetch it again") from error


def identity_of(path: Path) -> str:
    """Hash the names, sizes and checksums that a zip lists: fast even for gigabytes."""
    with _opened(path) as archive:
        return digest(sorted([each.filename, each.file_size, each.CRC] for each in archive.infolist()))


def _pictures(archive: zipfile.ZipFile) -> list[str]:
    return sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".png")))


@lru_cache(maxsize=2)
def _shuffled(names: tuple[str, ...]) -> list[str]:
    generator = torch.Generator().manual_seed(seed_of("photographs") >> 1)
    return [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]


def _square(archive: zipfile.ZipFile, name: str, size: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(archive.read(name))) as opened:
            picture = opened.convert("RGB")
    except (*BROKEN, Image.DecompressionBombError) as error:
        why = one_line(error)[:120]
        raise Damaged(f"{archive.filename}, {name}, cannot be read ({why}): fetch it again") from error
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
