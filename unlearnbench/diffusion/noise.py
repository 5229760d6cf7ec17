"""Gaussian noise that depends only on image seed and timestep.

Philox is written here because torch's generators draw one stream for a whole batch, which differs between CPU and CUDA:
image b could not be drawn again by itself, in another batch size or on another device.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

START = 1 << 20
"""Timestep used for the noise that sampling starts from; no schedule is that long."""
WORD = 0xFFFFFFFF


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


def noise_keys(seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Philox's keys (B, 2) of these seeds, for `gaussian_noise`: a loop makes them once, since a GPU has to wait."""
    halves = [(seed & WORD, seed >> 32 & WORD) for seed in seeds]
    return torch.tensor(halves, dtype=torch.int64, device=device).view(-1, 2)


def gaussian_noise(
    seeds: Sequence[int] | Tensor, t: int, shape: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal noise (B, *shape), float32. Row b depends only on (seeds[b], t); `noise_keys` may take the
    place of the seeds.

    It is the same on every device (the words are integers; logarithm and cosine, in float64, may differ in the last
    bit), so images are paired across methods, batch sizes, shards and machines. The Philox words are transformed by
    Box-Muller; `t` is the timestep, or `START` for the noise that sampling starts from.
    """
    size = math.prod(shape)
    blocks = -(-size // 4)
    keys = (seeds if isinstance(seeds, Tensor) else noise_keys(seeds, device)).view(-1, 1, 2)
    counter = torch.zeros(len(keys), blocks, 4, dtype=torch.int64, device=device)
    counter[..., 0] = torch.arange(blocks, device=device)
    counter[..., 1] = t
    uniform = (philox(counter, keys).double() + 0.5) / 2.0**32  # never 0, so that the logarithm is finite
    radius, angle = (-2 * uniform[..., :2].log()).sqrt(), 2 * math.pi * uniform[..., 2:]
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1).float()
    return normal.view(len(keys), 4 * blocks)[:, :size].reshape(len(keys), *shape)
