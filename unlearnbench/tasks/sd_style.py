"""Erase an artist's style from Stable Diffusion v1.4, judged by CLIP (never run on its real weights here)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from unlearnbench.data.concepts import Concept
from unlearnbench.data.prompt_files import PromptRow, read_prompts, require_column
from unlearnbench.data.published_files import published_file, require_published
from unlearnbench.data.sources import Source
from unlearnbench.diffusion.schedulers import Repeating
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest
from unlearnbench.judges import Judge
from unlearnbench.judges.clip import ClipJudge, ErasedClipScore
from unlearnbench.judges.lpips import ALEXNET
from unlearnbench.judges.scorer import Witness
from unlearnbench.task import Plan
from unlearnbench.tasks._sd.base import CLIP_FILES, CLIPS, SD14, PictureProtocol, smoke
from unlearnbench.tasks._sd.classes import SAMPLER, Pictured
from unlearnbench.tasks._sd.words import ARTISTS, ESD_ARTISTS, ESD_NICHE_ARTISTS, NEAR, STYLE_HELD_OUT, STYLE_TEXTS
from unlearnbench.tasks._text import other_counts

BIG, NICHE, HUNDRED = "big_artist_prompts.csv", "short_niche_art_prompts.csv", "art_100_concepts.csv"
TOGETHER = "100 artists"
"""The concept of MACE's protocol: the artists of its file's rows of `type` 0, erased together."""
PAINTER = "a painter"
LMS = Repeating(100, guidance=7.5, scheduler="lms")
"""As ESD's first scripts drew: OPTML-Group/AdvUnlearn@9d23124, eval-scripts/generate-images.py:9,66, which keeps them.
They drew ten images for each prompt; here it is the first."""


@dataclass(frozen=True)
class ArtistsProtocol(PictureProtocol):
    """A protocol on a published file of prompts with seeds, some for each of several artists."""

    file: str = BIG
    """Name of the published file, which has a column `artist`."""
    artists: tuple[str, ...] = ESD_ARTISTS
    """Whose prompts it has: one is erased, the others are retained. Empty: `TOGETHER` is erased, and the file says who
    that is."""


def _of_file(name: str, file: str, artists: tuple[str, ...]) -> ArtistsProtocol:
    counts = {**other_counts(0), "forget_images": 20, "retain_images": 80}
    return ArtistsProtocol(name, LMS, "clip-artists", features="pixels", **counts, chunk=8, file=file, artists=artists)


class SDStyle(Pictured):
    """Erase an artist, or MACE's hundred together; the substitute is "a painter"."""

    name = "sd-style"
    concepts = tuple(ARTISTS)
    concept_groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "esd-artists": ESD_ARTISTS,
        "esd-niche-artists": ESD_NICHE_ARTISTS,
    }
    texts, held_out = STYLE_TEXTS, STYLE_HELD_OUT
    catalogue: ClassVar[dict[str, Concept]] = {
        **{name: Concept((name,), (other,), PAINTER, NEAR[name]) for name, other in ARTISTS.items()},
        **{name: Concept((name,), (), PAINTER) for name in (*ESD_NICHE_ARTISTS, TOGETHER)},
    }
    protocols: ClassVar[dict[str, Any]] = {
        "default": PictureProtocol(
            "default",
            SAMPLER,
            "clip-artists",
            features="pixels",
            forget_images=240,
            retain_images=450,
            **{**other_counts(60), "direct_images": 0},
            chunk=8,
        ),
        "esd-artists": _of_file("esd-artists", BIG, ESD_ARTISTS),
        "esd-niche-artists": _of_file("esd-niche-artists", NICHE, ESD_NICHE_ARTISTS),
        "mace-cvpr24": ArtistsProtocol(
            "mace-cvpr24",
            Repeating(50, guidance=7.5),
            "clip-artists",
            features="pixels",
            **{**other_counts(0), "forget_images": 2500, "retain_images": 2500},
            chunk=8,
            file=HUNDRED,
            artists=(),
        ),
        "smoke": PictureProtocol(
            "smoke", judge="clip-artists", **{**smoke(), "retain_images": 9}, **{**other_counts(3), "direct_images": 0}
        ),
    }
    default_forget = "Van Gogh"
    sources: ClassVar[tuple[Source, ...]] = (
        *SD14,
        *CLIP_FILES,
        ALEXNET,
        *(published_file(name).source for name in (BIG, NICHE, HUNDRED)),
    )

    def __init__(self, forget: str, **settings: Any):
        super().__init__(forget, **settings)
        offered = _offered(self.protocol)
        for concept in self.erased:
            if concept.label not in offered:
                others = [name for name, one in self.protocols.items() if concept.label in _offered(one)]
                raise UserError(
                    f"protocol {self.protocol.name} has no prompts for {concept.label}: give --protocol "
                    f"{' or '.join(others)}, or erase {'one of ' * (len(offered) > 1)}{', '.join(offered)}"
                )
        if offered == (TOGETHER,):
            erased = dict.fromkeys(row.cells["artist"] for row in self.rows if row.cells["type"] == "0")
            self.erased = tuple(Concept((name,), (), PAINTER) for name in erased)

    @property
    def classes(self) -> tuple[str, ...]:
        """The protocol's artists."""
        offered = _offered(self.protocol)
        return tuple(dict.fromkeys(row.cells["artist"] for row in self.rows)) if offered == (TOGETHER,) else offered

    @cached_property
    def rows(self) -> list[PromptRow]:
        """The rows of the protocol's file; none where it has no file.

        Raises `UserError` for a file that is missing or lacks a column, and `Damaged` for another than the published.
        """
        if not isinstance(self.protocol, ArtistsProtocol):
            return []
        (path,) = require_published(self.folder, self.protocol.file)
        rows = read_prompts(path)
        for column in ("artist", *([] if self.protocol.artists else ["type"])):
            require_column(path, rows, column)
        return rows

    def data_identity(self) -> str | None:
        """Hash of the prompts and seeds of the protocol's file; None where it has no file."""
        return digest([[item.prompt, item.seed] for item in self.plan()]) if self.rows else None

    def plan(self) -> list[Plan]:
        """The file's prompts with their seeds, those of the erased artist first; without a file, the task's own."""
        if not isinstance(self.protocol, ArtistsProtocol):
            return super().plan()
        known, erased = self.labels(), {concept.label for concept in self.erased}
        items = [
            Plan(group, artist, known[artist], row.seed, row.prompt)
            for row in self.rows
            for artist in (row.cells["artist"],)
            for group in ("forget" if artist in erased else "retain",)
        ]
        return sorted(items, key=lambda item: item.group != "forget")

    def image_count(self) -> int:
        """Number of images in the plan."""
        p = self.protocol
        return p.forget_images + p.retain_images if isinstance(p, ArtistsProtocol) else super().image_count()

    def witness_makers(self) -> dict[str, Callable[[], Witness]]:
        """Those of all tasks on Stable Diffusion, and CLIP on the erased artist's prompts."""
        name = CLIPS["clip_b32"]
        return {**super().witness_makers(), "clip_erased": lambda: ErasedClipScore(self.clip(name), name)}

    def made_judge(self) -> Judge:
        """The larger of the two CLIP models; both score the prompts."""
        return ClipJudge(self.clip(CLIPS["clip_l14"]), self.classes, self.extractor)


def _offered(protocol: Any) -> tuple[str, ...]:
    """What can be erased under a protocol."""
    return protocol.artists or (TOGETHER,) if isinstance(protocol, ArtistsProtocol) else tuple(ARTISTS)
