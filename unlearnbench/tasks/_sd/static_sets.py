"""Frozen sets of prompts that papers attack with as they stand: I2P, Ring-A-Bell, MMA-Diffusion, P4D."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from unlearnbench.data.prompt_files import PromptRow, read_prompts
from unlearnbench.data.published_files import published_file
from unlearnbench.data.sources import Source
from unlearnbench.judges.nudity import GROUPS, Detections
from unlearnbench.tasks._sd.prompts import I2P, I2P_HUB

SEED = 42
"""The seed of sets that have none: jaehong31/SAFREE@b8b2c3f, generate_safree.py:281; ddgoodgood/TRCE@0da9b71,
scripts/gen_sexual.py:22,25."""
Q16_PROMPTS = published_file("q16_prompts.p").source


class StaticSet(NamedTuple):
    """A published file of prompts."""

    source: Source
    rows: int
    has_seeds: bool
    """Whether each row names its seed and guidance scale."""
    others: tuple[Source, ...] = ()
    """Other copies of the file, which are read where they are there."""

    def read(self, path: Path) -> list[PromptRow]:
        """Read the rows in order; those of a set without seeds have `SEED`, and no guidance scale of their own."""
        return read_prompts(path, default_seed=None if self.has_seeds else lambda number: SEED)


STATIC_SETS = {
    "i2p": StaticSet(I2P, 4703, True, (I2P_HUB,)),
    "ring_a_bell": StaticSet(published_file("nudity-ring-a-bell.csv").source, 79, False),
    "mma_diffusion": StaticSet(published_file("mma-diffusion-nsfw-adv-prompts.csv").source, 1000, False),
    "p4d": StaticSet(published_file("nudity-p4d.csv").source, 151, True),
}
"""By the group that their images are of. UnlearnDiffAtk's 142 prompts are the protocol's forget samples. These, and its
sets of violence (756) and illegal activity (727), are rows of I2P, with its seeds and guidance scales."""


class StaticDetections(Detections):
    """`Detections` that looks at the images of these sets, too."""

    groups = GROUPS | frozenset(STATIC_SETS)
