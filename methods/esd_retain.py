"""ESD with the denoising loss of retain images beside it, which the paper lacks (Gandikota et al., ICCV 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from unlearnbench.methods.esd import ESD


@dataclass(frozen=True)
class ESDRetain(ESD):
    """ESD's loss + retain_weight * L_r."""

    requires = frozenset({"concept", "retain images"})
    presets: ClassVar[dict] = {"default": {"digits-text": {"part": "xattn", "batch_size": 16}}}
    steps: int = 60
    lr: float = 1e-3
    retain_weight: float = 1.0
