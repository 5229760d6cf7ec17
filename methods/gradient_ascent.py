"""Gradient ascent (NegGrad): climb the forget set's denoising loss while holding the retain set's down."""

from dataclasses import dataclass
from typing import Any

from unlearnbench import Diffusion, Method, Task, minimise


@dataclass(frozen=True)
class GradientAscent(Method):
    """L = L_r - weight * L_f. The loss has no lower bound: too large a weight destroys the model."""

    resumes = True
    presets = {"default": {"digits-text": {"lr": 2e-4, "batch_size": 32}}}
    steps: int = 60
    """Updates of the weights (ours)."""
    lr: float = 3e-4
    """Adam's learning rate (ours)."""
    weight: float = 0.2
    """Weight of the ascent on the forget set, >= 0 (ours; in SalUn's code, `ga`, the retain loss carries the
    weight)."""
    batch_size: int = 64
    """Forget images, and as many retain images, in a step (ours)."""
    space = {"weight": (0.05, 0.5), "lr": (1e-4, 1e-3), "steps": (30, 120)}

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Train with Adam on pairs of forget and retain batches."""
        losses = (
            model.loss(retain) - self.weight * model.loss(forget)
            for forget, retain in task.paired_batches(self.steps, self.batch_size)
        )
        minimise(losses, model.select("full"), self.lr)
        return model
