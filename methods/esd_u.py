"""ESD-u: ESD on everything except the cross-attention, for concepts not tied to words (Gandikota et al., ICCV 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from unlearnbench.methods.esd import ESD, PUBLISHED, RELEASED

NUDITY = {"erase": ("nudity",)}


@dataclass(frozen=True)
class ESDU(ESD):
    """ESD's loss on the part `noxattn`; see `esd`. The paper erases nudity by this one word.

    The newer code names no run with `esd-u`: "released" has its script's defaults, with the paper's word.
    """

    requires = frozenset({"concept", "noxattn"})
    presets: ClassVar[dict] = {
        "default": {"digits-text": {"lr": 3e-5, "batch_size": 16}},
        "published": {"sd-nudity": {**PUBLISHED, **NUDITY}, "sd-object": PUBLISHED},
        "released": {"sd-nudity": {**RELEASED, **NUDITY, "part": "layers"}},
    }
    version: ClassVar[int] = 2
    part: str = "noxattn"
    """Part of the model to train: "noxattn", all but the cross-attention, is the paper's ESD-u."""
