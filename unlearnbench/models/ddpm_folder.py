"""The CIFAR-10 network as a diffusers folder: `unet/`, a plain `UNet2DModel`, and `class_embedding/` for its labels.

A plain UNet2DModel adds time and class embeddings, while the papers' network concatenates them. Both compute the same
function if the embeddings are twice as wide and each is zero where the other is not: here the time's layers are padded
with zeros, and the class's half is what a user passes as `class_labels`. The zeros are not weights: they are removed on
reading, so that they cannot be trained.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from unlearnbench.errors import UserError
from unlearnbench.storage.weights import load_state

UNET, LABELS = "unet/diffusion_pytorch_model.safetensors", "class_embedding/model.safetensors"
TIME = "time_embedding."


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
