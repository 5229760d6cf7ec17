"""ESD-u: ESD on all but the cross-attention, for what is no matter of words (Gandikota et al., ICCV 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from unlearnbench.methods.esd import ESD, PUBLISHED


@dataclass(frozen=True)
class ESDU(ESD):
    """ESD's loss on `noxattn`; see esd."""

    requires = frozenset({"concept", "noxattn"})
    presets: ClassVar[dict] = {
        "default": {"digits-text": {"lr": 3e-5, "batch_size": 16}},
        "published": {"*": PUBLISHED},
    }
    part: str = "noxattn"
    """Part of the model to train: "noxattn", all but the cross-attention, is the paper's ESD-u."""
