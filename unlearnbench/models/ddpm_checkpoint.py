"""Checkpoints of the papers' CIFAR-10 code: a pickled list of states, raw weights first and their average last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

from torch import Tensor

from unlearnbench.errors import UserError, one_line

Which = Literal["raw", "ema"]


def read_pth(path: Path, which: Which) -> dict[str, Tensor]:
    """Read the raw weights or their exponential moving average from `torch.save([model, optimiser, step, ema])`.

    SalUn's unlearned files have three entries and no average; the error says so. Files that could run code are refused.
    """
    states = _opened(path)
    if not isinstance(states, (list, tuple)) or not states or not _is_state(states[0]):
        raise UserError(
            f"{path} is no checkpoint of the CIFAR-10 papers ({_shape(states)}): give a list of the model's state, the "
            "optimiser's, a step, the average's"
        )
    if which == "raw":
        return dict(states[0])
    if len(states) < 4 or not _is_state(states[-1]):
        raise UserError(
            f"{path} has no running mean ({_shape(states)}): ask for its raw weights, as --protocol salun-iclr24 does"
        )
    raw, mean = {key.removeprefix("module."): value for key, value in states[0].items()}, dict(states[-1])
    return {**{key: value for key, value in raw.items() if key not in mean}, **mean}  # buffers are not averaged


def _opened(path: Path) -> Any:
    import torch

    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: give a .pth file that exists")
    try:
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path} is a pickle that holds more than tensors, and could run code: convert it to .safetensors first"
        ) from error
    except Exception as error:  # a damaged file can raise any error
        raise UserError(
            f"{path} cannot be loaded ({one_line(error)[:160]}): it is damaged, or no file of torch.save"
        ) from error


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(each, Tensor) for each in value.values())


def _shape(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"it is a list of {', '.join(type(each).__name__ for each in value) or 'nothing'}"
    return f"it is a {type(value).__name__}"
