"""Writes the CIFAR-10 network as the diffusers folder that `unlearnbench.models.ddpm_folder` reads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unlearnbench.models.ddpm import ConditionalDDPM
from unlearnbench.models.ddpm_folder import LABELS, TIME, UNET
from unlearnbench.storage.weights import save_state

OWN = ("classes_emb.", "null_classes_emb", "cemb.")
"""Beginnings of the names of the class embedding's weights."""


def write_folder(model: ConditionalDDPM, folder: Path) -> None:
    """Save the model as `unet/` and `class_embedding/`, the time's layers padded."""
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    unet = {name.removeprefix("unet."): value for name, value in state.items() if name.startswith("unet.")}
    for name in [name for name in unet if name.startswith(TIME)]:
        unet[name] = _padded(unet[name], name)
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    (folder / "class_embedding").mkdir(parents=True, exist_ok=True)
    model.unet.save_config(folder / "unet")
    save_state(unet, folder / UNET)
    save_state({name: value for name, value in state.items() if name.startswith(OWN)}, folder / LABELS)


def _padded(value: Tensor, name: str) -> Tensor:
    """Twice the rows, and for the second layer's matrix twice the columns; zeros in what is new."""
    rows = torch.cat([value, torch.zeros_like(value)])
    return torch.cat([rows, torch.zeros_like(rows)], dim=1) if name == f"{TIME}linear_2.weight" else rows
