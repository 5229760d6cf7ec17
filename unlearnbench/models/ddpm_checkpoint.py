"""Checkpoints of the papers' CIFAR-10 code: a pickled list of states, raw weights first and their average last."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from unlearnbench.errors import UserError
from unlearnbench.models.ddpm_folder import UNET, read_folder
from unlearnbench.models.external.training_files import Form, training_weights

TRAINED_HERE = "model.safetensors"


def read_pth(path: Path, which: Form | None) -> dict[str, Tensor]:
    """Read the raw weights or their exponential moving average from `torch.save([model, optimiser, step, ema])`.

    Other training checkpoints and plain state dictionaries, also in safetensors, are read as well. SalUn's unlearned
    files have three entries and no average; the error says so. Files that could run code are refused.

    Which of the two the papers sample: raw weights in Unlearn-Saliency (`DDPM/configs/cifar10_sample.yml`, line 25, at
    a6e89fd) and Unified-Unlearning-w-Remain-Geometry (the same file, at 36bb7f6); the average in selective-amnesia
    (`ddpm/configs/cifar10_sample.yml`, line 25, at b736571) and EraseDiff (`ddpm/configs/cifar10_sample_erasediff.yml`,
    line 25, at 14f4e98).
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: give a .pth file that exists")
    return training_weights(path, which)


def read_ddpm(place: Path, which: Form | None) -> dict[str, Tensor]:
    """Read a CIFAR-10 checkpoint: a diffusers folder, which has one form, or a file in the given form.

    A folder of `unlearnbench pretrain` has one form too.
    """
    if (place / TRAINED_HERE).is_file() and not (place / UNET).is_file():
        return training_weights(place / TRAINED_HERE)
    return read_folder(place) if place.is_dir() else read_pth(place, which)
