"""The images of `digits-text`: UCI digits, enlarged, in six colours."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnbench.diffusion.model import Batch
from unlearnbench.judges.coloured_digits import PALETTE, enlarged, painted
from unlearnbench.tasks.digits_class import splits


@lru_cache(maxsize=4)
def images(split: str) -> Batch:
    """Every digit of a split in every colour, (N, 3, 16, 16) in [-1, 1]; y are pairs (digit, colour) (N, 2)."""
    x0, y = splits()[split]
    grey, palette = enlarged(x0), torch.tensor(list(PALETTE.values()))
    every = [painted(grey, rgb.expand(len(grey), 3)) for rgb in palette]
    shown = [torch.stack([y, torch.full_like(y, colour)], dim=1) for colour in range(len(palette))]
    return Batch(torch.cat(every), torch.cat(shown))


def digit_colours(split: str) -> Tensor:
    """The pairs (digit, colour) (N, 2) that the images show."""
    return images(split).y


@lru_cache(maxsize=2)
def latents(split: str, folder: Path) -> Tensor:
    """The split's images encoded by the folder's VAE, (N, 4, 8, 8), scaled."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True, low_cpu_mem_usage=False)
    vae = vae.float().eval()
    with torch.inference_mode():
        x0 = torch.cat([vae.encode(some).latent_dist.mode() for some in images(split).x0.split(500)])
    return x0.clone() * vae.config.scaling_factor
