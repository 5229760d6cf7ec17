"""The images of `digits-text`: UCI digits, enlarged, in six colours."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from unlearnbench.diffusion import Batch
from unlearnbench.judges.coloured_digits import PALETTE, enlarged, painted
from unlearnbench.models import miniature
from unlearnbench.tasks.digits_class import splits
from unlearnbench.weights import load_checked


@lru_cache(maxsize=4)
def images(split: str) -> Batch:
    """Every digit of a split in every colour, (N, 3, 16, 16) in [-1, 1]; y are pairs (digit, colour) (N, 2)."""
    x0, y = splits()[split]
    grey, palette = enlarged(x0), torch.tensor(list(PALETTE.values()))
    every = [painted(grey, rgb.expand(len(grey), 3)) for rgb in palette]
    shown = [torch.stack([y, torch.full_like(y, colour)], dim=1) for colour in range(len(palette))]
    return Batch(torch.cat(every), torch.cat(shown))


def pairs(split: str) -> Tensor:
    """What they show: (digit, colour) (N, 2)."""
    return images(split).y


@lru_cache(maxsize=2)
def latents(split: str, folder: Path) -> Tensor:
    """The split's images through the folder's VAE, (N, 4, 8, 8), scaled."""
    state, _ = load_checked(folder, miniature.FILES["vae"])
    return miniature.encoded(state, images(split).x0)
