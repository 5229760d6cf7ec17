"""Dropout that stays on while images are drawn, as the scripts of some papers leave it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unlearnbench.diffusion.noise import WORD, philox

HALF = 1 << 16
"""A 32-bit word gives two random numbers below this."""
AT_ONCE = 1 << 24
"""Elements whose random numbers are in memory at the same time."""


def kept(
    seeds: Sequence[int], call: int, layer: int, part: int, shape: Sequence[int], p: float, device: torch.device | str
) -> Tensor:
    """Which elements (B, *shape) dropout keeps, each with probability 1 - p; row b depends only on seeds[b], the layer,
    which of its calls this is, and the part of the batch (0 for the first condition of guidance, 1 for the second).
    """
    size = math.prod(shape)
    blocks = -(-size // 8)
    keys = torch.tensor([(seed & WORD, seed >> 32 & WORD) for seed in seeds], dtype=torch.int64, device=device)
    counter = torch.empty(len(keys), blocks, 4, dtype=torch.int64, device=device)
    counter[..., 0] = torch.arange(blocks, device=device)
    counter[..., 1], counter[..., 2], counter[..., 3] = call, layer + 1, part  # noise has 0 in the third
    words = philox(counter, keys.view(-1, 1, 2))
    halves = torch.stack([words % HALF, words // HALF], dim=-1).view(len(keys), 8 * blocks)
    return (halves[:, :size] >= round(p * HALF)).view(len(keys), *shape)


@contextmanager
def dropping(model: nn.Module, seeds: Sequence[int]) -> Iterator[None]:
    """Let the model's dropout act within this block, also in evaluation mode, while it draws images of these seeds.

    A batch holds the images once, or several times one after the other, as guidance asks for two conditions. Each image
    has masks of its own, so that it is the same in any batch and on any device.
    """
    calls: Counter[int] = Counter()
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    number = {id(module): index for index, module in enumerate(layers)}

    def hook(module: nn.Dropout, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, layer = given[0], number[id(module)]
        if len(x) % len(seeds):
            raise ValueError(f"a batch of {len(x)} is no multiple of {len(seeds)} images")
        call, calls[layer] = calls[layer], calls[layer] + 1
        some = max(1, AT_ONCE // max(1, x[0].numel()))
        result = torch.empty_like(x)
        for start in range(0, len(x), len(seeds)):
            for first in range(0, len(seeds), some):
                few = seeds[first : first + some]
                rows = slice(start + first, start + first + len(few))
                mask = kept(few, call, layer, start // len(seeds), x.shape[1:], module.p, x.device)
                result[rows] = torch.where(mask, x[rows] / (1 - module.p), 0)
        return result

    hooks = [module.register_forward_hook(hook) for module in layers]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
