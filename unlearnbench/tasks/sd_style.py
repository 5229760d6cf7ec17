"""Erase an artist's style from Stable Diffusion v1.4, judged by CLIP (never run on its real weights here)."""

from __future__ import annotations

from typing import Any, ClassVar

from unlearnbench.data.concepts import Concept
from unlearnbench.data.sources import Source
from unlearnbench.judges import Judge
from unlearnbench.judges.clip import ClipJudge
from unlearnbench.tasks._sd.base import CLIP_FILES, CLIPS, SD14, PictureProtocol, smoke
from unlearnbench.tasks._sd.classes import SAMPLER, Pictured
from unlearnbench.tasks._sd.words import ARTISTS, NEAR, STYLE_HELD_OUT, STYLE_TEXTS
from unlearnbench.tasks._text import other_counts


class SDStyle(Pictured):
    """Erase an artist; the substitute is "a painter"."""

    name = "sd-style"
    concepts = tuple(ARTISTS)
    texts, held_out = STYLE_TEXTS, STYLE_HELD_OUT
    catalogue: ClassVar[dict[str, Concept]] = {
        name: Concept((name,), (other,), "a painter", NEAR[name]) for name, other in ARTISTS.items()
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
        "smoke": PictureProtocol(
            "smoke", judge="clip-artists", **{**smoke(), "retain_images": 9}, **{**other_counts(3), "direct_images": 0}
        ),
    }
    default_forget = "Van Gogh"
    sources: ClassVar[tuple[Source, ...]] = (*SD14, *CLIP_FILES)

    def made_judge(self) -> Judge:
        """The larger of the two CLIP models; both score the prompts."""
        return ClipJudge(self.clip(CLIPS["clip_l14"]), self.concepts, self.extractor)
