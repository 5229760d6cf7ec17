"""Read a model folder's configuration files, as far as training and sampling can depend on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unlearnbench.errors import UserError, one_line
from unlearnbench.hashing import digest, file_hash

FOLDERS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae", "class_embedding")
"""Parts of a diffusers folder that this package loads; it loads no safety checkers or image processors."""
LEFT_OUT = {
    "_diffusers_version": "the version of the library that wrote the file",
    "transformers_version": "the version of the library that wrote the file",
    "_name_or_path": "where the file was copied from",
    "_commit_hash": "where the file was copied from",
}
"""Fields that no result depends on, with the reason for each."""


def configuration(folder: Path) -> dict[str, str]:
    """Map each configuration file of a diffusers folder to a hash of its content: model_index.json, and its parts'
    .json and .txt.

    Layout, the order of keys and the fields in `LEFT_OUT` do not count.
    """
    files = [folder / "model_index.json", *(path for part in FOLDERS for path in (folder / part).glob("*"))]
    kept = [path for path in files if path.suffix in (".json", ".txt") and path.is_file()]
    kept = [path for path in kept if not path.name.endswith(".index.json")]  # where weights are, not what they are
    return {path.relative_to(folder).as_posix(): configuration_digest(path) for path in sorted(kept)}


def configuration_digest(path: Path) -> str:
    """Hash what a .json file says, whatever its layout, or the bytes of a .txt file."""
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
