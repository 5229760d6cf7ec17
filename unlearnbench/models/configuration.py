"""What a model folder's configuration files say, as far as training and sampling can depend on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unlearnbench.errors import UserError, one_line
from unlearnbench.hashing import digest, file_hash

FOLDERS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae", "class_embedding")
"""Parts of a diffusers folder that this package loads; safety checkers and image processors are not among them."""
LEFT_OUT = {
    "_diffusers_version": "the version of the library that wrote the file",
    "transformers_version": "the version of the library that wrote the file",
    "_name_or_path": "where the file was copied from",
    "_commit_hash": "where the file was copied from",
}
"""Fields that no result depends on, each with the reason."""


def configuration(folder: Path) -> dict[str, str]:
    """File below a diffusers folder -> hash of what it says: model_index.json, and .json and .txt files of its parts.

    Layout and the order of keys do not count, nor do the fields of `LEFT_OUT`.
    """
    files = [folder / "model_index.json", *(path for part in FOLDERS for path in (folder / part).glob("*"))]
    kept = [path for path in files if path.suffix in (".json", ".txt") and path.is_file()]
    kept = [path for path in kept if not path.name.endswith(".index.json")]  # where weights lie, not what they are
    return {path.relative_to(folder).as_posix(): _hash(path) for path in sorted(kept)}


def _hash(path: Path) -> str:
    if path.suffix == ".txt":
        return file_hash(path)
    try:
        return digest(_without(json.loads(path.read_bytes())))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({one_line(error)}): put the model's own file there") from error


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner) for name, inner in value.items() if name not in LEFT_OUT}
    return [_without(inner) for inner in value] if isinstance(value, list) else value
