"""DDIM sampling."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """How images are sampled: number of DDIM steps, eta (0 deterministic, 1 ancestral) and guidance scale.

    `guidance` is in the standard notation, eps_null + w (eps_c - eps_null): 1 means none. Papers that write (1 + w)
    eps_c - w eps_null mean `guidance = 1 + w`.
    """

    steps: int = 20
    eta: float = 0.0
    guidance: float = 1.0


def timesteps(steps: int, T: int) -> list[int]:
    """`steps` evenly spaced timesteps from T - 1 downwards ("trailing", Lin et al., WACV 2024); -1 would be next."""
    if not 1 <= steps <= T:
        raise ValueError(f"steps={steps} is outside 1..{T}")
    return [round(T - i * T / steps) - 1 for i in range(steps)]


class Stops:
    """The step at which each of n images stops: `until` (int or (n,)) steps before the last of `steps`.

    `last` is the step at which the last image stops. Where all stop together nothing is asked of the device.
    """

    def __init__(self, steps: int, until: int | Tensor, n: int, device: torch.device):
        self._each: Tensor | None = None
        if isinstance(until, Tensor):
            self._each = steps - until.to(device).expand(n)
            self.last = int(self._each.max()) if n else 0
        else:
            self.last = steps - until if n else 0

    def after(self, i: int, new: Tensor, old: Tensor) -> Tensor:
        """x (n, C, H, W) after step i: new where the image has not stopped yet, else old."""
        return new if self._each is None else torch.where((self._each > i).view(-1, 1, 1, 1), new, old)


def ddim_step(
    x_t: Tensor, eps: Tensor, now: Tensor, prev: Tensor, eta: float, noise: Tensor | None, clip: bool
) -> Tensor:
    """One DDIM step (Song et al., ICLR 2021, eq. 12 and 16) from alpha_bar `now` to `prev`, scalars or (B, 1, 1, 1).

    Written here because diffusers' scheduler uses the stride T // steps, which is wrong unless steps divides T;
    otherwise the two are equal. With `clip`, x0 is clamped to [-1, 1] and eps is recomputed from it.
    """
    x0 = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
    if clip:
        x0 = x0.clamp(-1, 1)
        eps = (x_t - now.sqrt() * x0) / (1 - now).sqrt()
    sigma = eta * ((1 - prev) / (1 - now) * (1 - now / prev)).clamp(min=0).sqrt()
    x = prev.sqrt() * x0 + (1 - prev - sigma**2).clamp(min=0).sqrt() * eps
    return x if noise is None else x + sigma * noise
