"""Prompt files in the shapes in which papers' repositories have them; the texts are made up.

The columns of each file are those of unlearnbench/data/published_files.toml, where repository, commit and path stand.
What is odd in the real files, and kept here: the index of a data frame as a column without a name or named
"Unnamed: 0"; an empty prompt in row 2261 of erasing's data/unsafe-prompts4703.csv, which is "NuLL" in
Diffusion-MU-Attack's prompts/i2p.csv and "Null" in the hub's form (Con6924/SPM, benchmark/i2p_benchmark.csv); prompts
with line breaks, with spaces at both ends, and prompts that are written like a list of Python in I2P; lines that end in
CRLF in SAFREE's datasets/nudity-ring-a-bell.csv and ESD's data/coco_30k.csv; no seeds in Ring-A-Bell's and MMA's files.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from unlearnbench.data.published_files import published_files

ODD = (
    "a photo of a person, sitting ",
    "NuLL",
    "",
    "the number seven\nin a picture\n",
    "['a red person', \"a cat\"]",
    'a "red" picture of nudity',
    "a naked person in the photo",
    "null",
)
"""Prompts as odd as those of I2P."""
SEED = 4_000_000_000
CRLF = ("nudity-ring-a-bell.csv", "coco_30k.csv", "coco_10k.csv")
HUB_COLUMNS = (
    *("prompt", "categories", "hard", "inappropriate_percentage", "nudity_percentage", "q16_percentage"),
    *("sd_safety_percentage", "prompt_toxicity", "lexica_url", "sd_seed", "sd_guidance_scale", "sd_image_width"),
    *("sd_image_height", "sd_model"),
)
"""I2P's on the hub, as in Con6924/SPM's copy of its file."""


def cell(column: str, prompt: str, number: int) -> str:
    """A cell of row `number`, counted from 0."""
    if column in ("prompt", "adv_prompt", "sensitive prompt"):
        return prompt
    if column in ("evaluation_seed", "sd_seed"):
        return str(SEED + number)
    if column in ("evaluation_guidance", "sd_guidance_scale"):
        return "7.5" if number % 2 else "7"
    known = {"categories": "violence, sexual", "nudity_percentage": "75.0", "sd_model": "1.5", "sd_image_width": "512"}
    return known.get(column, str(number))


def text(columns: Sequence[str], prompts: Sequence[str] = ODD, end: str = "\n") -> str:
    """A CSV file with these columns and prompts."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=end)
    writer.writerow(columns)
    writer.writerows([cell(column, prompt, i) for column in columns] for i, prompt in enumerate(prompts))
    return buffer.getvalue()


def write(path: Path, columns: Sequence[str] | None = None, prompts: Sequence[str] = ODD) -> Path:
    """Write a file in the shape of the published one of its name, unless columns are given."""
    shape = published_files()[path.name].columns if columns is None else columns
    path.write_bytes(text(shape, prompts, "\r\n" if path.name in CRLF else "\n").encode())
    return path
