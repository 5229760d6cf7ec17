"""Read checkpoint files as named tensors: safetensors, or pickles that hold only tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import Tensor

from unlearnbench.errors import UserError, one_line

COUNTERS = {"epoch", "global_step", "iteration", "pytorch-lightning_version", "step"}
"""Entries that trainers store next to the weights."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
WHOLE = ("diffusion_pytorch_model", "model", "pytorch_model", "adapter_model", "pytorch_lora_weights")
"""Names, without suffix, under which diffusers, transformers and PEFT save weights. Variants have a word after it, such
as fp16 and non_ema."""
POINTER = b"version https://git-lfs"
TRAINERS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)
"""What the trainer's entries of Stable Diffusion's .ckpt files name beside tensors, as read from the list of
AUTOMATIC1111/stable-diffusion-webui at 0593384, modules/safe.py."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a file's tensors by name. Nested dictionaries are joined by dots; `state_dict` is unpacked.

    The kind of file is detected by its first bytes. A pickle that could run code when loaded is refused.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not _is_safetensors(path):
        return _tensors(path, _unpickled(path, "cpu"))
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, one_line(error)) from error


def weight_files(folder: Path) -> list[Path]:
    """List the files of one network's weights in its folder: one file, or all shards.

    As in diffusers, the plain weights come before variants such as fp16, and safetensors before pickles. Raises
    `UserError` if there are no weights, several that could be meant, or too few shards.
    """
    states: dict[str, list[Path]] = {}
    files = sorted(file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    for file in files:
        states.setdefault(re.sub(r"-\d+-of-\d+", "", file.name), []).append(file)
    for index in sorted(folder.glob("*.index*.json")):
        states.setdefault(re.sub(r"(\.\w+)\.index(\.\w+)?\.json$", r"\2\1", index.name), [])
    plain = [name + suffix for suffix in WEIGHT_SUFFIXES for name in WHOLE if name + suffix in states]
    others = [name for name in states if name.endswith(".safetensors")] or list(states)
    if not plain and len(others) != 1:
        have = ", ".join(file.name for file in files) or f"no {', '.join(WEIGHT_SUFFIXES)} file"
        raise UserError(
            f"{folder} is no folder of one model's weights (it has {have}): give a diffusers folder with unet/ or "
            "text_encoder/, or name the file"
        )
    name = (plain or others)[0]
    return _whole(folder, name, states[name])


def _whole(folder: Path, name: str, files: list[Path]) -> list[Path]:
    """The single file, or all of its shards; a missing shard is named."""
    shards = {file: found for file in files if (found := re.search(r"-(\d+)-of-(\d+)", file.name))}
    single = [file for file in files if file not in shards]
    if single:
        return single
    if not shards:
        raise UserError(f"{folder} has the index of {name}, but none of its shards: copy them there too")
    some, found = next(iter(shards.items()))
    digits, count = len(found[1]), int(found[2])
    for number in range(1, count + 1):
        wanted = some.name[: found.start(1)] + f"{number:0{digits}}" + some.name[found.end(1) :]
        if folder / wanted not in shards:
            raise UserError(f"{folder} lacks {wanted}, one of {count} shards: copy it there too")
    return files


def first_keys(path: Path, count: int = 3) -> list[str]:
    """Read the names of a checkpoint's first tensors, without the tensors."""
    if _is_safetensors(path):
        return sorted(_opened(path)[0])[:count]
    return sorted(_tensors(path, _unpickled(path, "meta")))[:count]


def metadata(path: Path) -> dict[str, str]:
    """Read the metadata in a safetensors file's header; empty for other files."""
    return _opened(path)[1] if _is_safetensors(path) else {}


def _opened(path: Path) -> tuple[list[str], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, one_line(error)) from error


def _is_safetensors(path: Path) -> bool:
    """Detect safetensors by the first bytes: a header's length and a brace. Zips and bare pickles are torch's."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise _damaged(path, one_line(error)) from error
    if head[8:] == b"{":
        return True
    if head == POINTER[: len(head)] and head:
        raise UserError(f"{path} is a pointer of Git LFS, not the weights: get them with `git lfs pull`")
    if head[:2] != b"PK" and head[:1] != b"\x80":
        raise _damaged(path, "it begins as neither safetensors nor a file of torch.save")
    return False


def _unpickled(path: Path, device: str) -> Any:
    import torch

    allowing = getattr(torch.serialization, "safe_globals", nullcontext)  # torch 2.4 refuses such files
    try:
        with path.open("rb") as file, allowing(_stand_ins()):  # given a path, torch decides by its suffix
            return torch.load(file, map_location=device, weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path} is a pickle that holds more than tensors, and could run code: convert it to .safetensors first"
        ) from error
    except Exception as error:  # a damaged pickle can raise any error
        raise _damaged(path, one_line(error)) from error


def _stand_ins() -> list[type]:
    """Empty classes under the names in `TRAINERS`: whatever a file does with them, nothing of the libraries runs."""

    def ignore(self: Any, *args: Any) -> None:
        pass

    made = []
    for full in TRAINERS:
        module, _, name = full.rpartition(".")
        about = {"__module__": module, "__qualname__": name, "__init__": ignore, "__setstate__": ignore}
        made.append(type(name, (), about))
    return made


def _tensors(path: Path, value: Any) -> dict[str, Tensor]:
    """The named tensors of a loaded pickle."""
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
    elif isinstance(value.get("state_dict"), Mapping):  # everything next to it is the trainer's
        yield from _leaves(value["state_dict"], prefix)
    else:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}{key}.")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} cannot be loaded ({reason[:160]}): it is damaged, incomplete or no checkpoint: get the file again"
    )
