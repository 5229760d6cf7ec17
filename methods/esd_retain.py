"""ESD with the denoising loss of retain images, a term that the paper lacks (Gandikota et al., ICCV 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from unlearnbench.methods.esd import ESD


@dataclass(frozen=True)
class ESDRetain(ESD):
    """ESD's loss + retain_weight * L_r."""

    requires = frozenset({"concept", "retain images"})
    presets: ClassVar[dict] = {"default": {"digits-text": {"part": "xattn", "batch_size": 16}}}
    steps: int = 60
    """Updates of the weights (the code's `iterations`, 1,000)."""
    lr: float = 1e-3
    """Adam's learning rate (ours; 1e-5 in the code, which has no retain loss)."""
    retain_weight: float = 1.0
    """Weight of the denoising loss of retain images, >= 0 (ours; the paper has no such term)."""
