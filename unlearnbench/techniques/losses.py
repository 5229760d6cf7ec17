"""Loss terms that several methods share.

Every loss is a mean over all elements of the batch. Papers that sum over pixels need their weights multiplied by the
number of elements of an image. Notation: `x_t` (B, C, H, W) noised images or latents, `t` (B,) integer timesteps,
`y` integer conditions, class labels (B,) or token ids (B, L); sg means "no gradient".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from unlearnbench.diffusion.model import Batch, Condition, Diffusion
from unlearnbench.reporting import note
from unlearnbench.task import Task
from unlearnbench.training import Gradients, inner, norm

WrongTarget = Literal["uniform", "substitute", "uniform_both", "random"]
"""The target of EraseDiff's forget loss; see `erasediff_forget_loss`."""


def prediction_loss(model: Diffusion, x_t: Tensor, t: Tensor, y: Tensor | Condition, target: Tensor) -> Tensor:
    """|| eps_theta(x_t, c) - target ||^2: the distance of the noise prediction from a fixed target (B, C, H, W)."""
    return (model.eps(x_t, t, y) - target).square().mean()


def away_from(eps_null: Tensor, eps_c: Tensor, eta: float) -> Tensor:
    """eps_null - eta (eps_c - eps_null): a prediction guided away from a concept (ESD, eq. 7), like its inputs.

    `eta` is the strength of this negative guidance; 0 gives the unconditional prediction.
    """
    return eps_null - eta * (eps_c - eps_null)


@torch.no_grad()
def esd_target(teacher: Diffusion, x_t: Tensor, t: Tensor, y: Tensor | Condition, eta: float) -> Tensor:
    """eps_0(x_t, null) - eta (eps_0(x_t, c) - eps_0(x_t, null)) of the teacher eps_0: (B, C, H, W), without gradient.

    The target of ESD (Gandikota et al., ICCV 2023, eq. 7), which SPM, Receler and AdvUnlearn use as well.
    """
    eps_null = teacher.eps(x_t, t, teacher.null(len(t)))
    return away_from(eps_null, teacher.eps(x_t, t, y), eta)


def relabel_loss(
    model: Diffusion,
    batch: Batch,
    other: Tensor,
    drop: float = 0.0,
    source: Diffusion | None = None,
    *,
    drop_target: float = 0.0,
    paired: bool = False,
) -> Tensor:
    """|| eps_theta(x_t, c) - sg eps(x_t, c') ||^2 at freshly noised images of the batch.

    `other` holds the condition c' of each image, shaped as `batch.y`. `drop` in [0, 1] is the share of the conditions c
    replaced by the null condition, `drop_target` that of the conditions c'; `paired` timesteps are as in
    `Diffusion.noised`. The target is predicted by `source`, or by the model itself where None, as in SalUn (Fan et al.,
    ICLR 2024, eq. 6) and in model-based concept ablation (Kumari et al., ICCV 2023, eq. 5).
    """
    t, _, x_t = model.noised(batch.x0, paired=paired)
    condition = model.condition(batch.y, drop)
    guide = model if source is None else source
    with torch.no_grad():
        target = guide.eps(x_t, t, guide.condition(other, drop_target))
    return prediction_loss(model, x_t, t, condition, target)


# ---- EraseDiff (Wu et al., CVPR 2025) ------------------------------------------------------------------------------


def erasediff_forget_loss(
    model: Diffusion,
    task: Task,
    forget: Batch,
    retain: Batch,
    target: WrongTarget,
    drop: float = 0.0,
    *,
    drop_target: float = 0.0,
    paired: bool = False,
    timesteps: Tensor | None = None,
) -> Callable[[], Tensor]:
    """L_f = || eps_theta(x_t, c_f) - eps_f ||^2 as a function of the model's present weights.

    Timesteps, noise and target are drawn once, so that repeated calls differ by the weights alone. eps_f is, by target:

    - "uniform": noise from U[0, 1) in place of the Gaussian noise;
    - "uniform_both": the same draw, which corrupts x_t too;
    - "substitute": sg eps_theta(x_t, c_m), c_m the task's substitute for each image's condition;
    - "random": the same with c_m the condition of the first image of `retain`, one for the whole batch.

    `drop` in [0, 1] is the share of the conditions c_f replaced by the null condition, `drop_target` that of the
    conditions c_m; `paired` timesteps are as in `Diffusion.noised`. Given `timesteps` (B,) replace those drawn.
    """
    t, noise, x_t = model.noised(forget.x0, paired=paired)
    if timesteps is not None:
        t, x_t = timesteps, model.add_noise(forget.x0, noise, timesteps)
    uniform = torch.rand_like(noise) if target in ("uniform", "uniform_both") else None
    if target == "uniform_both" and uniform is not None:
        x_t = model.add_noise(forget.x0, uniform, t)
    other = retain.y[:1].expand_as(forget.y) if target == "random" else task.substitute(forget.y)

    def loss() -> Tensor:
        condition = model.condition(forget.y, drop)
        with torch.no_grad():
            wrong = model.eps(x_t, t, model.condition(other, drop_target)) if uniform is None else uniform
        return prediction_loss(model, x_t, t, condition, wrong)

    return loss


def erasediff_gradient(L_r: Tensor, L_f: Tensor, a: Gradients, b: Gradients, scale: Tensor) -> Gradients:
    """a + lambda b, for a = grad L_r, b = grad g and lambda = `scale` (Theorem 3.1); logs the terms of the step."""
    note(**{"lambda": scale}, L_r=L_r, L_f=L_f)
    note(**{"<grad g, grad L_r>": lambda: inner(a, b), "||grad g||": lambda: norm(b), "||grad L_r||": lambda: norm(a)})
    return {name: a[name] + scale * b[name] for name in a}
