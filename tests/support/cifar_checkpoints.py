"""Unlearned CIFAR-10 checkpoints in the shape in which the papers' code saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tests.support.ddpm_reference import Reference


class Saved(NamedTuple):
    """What one repository's training loop hands to `torch.save`."""

    source: str
    """Repository, commit, file and lines of the save, and where its configuration says whether there is an average."""
    file: str
    """The name that it saves under."""
    average: bool
    """Whether the list ends with the state of its EMAHelper, whose keys lack DataParallel's "module."."""
    sampled: str
    """The weights that its sample.py draws with: "raw" or "ema"."""


SAVED = {
    "selective_amnesia": Saved(
        "clear-nus/selective-amnesia@b736571 ddpm/runners/diffusion.py:337-349, configs/cifar10_forget.yml:25",
        "ckpt.pth",
        True,
        "ema",
    ),
    "erasediff": Saved(
        "JingWu321/EraseDiff@14f4e98 ddpm/runners/diffusion.py:913-924, configs/cifar10_erasediff.yml:25",
        "ckpt_latest.pth",
        True,
        "ema",
    ),
    "salun": Saved(
        "OPTML-Group/Unlearn-Saliency@a6e89fd DDPM/runners/diffusion.py:599-610, "
        "configs/cifar10_saliency_unlearn.yml:25",
        "ckpt.pth",
        False,
        "raw",
    ),
    "sfron": Saved(
        "K1nght/Unified-Unlearning-w-Remain-Geometry@36bb7f6 DDPM/runners/diffusion.py:1188-1199, "
        "configs/cifar10_sfron.yml:25",
        "ckpt.pth",
        True,
        "raw",
    ),
}


def write(folder: Path, name: str, raw: nn.Module, average: nn.Module) -> Path:
    """Save a step of Adam on DataParallel's model as that repository does: [model, optimiser, step, (average)]."""
    about = SAVED[name]
    net = nn.DataParallel(raw)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-4)
    for value in net.parameters():
        value.grad = torch.zeros_like(value)  # the optimiser keeps moments of every weight, and moves none
    optimiser.step()
    states: list[Any] = [net.state_dict(), optimiser.state_dict(), 999]
    if about.average:
        states.append({key: value.data.clone() for key, value in average.named_parameters()})
    torch.save(states, folder / about.file)
    return folder / about.file


def pair(width: int, groups: int, seed: int = 0) -> tuple[Reference, Reference]:
    """Networks with raw weights and with another average."""
    torch.manual_seed(seed)
    return Reference(width=width, groups=groups), Reference(width=width, groups=groups)
