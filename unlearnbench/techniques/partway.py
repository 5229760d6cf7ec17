"""Samples that stop on the way down, for methods that train on x_t of their own drawing: ESD's kin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unlearnbench.diffusion.model import Condition, Diffusion
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.techniques.compvis_steps import draw_stop


class Way(NamedTuple):
    """How each of B images is sampled: from which noise and how far. Several conditions can go the same way."""

    sampler: Sampler
    seeds: list[int]
    """Seeds of the noise that sampling starts from."""
    until: int | Tensor
    """Final steps of the sampler that are left out: one number, or one for each image (B,)."""
    t: Tensor
    """Timesteps (B,) that networks are asked at for the x_t reached."""

    @torch.no_grad()
    def x_t(self, model: Diffusion, y: Tensor | Condition) -> Tensor:
        """What the model samples for conditions y: x_t (B, C, H, W), without gradient."""
        return model.sample(y, self.seeds, sampler=self.sampler, until=self.until)

    @torch.no_grad()
    def start(self, model: Diffusion, y: Tensor | Condition) -> Tensor:
        """The noise (B, C, H, W) that sampling starts from."""
        return model.sample(y, self.seeds, sampler=self.sampler, until=self.sampler.steps)


def draw_way(model: Diffusion, sampler: Sampler, n: int, t_above: bool = False) -> Way:
    """Draw noise and a random step of the sampler for each of n images; t is the level that x_t stops at.

    With `t_above` they all stop at one step, and t lies above their level, as in ESD's first code (see
    `compvis_steps`).
    """
    device = model.alpha_bar.device
    if t_above:
        stop = draw_stop(sampler.steps, len(model.alpha_bar))
        until: int | Tensor = stop.left
        t = torch.full((n,), stop.t, device=device)
    else:
        done = torch.randint(sampler.steps, (n,), device=device)  # steps taken before x_t
        until, t = sampler.steps - done, model.timesteps(sampler)[done]
    return Way(sampler, torch.randint(2**62, (n,)).tolist(), until, t)
