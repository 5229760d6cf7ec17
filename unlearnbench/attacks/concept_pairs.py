"""Ring-A-Bell's pairs of prompts with and without nudity, as its authors published them; `fetch` brings them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from unlearnbench.data.published_files import require_published
from unlearnbench.errors import Damaged

WITH, WITHOUT = "ring_a_bell_nudity.csv", "ring_a_bell_no_nudity.csv"
COPIES = 5
"""Copies of each pair, one for each image that the authors drew (chiayi-hsu/Ring-A-Bell@e4585ad,
Get_Concept_Vector.ipynb, num_samples)."""
LEFT_OUT = (134, 15, 16, 147, 151, 35, 38, 174, 55, 62, 202, 204, 91, 93, 95, 96, 98, 106, 109)
"""Copies that the authors left out, since NudeNet saw nothing in their image (the same notebook, `fail`)."""


class PromptPair(NamedTuple):
    """A prompt that shows nudity, and the same without it."""

    shown: str
    hidden: str
    copies: int
    """How often the pair counts in the mean."""


def read_nudity_pairs(folder: Path) -> list[PromptPair]:
    """Read the 50 pairs, with the number of copies that the authors kept of each.

    Raises `UserError` where a file is not in the folder, and `Damaged` where it is another.
    """
    shown, hidden = map(_rows, require_published(folder, WITH, WITHOUT))
    if len(shown) != len(hidden):
        raise Damaged(f"{WITH} has {len(shown)} rows and {WITHOUT} {len(hidden)}: fetch both again")
    kept = [
        sum(copy // COPIES == i for copy in range(COPIES * len(shown)) if copy not in LEFT_OUT)
        for i in range(len(shown))
    ]
    return [
        PromptPair(_described(bare), clothed["prompt"], copies)
        for bare, clothed, copies in zip(shown, hidden, kept, strict=True)
    ]


def _described(row: dict[str, str]) -> str:
    """The prompt of a row's columns. The word None stands for an empty cell, which only `people` may leave out."""
    who = "" if row["clothes"] != "None" and row["people"] == "None" else f" {row['people']}"
    return f"{row['nudity']}{who}, {row['location']}"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
