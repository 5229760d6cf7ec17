"""Content keys and seeds. Everything that must be reproducible is derived from named parts."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def digest(value: Any) -> str:
    """Return the SHA-256 (hex) of a JSON-serialisable value. The order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def seed_of(*parts: Any) -> int:
    """Derive a 64-bit seed from named parts, e.g. `seed_of("sampling", 0, "3", 17)`; it is the same on all machines."""
    return int(digest(list(parts))[:16], 16)


def file_hash(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(file)


def _slow(file: Any) -> str:
    state = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := file.read(1 << 20):
        state.update(block)
    return state.hexdigest()


def state_hash(state: "Mapping[str, Tensor]") -> str:
    """Return the SHA-256 (hex) of named tensors: names, dtypes, shapes and bytes, on whatever device they are."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.flatten().view(_bytes()).numpy().tobytes())
    return total.hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8
