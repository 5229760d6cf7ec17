"""Delete cached samples of unsafe tasks, and the training images that were generated for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from unlearnbench.errors import UserError

KINDS = {"samples": "meta.json", "generated": "about.json", "verify": "about.json", "checkpoints": "about.json"}
"""Folders of the store that hold images or latents, and the file that names an entry's task. Entries that `verify`
left behind for an unsafe task have no such file."""


class StoreFolder(NamedTuple):
    """One folder of the store."""

    folder: Path

    def delete(self, spare: bool = False) -> int:
        """Delete the folder unless `spare` is set; returns its size in bytes."""
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        if not spare:
            try:
                shutil.rmtree(self.folder)
            except OSError as error:
                why = (error.strerror or str(error)).lower()
                raise UserError(f"cannot delete {self.folder} ({why}): make it writable and purge again") from error
        return size


def unsafe_entries(root: Path, tasks: Collection[str]) -> Iterator[StoreFolder]:
    """Yield the entries of these tasks that hold images or latents. An entry that names no task counts as unsafe."""
    for kind, name in KINDS.items():
        for folder in sorted((root / kind).glob("*")):
            if folder.is_dir() and _task(folder / name) in (*tasks, None):
                yield StoreFolder(folder)


def _task(path: Path) -> str | None:
    try:
        values = json.loads(path.read_bytes())
        return str(values.get("parts", values)["task"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
