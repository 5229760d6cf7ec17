"""SFRon: adaptive ascent on salient weights, alternating with retain steps (Huang et al., NeurIPS 2024)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unlearnbench import Batch, Diffusion, Task, TextMethod, gradients, minimise
from unlearnbench.techniques.losses import relabel_loss
from unlearnbench.training import Gradients, norm

PUBLISHED = {
    "steps": 50,
    "lr": 1e-4,
    "batch_size": 128,
    "alpha_f": 10.0,
    "alpha_r": 1.0,
    "threshold": 1.0,
    "lam": 0.5,
    "reduction": "sum",
    "fisher_samples": None,
}
RELEASED = {
    **PUBLISHED,
    "steps": 150,
    "clip": 1.0,
    "drop": 0.1,
    "fisher_batch": 128,
    "fisher_guidance": 3.0,
    "fisher_clip": 1.0,
    "paired_timesteps": True,
}
NUDE, CLOTHED = ("a photo of a nude person",), ("a photo of a person wearing clothes",)
RELEASED_ON_NUDITY = {
    "erase": NUDE,
    "replace_with": CLOTHED,
    "keep": CLOTHED,
    "forget_prompts": NUDE,
    "retain_prompts": CLOTHED,
    "forget": "relabel",
    "steps": 1000,
    "lr": 1e-5,
    "batch_size": 2,
    "alpha_f": 1.0,
    "alpha_r": 1.0,
    "decay": False,
    "threshold": 0.0,
}


@dataclass(frozen=True)
class SFRon(TextMethod):
    """Alternates a step up m * grad alpha_f(k) sum_i w_i l_i on forget images and a step down grad alpha_r L_r.

    l_i is the denoising loss of image i. w_i = l_i^-lam / sum_j l_j^-lam, without gradient, gives less weight to images
    that are already forgotten. alpha_f(k) falls along a cosine from alpha_f to 0. Both are as in the code. The mask m =
    1[F_f >= threshold F_r] is computed once, from the original. F is the diagonal Fisher information, the mean square
    of the gradient of the loss, of `fisher_samples` images of each side (None: all). A weight that neither side moves
    is in the mask.

    The retain step after each ascent stands for the inverse Hessian of the retain loss (the paper's fast and slow
    weights). As in the code, one Adam takes both kinds of step, so its momentum moves weights outside the mask during
    the ascent too, and the gradient is clipped after it is masked.

    Preset "released" is the code for CIFAR-10: F is the square of the gradient of a whole batch (`fisher_batch`), of
    the guided prediction (scale 3 in our notation), clipped, 10 % of conditions are dropped, and timesteps come in
    pairs. Left out: an EMA of rate 1e-4, which averages nothing. Preset "published" has the 50 steps that the paper
    calls enough for CIFAR-10, with the code's other values but without its clips, guidance, dropping and pairs, which
    are not in the formulas. The code's losses are sums over 3 x 32 x 32 pixels, hence `reduction`: scale matters to
    Adam's eps and to clips, so that the same settings on means give another model.

    On Stable Diffusion the code is another algorithm, which "released" for `sd-nudity` is: the forget step goes down
    || eps_theta(x_t, c_f) - sg eps_theta(x_t, c_m) ||^2 (forget="relabel"), at a constant alpha_f. Its mask is never
    applied, since the code looks for names among the parameters; threshold 0 stands for that here.
    """

    resumes = True
    presets: ClassVar[dict] = {
        "default": {"digits-text": {"batch_size": 32}},
        "published": {"cifar10-class": PUBLISHED},
        "released": {"cifar10-class": RELEASED, "sd-nudity": RELEASED_ON_NUDITY},
    }
    space = {"alpha_f": (0.1, 30.0), "threshold": (0.3, 10.0), "lam": (0, 2.0), "lr": (1e-4, 3e-3), "steps": (30, 120)}
    steps: int = 60
    """Ascents, each followed by a retain step (the code's `n_iters`, 150; the paper says that 50 are enough)."""
    lr: float = 3e-4
    """Adam's learning rate of both kinds of step (the code's `lr`, 1e-4)."""
    batch_size: int = 64
    """Forget images, and as many retain images, in a step (the code's `batch_size`, 128)."""
    alpha_f: float = 1.0
    """First weight of the ascent, which falls to 0 along a cosine, >= 0 (the code's `forget_alpha`, 10)."""
    alpha_r: float = 1.0
    """Weight of the retain loss, >= 0 (the code's `remain_alpha`, 1)."""
    threshold: float = 1.0
    """Least ratio F_f / F_r of Fisher information for a weight to be in the mask, >= 0 (1 in paper and code)."""
    lam: float = 0.5
    """How fast the weight of an image falls with its loss: w_i ~ l_i^-lam, >= 0 (the code's `lambd`, 0.5)."""
    clip: float | None = None
    """Largest norm of the gradient (the code's `grad_clip`, 1); None: not clipped."""
    drop: float = 0.0
    """Share in [0, 1] of conditions replaced by the null condition (the code's `cond_drop_prob`, 0.1)."""
    fisher_samples: int | None = 100
    """Images of each side that the Fisher information is taken of (ours); None: all, as in the code."""
    fisher_batch: int = 1
    """Images whose mean gradient is squared together (1 is the paper's formula; the code takes 128)."""
    fisher_guidance: float = 1.0
    """Guidance scale w of the prediction in the Fisher's loss (1 in the paper's formula; the code's 2 is 3 here)."""
    fisher_clip: float | None = None
    """Largest norm of the gradient before it is squared (1 in the code); None: not clipped."""
    reduction: Literal["mean", "sum"] = "mean"
    """What losses are over the elements of an image: the "mean" (ours), or the "sum" (the code for CIFAR-10)."""
    paired_timesteps: bool = False
    """Whether timesteps come in pairs t, T - 1 - t (as in the code for CIFAR-10)."""
    forget: Literal["ascent", "relabel"] = "ascent"
    """The forget step: adaptive "ascent" (the paper), or descent to the prediction for the task's substitute, "relabel"
    (the code for nudity)."""
    decay: bool = True
    """Whether `alpha_f` falls along a cosine (the code's `decay_forget_alpha`)."""

    def prepare(self, model: Diffusion, task: Task) -> dict[str, Tensor]:
        """The mask: 1 where the Fisher of the forget set is at least `threshold` times that of the retain set."""
        forget, retain = self.fisher(model, task, "forget"), self.fisher(model, task, "retain")
        return {name: (forget[name] >= self.threshold * retain[name]).to(forget[name].dtype) for name in forget}

    def fisher(self, model: Diffusion, task: Task, side: Literal["forget", "retain"]) -> dict[str, Tensor]:
        """Mean over batches of the squared gradient of their loss, by parameter."""
        parameters = model.select("full")
        images = task.count(side)
        if self.fisher_samples is not None:
            images = min(images, self.fisher_samples)
        batches = task.steps(-(-images // self.fisher_batch))
        total = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for batch in task.batches(batches, self.fisher_batch, side):
            grads = gradients(self.fisher_loss(model, batch), parameters)
            scale = 1.0
            if self.fisher_clip is not None:
                scale = min(1.0, self.fisher_clip / (norm(grads).item() + 1e-12))
            for name, grad in grads.items():
                total[name] += (scale * grad).square() / batches
        return total

    def fisher_loss(self, model: Diffusion, batch: Batch) -> Tensor:
        """Denoising loss of a batch, of the guided prediction where `fisher_guidance` is not 1."""
        t, noise, x_t = model.noised(batch.x0, paired=self.paired_timesteps)
        output = model(x_t, t, batch.y)
        if self.fisher_guidance != 1:
            null = model(x_t, t, model.null(len(t)))
            output = null + self.fisher_guidance * (output - null)
        return self.scale(model) * (output - model.target(batch.x0, noise, t)).square().mean()

    def scale(self, model: Diffusion) -> int:
        """What a mean over elements is multiplied by."""
        return math.prod(model.shape) if self.reduction == "sum" else 1

    def unlearn(self, model: Diffusion, task: Task, prepared: dict[str, Tensor]) -> Diffusion:
        """Train with Adam, alternating ascent and descent."""
        minimise(self.turns(model, task, prepared), model.select("full"), self.lr, clip=self.clip)
        return model

    def turns(self, model: Diffusion, task: Task, mask: dict[str, Tensor]) -> Iterator[Gradients]:
        """Yield two sets of gradients, ascent and descent, for each pair of batches."""
        parameters, steps = model.select("full"), task.steps(self.steps)
        for k, (forget, retain) in enumerate(task.paired_batches(self.steps, self.batch_size)):
            alpha = self.alpha_f * (1 + math.cos(math.pi * k / steps)) / 2 if self.decay else self.alpha_f
            yield self.ascent(model, task, forget, alpha, mask, parameters)
            kept = model.loss(retain, drop=self.drop, paired=self.paired_timesteps)
            yield gradients(self.alpha_r * self.scale(model) * kept, parameters)

    def ascent(
        self,
        model: Diffusion,
        task: Task,
        batch: Batch,
        alpha: float,
        mask: dict[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> Gradients:
        """The masked gradient of the forget step, whose weight is `alpha`."""
        found = gradients(alpha * self.forget_loss(model, task, batch), parameters)
        return {name: mask[name] * found.pop(name) for name in parameters}

    def forget_loss(self, model: Diffusion, task: Task, batch: Batch) -> Tensor:
        """What the forget step descends, a scalar."""
        if self.forget == "ascent":
            return -self.adaptive_loss(model, batch)
        loss = relabel_loss(model, batch, task.substitute(batch.y), self.drop, paired=self.paired_timesteps)
        return self.scale(model) * loss

    def adaptive_loss(self, model: Diffusion, batch: Batch) -> Tensor:
        """sum_i w_i l_i, l_i the denoising loss of image i."""
        t, noise, x_t = model.noised(batch.x0, paired=self.paired_timesteps)
        error = model(x_t, t, model.condition(batch.y, self.drop)) - model.target(batch.x0, noise, t)
        losses = self.scale(model) * error.square().flatten(1).mean(dim=1)
        weights = 1 / (losses.detach() ** self.lam + 1e-8)
        return (weights / weights.sum() * losses).sum()
