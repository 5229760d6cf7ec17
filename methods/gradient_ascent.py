"""Gradient ascent (NegGrad): climb the forget set's denoising loss while holding the retain set's down."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from unlearnbench import Batch, Diffusion, Task, TextMethod, minimise


@dataclass(frozen=True)
class GradientAscent(TextMethod):
    """L = L_r - weight * L_f. The loss has no lower bound: too large a weight destroys the model.

    Three algorithms share the name. This one is SalUn's `ga`, -L_f + alpha L_r, divided by its alpha: to Adam the same
    with alpha = 1 / weight, but for eps. EraseDiff's NegGrad, whose FID of 76.73 its paper prints, climbs the loss of
    the retain images, L = -L_r (ascent="retain"), since its code draws from the wrong loader. Their steps, and the
    paper's for the printed row, are not known: no preset is "published" or "released". NegGrad of Golatkar et al. (CVPR
    2020), -L_f alone, is the limit of a large weight.
    """

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
    """Forget images, and as many retain images, in a step (ours; 128 in SalUn's and EraseDiff's code)."""
    ascent: Literal["forget", "retain"] = "forget"
    """Whose loss climbs: "forget" images', or "retain" images' alone, EraseDiff's NegGrad (a bug of its code)."""
    clip: float | None = None
    """Largest norm of the gradient (1 in SalUn's and EraseDiff's code); None: not clipped."""
    drop: float = 0.0
    """Share in [0, 1] of conditions replaced by the null condition (0.1 in SalUn's and EraseDiff's code)."""
    paired_timesteps: bool = False
    """Whether timesteps come in pairs t, T - 1 - t (as in SalUn's and EraseDiff's code)."""
    space = {"weight": (0.05, 0.5), "lr": (1e-4, 1e-3), "steps": (30, 120)}

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Train with Adam on pairs of forget and retain batches."""
        losses = (
            self.loss(model, forget, retain) for forget, retain in task.paired_batches(self.steps, self.batch_size)
        )
        minimise(losses, model.select("full"), self.lr, clip=self.clip)
        return model

    def loss(self, model: Diffusion, forget: Batch, retain: Batch) -> Tensor:
        """What a step descends, a scalar; the forget images are not looked at with ascent="retain"."""
        kept = model.loss(retain, drop=self.drop, paired=self.paired_timesteps)
        if self.ascent == "retain":
            return -kept
        return kept - self.weight * model.loss(forget, drop=self.drop, paired=self.paired_timesteps)
