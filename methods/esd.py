"""ESD: fine-tune towards the teacher's prediction guided away from the concept (Gandikota et al., ICCV 2023)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from unlearnbench import Diffusion, Method, Task, minimise
from unlearnbench.techniques.losses import esd_target, prediction_loss

PUBLISHED = {"steps": 1000, "lr": 1e-5, "batch_size": 1, "eta": 1.0, "sampler_steps": 50}


@dataclass(frozen=True)
class ESD(Method):
    """L = || eps_theta(x_t, c) - [eps_0(x_t, null) - eta (eps_0(x_t, c) - eps_0(x_t, null))] ||^2 (eq. 7).

    x_t is sampled by the model being trained, with `start_guidance`, down to a random step of its sampler. Needs no
    images. In the paper's letters: eta is `eta`, theta* is the teacher eps_0. `part` is ESD-x (xattn), ESD-u (noxattn)
    or full. `retain_weight` adds the denoising loss of retain images, which the paper does not have (see esd_retain).
    The paper has no classes: preset "published" for CIFAR-10 takes eta 7.5 from SalUn's comparison, whose code for it
    was not released.
    """

    resumes = True
    requires = frozenset({"concept"})
    presets = {
        "default": {"digits-text": {"part": "xattn", "lr": 5e-4, "batch_size": 16}},
        "published": {
            "*": PUBLISHED,
            "digits-text": {**PUBLISHED, "part": "xattn"},
            "cifar10-class": {**PUBLISHED, "eta": 7.5},
        },
    }
    space = {"lr": (1e-4, 1e-3), "eta": (0.5, 3.0), "steps": (30, 120)}
    steps: int = 60
    """Updates of the weights (the code's `iterations`, 1,000)."""
    lr: float = 3e-4
    """Adam's learning rate (the code's `lr`, 1e-5)."""
    batch_size: int = 32
    """Samples x_t in a step (ours; the code takes 1)."""
    eta: float = 1.0
    """Strength of the negative guidance (the paper's eta; the code's `negative_guidance`), >= 0."""
    start_guidance: float = 3.0
    """Guidance scale w with which x_t is sampled (the code's `start_guidance`, 3)."""
    sampler_steps: int = 20
    """Steps of the sampler that makes x_t (the code's `ddim_steps`, 50)."""
    retain_weight: float = 0.0
    """Weight of the denoising loss of retain images, >= 0 (ours; 0 in the paper)."""
    part: str = "full"
    """Part of the model to train (the code's `train_method`): "xattn" is ESD-x, "noxattn" ESD-u."""

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Train with Adam on the loss above, at x_t sampled by the model itself."""
        minimise(self.losses(model, model.frozen(), task), model.select(self.part), self.lr)
        return model

    def losses(self, model: Diffusion, teacher: Diffusion, task: Task) -> Iterator[Tensor]:
        """Yield the loss of each step, a scalar."""
        sampler = replace(model.sampler, steps=self.sampler_steps, guidance=self.start_guidance)
        retain = task.batches(self.steps, self.batch_size, "retain") if self.retain_weight else None
        for y in task.conditions("forget", self.steps, self.batch_size):
            loss = self.loss(model, teacher, *model.partway(y, sampler), y)
            yield loss if retain is None else loss + self.retain_weight * model.loss(next(retain))

    def loss(self, model: Diffusion, teacher: Diffusion, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Eq. 7 at x_t (B, C, H, W) and t (B,), a mean over all elements."""
        return prediction_loss(model, x_t, t, y, esd_target(teacher, x_t, t, y, self.eta))
