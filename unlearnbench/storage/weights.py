"""Weights on disk: safetensors with a manifest of hashes. Files that could contain code are refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from unlearnbench.errors import Damaged, UserError
from unlearnbench.hashing import state_hash


def save_state(state: dict[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors. Raises OSError if the disk cannot take them."""
    from safetensors.torch import save_file

    with full_disk():
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(tensors, path, metadata={"format": "pt"})  # transformers does not read files without it
    path.chmod(0o644)  # the library makes it readable for its owner only


@contextmanager
def full_disk() -> Iterator[None]:
    """Turn safetensors' own error for a full disk into an OSError within this block."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from error


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Other kinds, especially pickles, are refused by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"no weights at {path}: give a .safetensors file that exists")
    with path.open("rb") as file:
        head = file.read(9)
    # Safetensors begin with the header's length and a brace; PK is a zip, 0x80 and a protocol number a bare pickle.
    if head[8:] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80"):
        raise UserError(f"{path} is a pickle, which can run code when loaded: save its tensors again as .safetensors")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise Damaged(f"{path} is not a readable safetensors file ({error}): copy or make it again") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the folder's manifest: seed, recipe and hashes of its weights."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"no manifest.json in {folder}: make the weights with `unlearnbench pretrain --task TASK --out {folder}`"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(manifest["seed"], int) and isinstance(manifest["hashes"], dict):
            return manifest
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} is damaged: delete the folder and make it again with `unlearnbench pretrain`") from error
    raise Damaged(f"{path} is damaged: delete the folder and make it again with `unlearnbench pretrain`")


def load_checked(folder: Path, name: str) -> tuple[dict[str, Tensor], str]:
    """Read the tensors of folder/name and their hash, which must match the folder's manifest."""
    expected = read_manifest(folder)["hashes"].get(name)
    state = load_state(folder / name)
    if (found := state_hash(state)) != expected:
        raise Damaged(
            f"{folder / name} is damaged: its content hash is {found[:12]}, the manifest says {str(expected)[:12]}; "
            "install unlearnbench again or train the weights again with `unlearnbench pretrain`"
        )
    return state, found


def make_once(
    folder: Path,
    names: str | tuple[str, ...],
    make: Callable[[], Any],
    *,
    seed: int,
    recipe: dict[str, float],
) -> None:
    """Make folder/name and enter its hash in the manifest, unless it exists under this seed and recipe.

    If several names are made together, `make` returns a state for each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.json"
    entry = read_manifest(folder) if manifest.is_file() else {}
    if entry.get("seed") != seed or entry.get("recipe") != recipe:
        entry = {"seed": seed, "recipe": recipe, "hashes": {}}
    every = (names,) if isinstance(names, str) else names
    if all(name in entry["hashes"] and (folder / name).is_file() for name in every):
        try:
            for name in every:
                load_checked(folder, name)
            return
        except Damaged:
            pass
    made = make()
    for name, state in {names: made}.items() if isinstance(names, str) else made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_state(state, folder / name)
        entry["hashes"][name] = state_hash(state)
    manifest.write_text(json.dumps(entry, indent=2, sort_keys=True) + "\n", encoding="utf-8")
