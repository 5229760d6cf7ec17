"""The CIFAR-10 network as a diffusers folder: `unet/`, a plain `UNet2DModel`, and `class_embedding/` for its labels.

A plain UNet2DModel adds time and class embeddings, while the papers' network concatenates them. Both compute the same
function if the embeddings are twice as wide and each is zero where the other is not: here the time's layers are padded
with zeros, and the class's half is what a user passes as `class_labels`. The zeros are not weights: they are removed on
reading, so that they cannot be trained.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unlearnbench.errors import UserError
from unlearnbench.models.ddpm import ConditionalDDPM
from unlearnbench.storage.weights import load_state, save_state

UNET, LABELS = "unet/diffusion_pytorch_model.safetensors", "class_embedding/model.safetensors"
OWN = ("classes_emb.", "null_classes_emb", "cemb.")
TIME = "time_embedding."


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


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Read a `ConditionalDDPM`'s state from such a folder. Missing files and padding other than zero are refused."""
    for name in (UNET, LABELS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}: a diffusers folder of the CIFAR-10 network holds {UNET} and {LABELS}"
            )
    state = {f"unet.{name}": value for name, value in load_state(folder / UNET).items()}
    for name in [name for name in state if name.startswith(f"unet.{TIME}")]:
        state[name] = _cut(state[name], name, folder)
    return {**state, **load_state(folder / LABELS)}


def _cut(value: Tensor, name: str, folder: Path) -> Tensor:
    rows = len(value) // 2
    kept = value[:rows, : value.shape[1] // 2] if name.endswith("linear_2.weight") else value[:rows]
    if len(value) % 2 or value.count_nonzero() != kept.count_nonzero():
        raise UserError(
            f"{folder / UNET}: {name.removeprefix('unet.')} is not zero where the class embedding stands: the port was "
            "trained with its padding, and is another network than the papers'"
        )
    return kept.clone()
