"""Checkpoint files as named tensors: safetensors, or pickles of tensors and nothing that runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import Tensor

from unlearnbench.errors import UserError, one_line

COUNTERS = {"epoch", "global_step", "iteration", "pytorch-lightning_version", "step"}
"""What trainers write beside the weights."""


def read_state(path: Path) -> dict[str, Tensor]:
    """A file's tensors by name; nested dictionaries are joined by dots, `state_dict` is looked into.

    The kind of file is read off its first bytes. A pickle that could run code when loaded is refused.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not _is_safetensors(path):
        return _tensors(path, _unpickled(path, "cpu"))
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, one_line(error)) from error


def first_keys(path: Path, count: int = 3) -> list[str]:
    """Names of a checkpoint's first tensors, read without the tensors."""
    if _is_safetensors(path):
        return sorted(_opened(path)[0])[:count]
    return sorted(_tensors(path, _unpickled(path, "meta")))[:count]


def metadata(path: Path) -> dict[str, str]:
    """The remarks in a safetensors file's header; none in other files."""
    return _opened(path)[1] if _is_safetensors(path) else {}


def _opened(path: Path) -> tuple[list[str], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, one_line(error)) from error


def _is_safetensors(path: Path) -> bool:
    """By the first bytes: a header's length and a brace; a zip and a bare pickle are torch's own kinds."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise _damaged(path, one_line(error)) from error
    if head[8:] == b"{":
        return True
    if head[:2] != b"PK" and head[:1] != b"\x80":
        raise _damaged(path, "it begins as neither safetensors nor a file of torch.save")
    return False


def _unpickled(path: Path, device: str) -> Any:
    import torch

    try:
        with path.open("rb") as file:  # by a path, torch goes by its suffix
            return torch.load(file, map_location=device, weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path} is a pickle that holds more than tensors, and could run code: convert it to .safetensors first"
        ) from error
    except Exception as error:  # a damaged pickle fails in any way there is
        raise _damaged(path, one_line(error)) from error


def _tensors(path: Path, value: Any) -> dict[str, Tensor]:
    """The named tensors of what a pickle held."""
    found: dict[str, Tensor] = {}
    for name, leaf in _leaves(value):
        if isinstance(leaf, Tensor):
            found[name] = leaf.detach()
        elif name not in COUNTERS:
            raise UserError(
                f"{path} holds {name or 'a value'} of type {type(leaf).__name__} where tensors should be: "
                "save the state dictionary alone"
            )
    return found


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield prefix.removesuffix("."), value
    elif isinstance(value.get("state_dict"), Mapping):  # what lies beside it is the trainer's
        yield from _leaves(value["state_dict"], prefix)
    else:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}{key}.")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} cannot be loaded ({reason[:160]}): it is damaged, or no checkpoint")
