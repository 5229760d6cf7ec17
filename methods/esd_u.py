"""ESD-u: ESD on everything except the cross-attention, for concepts not tied to words (Gandikota et al., ICCV 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from unlearnbench.methods.esd import ESD, OF_ESD_U


@dataclass(frozen=True)
class ESDU(ESD):
    """ESD's loss on the part `noxattn`; see `esd`."""

    requires = frozenset({"concept", "noxattn"})
    presets: ClassVar[dict] = {"default": {"digits-text": {"lr": 3e-5, "batch_size": 16}}, **OF_ESD_U}
    version: ClassVar[int] = 2
    part: str = "noxattn"
    """Part of the model to train: "noxattn", all but the cross-attention, is the paper's ESD-u."""
