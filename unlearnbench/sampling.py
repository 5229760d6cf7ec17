"""DDIM sampling, guidance, and noise that depends only on image seed and timestep."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from unlearnbench.diffusion import Condition, Diffusion

Hook = Callable[[int, int, Tensor], None]
"""Called as `hook(i, t, x_t)` before step i at timestep t."""

START = 1 << 20
"""Timestep word of the noise that sampling starts from; no schedule is that long."""
WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Sampler:
    """How images are drawn: DDIM steps, eta (0 deterministic, 1 ancestral), guidance scale.

    `guidance` is in the standard notation, eps_null + w (eps_c - eps_null): 1 is none. Papers that write
    (1 + w) eps_c - w eps_null mean `guidance = 1 + w`.
    """

    steps: int = 20
    eta: float = 0.0
    guidance: float = 1.0


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10 (Salmon et al., SC 2011): counters (..., 4) and keys (..., 2) -> (..., 4), 32-bit words in int64.

    A product of two words may be negative in int64. Its bits are still right, and the upper half is masked after the
    shift, which keeps the sign.
    """
    a, b, c, d = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32 & WORD) ^ b ^ k0, q & WORD, (p >> 32 & WORD) ^ d ^ k1, p & WORD
        k0, k1 = k0 + 0x9E3779B9 & WORD, k1 + 0xBB67AE85 & WORD
    return torch.stack([a, b, c, d], dim=-1)


def gaussian_noise(seeds: Sequence[int], t: int, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (B, *shape), float32; row b depends on (seeds[b], t) alone.

    It is the same on every device (words are integers; logarithm and cosine, in float64, may differ in the last bit),
    so images are paired across methods, batch sizes, shards and machines. Box-Muller on the Philox words; `t` is the
    timestep, or `START` for the noise that sampling starts from.
    """
    size = math.prod(shape)
    blocks = -(-size // 4)
    halves = [(seed & WORD, seed >> 32 & WORD) for seed in seeds]
    keys = torch.tensor(halves, dtype=torch.int64, device=device).view(-1, 1, 2)
    counter = torch.zeros(len(keys), blocks, 4, dtype=torch.int64, device=device)
    counter[..., 0] = torch.arange(blocks, device=device)
    counter[..., 1] = t
    uniform = (philox(counter, keys).double() + 0.5) / 2.0**32  # never 0, so the logarithm is finite
    radius, angle = (-2 * uniform[..., :2].log()).sqrt(), 2 * math.pi * uniform[..., 2:]
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1).float()
    return normal.view(len(keys), 4 * blocks)[:, :size].reshape(len(keys), *shape)


def timesteps(steps: int, T: int) -> list[int]:
    """`steps` timesteps from T - 1 downwards, evenly spaced ("trailing", Lin et al., WACV 2024); -1 would follow."""
    if not 1 <= steps <= T:
        raise ValueError(f"steps={steps} is outside 1..{T}")
    return [round(T - i * T / steps) - 1 for i in range(steps)]


def ddim_step(
    x_t: Tensor, eps: Tensor, now: Tensor, prev: Tensor, eta: float, noise: Tensor | None, clip: bool
) -> Tensor:
    """One DDIM step (Song et al., ICLR 2021, eq. 12 and 16) from alpha_bar `now` to `prev`, scalars or (B, 1, 1, 1).

    Written here because diffusers' scheduler takes the stride T // steps, which is wrong unless steps divides T; equal
    to it otherwise. With `clip`, x0 is clamped to [-1, 1] and eps recomputed from it.
    """
    x0 = (x_t - (1 - now).sqrt() * eps) / now.sqrt()
    if clip:
        x0 = x0.clamp(-1, 1)
        eps = (x_t - now.sqrt() * x0) / (1 - now).sqrt()
    sigma = eta * ((1 - prev) / (1 - now) * (1 - now / prev)).clamp(min=0).sqrt()
    x = prev.sqrt() * x0 + (1 - prev - sigma**2).clamp(min=0).sqrt() * eps
    return x if noise is None else x + sigma * noise


class Guidance:
    """Classifier-free guidance (Ho & Salimans, 2022) in the standard notation; methods may replace it."""

    def start(self, n: int) -> None:
        """Called before sampling n images, to reset any state kept between steps."""

    def __call__(
        self, model: "Diffusion", x_t: Tensor, t: Tensor, i: int, condition: "Condition", null: "Condition", w: float
    ) -> Tensor:
        """Guided noise prediction (B, C, H, W) at step i, timesteps t (B,)."""
        if w == 1:
            return model.eps(x_t, t, condition)
        eps_null, eps_c = model.eps(torch.cat([x_t, x_t]), torch.cat([t, t]), null.join(condition)).chunk(2)
        return eps_null + w * (eps_c - eps_null)


def sample(
    model: "Diffusion",
    condition: "Condition",
    seeds: Sequence[int],
    sampler: Sampler,
    start: tuple[Tensor, int] | None = None,
    until: int | Tensor = 0,
    hook: Hook | None = None,
) -> Tensor:
    """Run the sampler and return x (B, C, H, W), still in the model's own range.

    `start=(x_t, t)` begins at the first of the sampler's timesteps not above t. `until` (int or (B,)) is how many of
    the last steps to skip, for each image: 0 gives x0, k gives x_t at the k-th timestep from the end.
    """
    every = timesteps(sampler.steps, len(model.alpha_bar))
    after = [*every[1:], -1]
    device = model.alpha_bar.device
    if start is None:
        x = gaussian_noise(seeds, START, model.shape, device)
        first = 0
    else:
        x, first = start[0].to(device), next((i for i, t in enumerate(every) if t <= start[1]), len(every))
    stop = sampler.steps - torch.as_tensor(until, device=device).expand(len(seeds))
    null = model.null(len(seeds))
    model.guidance.start(len(seeds))
    one = torch.ones((), device=device)
    for i in range(first, int(stop.max()) if len(seeds) else 0):
        if hook:
            hook(i, every[i], x)
        t = torch.full((len(seeds),), every[i], device=device)
        eps = model.guidance(model, x, t, i, condition, null, sampler.guidance)
        now, prev = model.alpha_bar[every[i]], model.alpha_bar[after[i]] if after[i] >= 0 else one
        noisy = sampler.eta > 0 and after[i] >= 0
        noise = gaussian_noise(seeds, every[i], model.shape, device).to(x) if noisy else None
        x = torch.where((stop > i).view(-1, 1, 1, 1), ddim_step(x, eps, now, prev, sampler.eta, noise, model.clip), x)
    return x
