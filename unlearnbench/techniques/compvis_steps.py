"""Noised latents and timesteps as ESD's first code pairs them, which AdvUnlearn and Receler built upon.

Its sampler is told to stop with `t_enc` of the DDIM steps left, and takes one step more; t is then drawn anywhere in
the interval above: for 50 steps of 1,000 it is 39 to 58 above the latents' own level. (OPTML-Group/AdvUnlearn@9d23124,
ldm/models/diffusion/ddim.py:166-203 and train-scripts/utils/get_loss.py:304-309.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unlearnbench.diffusion.model import Diffusion
from unlearnbench.diffusion.sampler import Sampler


class Stop(NamedTuple):
    """Where sampling stops, and the timestep that the networks are asked at."""

    left: int
    """Steps of the sampler that are left out."""
    t: int


def draw_stop(steps: int, T: int) -> Stop:
    """Draw a stop for a sampler of `steps` steps over T timesteps."""
    number = int(torch.randint(steps, (1,)))
    low, high = round(number / steps * T), round((number + 1) / steps * T)
    return Stop(max(number - 1, 0), int(torch.randint(low, high, (1,))))


@torch.no_grad()
def sample_to(model: Diffusion, y: Tensor, sampler: Sampler, stop: Stop) -> tuple[Tensor, Tensor]:
    """Sample x_t (B, C, H, W) for y from new noise down to a stop; returns it with t (B,)."""
    seeds = torch.randint(2**62, y.shape[:1]).tolist()
    x_t = model.sample(y, seeds, sampler=sampler, until=stop.left)
    return x_t, torch.full(y.shape[:1], stop.t, device=x_t.device)
