"""Random label: answer the forgotten condition as if another had been asked for (Golatkar et al., CVPR 2020)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from unlearnbench import Batch, Diffusion, Task, TextMethod, minimise
from unlearnbench.techniques.losses import relabel_loss

RELEASED = {
    "steps": 1000,
    "lr": 1e-4,
    "batch_size": 128,
    "alpha": 3.072,
    "target": "substitute",
    "clip": 1.0,
    "drop": 0.1,
    "drop_target": 0.1,
    "paired_timesteps": True,
}


@dataclass(frozen=True)
class RandomLabel(TextMethod):
    """L = || eps_theta(x_t, c_f) - sg eps_theta(x_t, c_m) ||^2 + alpha L_r on forget images (SalUn's RL, no mask).

    `target` sets c_m, or replaces the first term. "substitute": the task's substitute, one for all images, as Fan et
    al. (ICLR 2024) relabel class c as c + 1. "random": the condition of a retain image, drawn for each forget image, as
    Golatkar et al. relabel for classifiers. "images": L(x_r, c_f), the denoising loss of retain images under the
    forgotten condition, like the noise-based loss of Kumari et al. (ICCV 2023) with images of one anchor. All losses
    are means over elements: the released alpha 1e-3 of a sum over 3 x 32 x 32 pixels is 3.072 here.

    Preset "released" is SalUn's code for CIFAR-10 without a mask: it clips gradients, drops 10 % of the conditions of
    outputs, targets and retain loss, each by its own draw, and takes timesteps in pairs. Golatkar et al. unlearn
    classifiers, and no paper says what it ran random labels with on a diffusion model, hence no preset "published".
    """

    resumes = True
    presets: ClassVar[dict] = {
        "default": {"digits-text": {"lr": 3e-4, "batch_size": 32}},
        "released": {"cifar10-class": RELEASED},
    }
    space = {"alpha": (0.3, 3.0), "lr": (1e-4, 3e-3), "steps": (30, 120)}
    steps: int = 60
    """Updates of the weights (SalUn's code: 1,000 on CIFAR-10)."""
    lr: float = 1e-3
    """Adam's learning rate (SalUn's code: 1e-4 on CIFAR-10)."""
    batch_size: int = 64
    """Forget images, and as many retain images, in a step (SalUn's code: 128)."""
    alpha: float = 1.0
    """Weight of the retain loss, a mean over elements, >= 0 (the SalUn paper's alpha; 1e-3 of a sum is 3.072 here)."""
    target: Literal["substitute", "random", "images"] = "random"
    """What the forgotten condition is answered with: the prediction for the task's "substitute" (SalUn's paper), that
    for a "random" retain image's condition, or retain "images" themselves."""
    part: str = "full"
    """Part of the model to train (ours), "full" in the papers."""
    clip: float | None = None
    """Largest norm of the gradient (SalUn's code: 1); None: not clipped."""
    drop: float = 0.0
    """Share in [0, 1] of conditions replaced by the null condition (SalUn's code: `cond_drop_prob` 0.1)."""
    drop_target: float = 0.0
    """The same share for the conditions c_m of the targets (0.1 in SalUn's code); not read with target="images"."""
    paired_timesteps: bool = False
    """Whether timesteps come in pairs t, T - 1 - t (as in SalUn's code for CIFAR-10)."""

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Train with Adam on the loss above."""
        losses = (
            self.relabel_loss(model, task, forget, retain)
            + self.alpha * model.loss(retain, drop=self.drop, paired=self.paired_timesteps)
            for forget, retain in task.paired_batches(self.steps, self.batch_size)
        )
        minimise(losses, model.select(self.part), self.lr, clip=self.clip)
        return model

    def relabel_loss(self, model: Diffusion, task: Task, forget: Batch, retain: Batch) -> Tensor:
        """The first term, a scalar."""
        if self.target == "images":
            return model.loss(Batch(retain.x0, forget.y), drop=self.drop, paired=self.paired_timesteps)
        other = task.substitute(forget.y) if self.target == "substitute" else retain.y
        return relabel_loss(model, forget, other, self.drop, drop_target=self.drop_target, paired=self.paired_timesteps)
