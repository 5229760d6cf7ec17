"""Fine-tuning on the retain set alone, in the hope that the rest is forgotten."""

from dataclasses import dataclass
from typing import Any

from unlearnbench import Diffusion, Task, TextMethod, minimise


@dataclass(frozen=True)
class Finetune(TextMethod):
    """L = L_r, the usual baseline (e.g. Warnecke et al., NDSS 2023)."""

    resumes = True
    requires = frozenset({"retain images"})
    presets = {"default": {"digits-text": {"batch_size": 32}}}
    steps: int = 60
    """Updates of the weights (ours)."""
    lr: float = 3e-4
    """Adam's learning rate (ours)."""
    batch_size: int = 64
    """Retain images in a step (ours)."""

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Train with Adam on the denoising loss of retain batches."""
        losses = (model.loss(retain) for retain in task.batches(self.steps, self.batch_size, "retain"))
        minimise(losses, model.select("full"), self.lr)
        return model
