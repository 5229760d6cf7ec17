"""Read checkpoint files as named tensors: safetensors, or pickles that hold only tensors."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import Tensor

from unlearnbench.data.weight_names import WEIGHT_SUFFIXES, choose_weights
from unlearnbench.errors import UserError, one_line
from unlearnbench.printable import printable

COUNTERS = {"epoch", "global_step", "iteration", "pytorch-lightning_version", "step"}
"""Entries that trainers store next to the weights."""
SHARD = re.compile(r"-(\d+)-of-(\d+)")
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
    return named_tensors(path, read_file(path))


def read_file(path: Path) -> Any:
    """Read what a file holds: tensors by name, or the object that `torch.save` was given."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not _is_safetensors(path):
        return _unpickled(path, "cpu")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, one_line(error)) from error


def weight_files(folder: Path) -> list[Path]:
    """List the files of one network's weights in its folder: one file, or all shards.

    As in diffusers, the plain weights come before variants such as fp16, and safetensors before pickles. Raises
    `UserError` if there are no weights, several that could be meant, or too few shards.
    """
    files = sorted(file.name for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    indexes = sorted(folder.glob("*.index*.json"))
    if indexes and not any(SHARD.search(name) for name in files) and not choose_weights(files):
        raise UserError(f"{folder} has {indexes[0].name}, but none of its shards: copy them there too")
    chosen = choose_weights(files)
    if not chosen:
        have = ", ".join(files) or f"no {', '.join(WEIGHT_SUFFIXES)} file"
        raise UserError(
            f"{folder} is no folder of one model's weights (it has {have}): give a diffusers folder with unet/ or "
            "text_encoder/, or name the file"
        )
    _require_shards(folder, chosen)
    return [folder / name for name in chosen]


def _require_shards(folder: Path, names: list[str]) -> None:
    """Name the first shard that is missing."""
    found = SHARD.search(names[0])
    if found is None:
        return
    digits, count = len(found[1]), int(found[2])
    for number in range(1, count + 1):
        wanted = names[0][: found.start(1)] + f"{number:0{digits}}" + names[0][found.end(1) :]
        if wanted not in names:
            raise UserError(f"{folder} lacks {wanted}, one of {count} shards: copy it there too")


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

    _require_stored(path)
    allowing = getattr(torch.serialization, "safe_globals", nullcontext)  # torch 2.4 refuses such files
    try:
        with path.open("rb") as file, allowing(_stand_ins()):  # given a path, torch decides by its suffix
            return torch.load(file, map_location=device, weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path} is a pickle that holds more than tensors, and could run code: save "
            "`model.state_dict()` again, with torch.save or as safetensors"
        ) from error
    except Exception as error:  # a damaged pickle can raise any error
        raise _damaged(path, one_line(error)) from error


def _require_stored(path: Path) -> None:
    """Refuse a zip that torch.save did not write: it stores tensors as they are, while a small compressed entry may be
    terabytes once unpacked.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise _damaged(path, one_line(error)) from error
    if not any(item.filename.endswith("data.pkl") for item in entries):
        raise UserError(
            f"{path} is an archive of files and no file of torch.save: unpack it, and give the file or folder of one "
            "model's weights"
        )
    packed = [item.filename for item in entries if item.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise UserError(
            f"{path} holds {printable(packed[0])!r} compressed, which torch.save never does: save the weights again "
            "with torch.save or as .safetensors"
        )


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


def named_tensors(path: Path, value: Any) -> dict[str, Tensor]:
    """Collect the tensors of a loaded object by name."""
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
