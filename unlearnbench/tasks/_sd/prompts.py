"""Prompt files and reference photographs of the Stable Diffusion tasks: I2P, COCO."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
from unlearnbench.data.sources import Source
from unlearnbench.errors import Damaged, UserError, one_line
from unlearnbench.hashing import digest, seed_of

GITHUB = "https://raw.githubusercontent.com/"
I2P = Source(
    name="i2p_benchmark.csv",
    url="https://huggingface.co/datasets/AIML-TUDA/i2p/resolve/main/i2p_benchmark.csv",
    licence="mit",
    login=False,
    use="prompts, I2P",
)
UNLEARNDIFFATK = Source(
    name="nudity.csv",
    url=f"{GITHUB}OPTML-Group/Diffusion-MU-Attack/0eea64d54c96b9c7a7cdf21682eac5bb32d9467b/prompts/nudity.csv",
    licence="mit",
    login=False,
    use="142 prompts of I2P",
)
CAPTIONS = Source(
    name="coco_30k.csv",
    url=f"{GITHUB}rohitgandikota/erasing/3d10dd1b2df4ec4e74edcadac4200c7401585138/data/coco_30k.csv",
    licence="cc-by-4.0 (COCO)",
    login=False,
    use="retain prompts, COCO",
)
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
SEEDS, SCALES = ("evaluation_seed", "sd_seed"), ("evaluation_guidance", "sd_guidance_scale")
"""Names of a column in the papers' files and on the hub."""


class PromptRow(NamedTuple):
    """One row of a prompt file."""

    prompt: str
    seed: int
    guidance: float
    """Guidance scale; 0 if the file has none."""


def prompts(path: Path, subset: Subset = "all") -> list[PromptRow]:
    """Read the rows of a prompt file in order. Errors name the row that lacks a prompt or a seed."""
    table = _table(path)
    if subset == "sexual":
        table = table[_column(path, table, ("categories",)).astype(str).str.contains("sexual")]
    elif subset == "nudity":
        table = table[_column(path, table, ("nudity_percentage",)).map(_number).fillna(0.0) > 50]
    texts, seeds = _column(path, table, ("prompt",)), _column(path, table, SEEDS)
    scales = next((table[name] for name in SCALES if name in table), None)
    rows = []
    for number in table.index:
        text, seed = texts[number], _number(seeds[number])
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{path}, row {number + 1}, has no prompt: fetch the file again")
        if seed is None or seed != int(seed) or not 0 <= seed < 2**63:
            raise UserError(
                f"{path}, row {number + 1}, has no seed (its {seeds.name} is {seeds[number]}): images could not be "
                "paired; fetch the file again"
            )
        scale = None if scales is None else _number(scales[number])
        rows.append(PromptRow(text, int(seed), scale or 0.0))
    return rows


def _table(path: Path) -> Any:
    import pandas as pd

    if not path.is_file():
        raise UserError(f"{path.name} is not in {path.parent}: fetch it with `unlearnbench fetch`, or give --data")
    try:
        return pd.read_csv(path)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{path} is no table of prompts ({one_line(error)[:120]}): fetch it again") from error


def _column(path: Path, table: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        if name in table:
            return table[name]
    raise UserError(f"{path} has the columns {', '.join(map(str, table.columns))}: {' or '.join(names)} is needed")


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def photographs(path: Path, size: int, count: int, skip: int = 0, batch: int = 50) -> Iterator[Tensor]:
    """Read `count` photographs of a zip after skipping `skip`, in a fixed random order; uint8 (n, 3, size, size).

    Each is cropped to its central square and resized (Lanczos). If there are too few, all that are left are returned.
    Raises `Damaged` for one that cannot be read: leaving it out would change the reference.
    """
    with _opened(path) as archive:
        chosen = _shuffled(tuple(images_in_zip(archive)))[skip : skip + count]
        for start in range(0, len(chosen), batch):
            rows = [_square(archive, name, size) for name in chosen[start : start + batch]]
            yield torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()


def count_photographs(path: Path) -> int:
    """Count the photographs of a zip."""
    with _opened(path) as archive:
        return len(images_in_zip(archive))


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise UserError(f"{path.name} is not in {path.parent}: fetch it with `unlearnbench fetch`, or give --data")
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
        raise Damaged(f"{archive.filename}, {name}, cannot be read ({error}): fetch it again") from error
    return central_square(picture, size)
