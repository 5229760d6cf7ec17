"""Erase an Imagenette class from Stable Diffusion v1.4; ResNet-50 judges (never run on its real weights here)."""

from __future__ import annotations

from typing import Any, ClassVar

from unlearnbench.data.concepts import Concept
from unlearnbench.data.sources import Source, check_source
from unlearnbench.judges import Judge
from unlearnbench.judges.imagenet import ResNet50
from unlearnbench.tasks._sd.base import CLIP_FILES, SD14, PictureProtocol, smoke
from unlearnbench.tasks._sd.classes import SAMPLER, Pictured
from unlearnbench.tasks._sd.words import OBJECT_HELD_OUT, OBJECT_TEXTS, OBJECTS
from unlearnbench.tasks._text import other_counts

RESNET = Source(
    name="resnet50-11ad3fa6.pth",
    url="https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
    licence="bsd-3-clause",
    login=False,
    use="judge, ImageNet weights",
)


class SDObject(Pictured):
    """Erase one class; its substitute is the next one, as in SalUn."""

    name = "sd-object"
    concepts = tuple(OBJECTS)
    texts, held_out = OBJECT_TEXTS, OBJECT_HELD_OUT
    catalogue: ClassVar[dict[str, Concept]] = {
        name: Concept((name,), (other,) if other else (), substitute) for name, (other, substitute) in OBJECTS.items()
    }
    protocols: ClassVar[dict[str, Any]] = {
        "default": PictureProtocol(
            "default",
            SAMPLER,
            "imagenet-resnet50",
            features="pixels",
            forget_images=250,
            retain_images=450,
            **{**other_counts(50), "direct_images": 0, "neighbour_images": 0},
            chunk=8,
        ),
        "smoke": PictureProtocol(
            "smoke",
            judge="imagenet-resnet50",
            **{**smoke(), "retain_images": 9},
            **{**other_counts(3), "direct_images": 0},
        ),
    }
    default_forget = "church"
    sources: ClassVar[tuple[Source, ...]] = (*SD14, *CLIP_FILES, RESNET)

    def made_judge(self) -> Judge:
        """ResNet-50."""
        return ResNet50(check_source(self.folder, RESNET, self.name), self.extractor, self.device)
