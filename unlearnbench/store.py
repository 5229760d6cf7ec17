"""Finished stages under content keys: what was made once from the same parts is not made again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from unlearnbench.errors import Damaged, UserError
from unlearnbench.hashing import digest, file_hash
from unlearnbench.weights import load_state, save_state

Made = tuple[dict[str, Tensor], dict[str, Any]]
DATA, META = "data.safetensors", "meta.json"


def default_root() -> Path:
    """`UNLEARNBENCH_CACHE`, or the platform's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("UNLEARNBENCH_CACHE") or user_cache_path("unlearnbench"))


class Store:
    """Entries root/<kind>/<key>/ of tensors and facts, written whole or not at all, checked on every reading."""

    def __init__(self, root: Path | None = None):
        self.root = root or default_root()

    def folder(self, kind: str, parts: dict[str, Any]) -> Path:
        """Where the entry made from these parts lies."""
        return self.root / kind / digest(parts)[:32]

    def has(self, kind: str, parts: dict[str, Any]) -> bool:
        """Whether the entry is there."""
        return (self.folder(kind, parts) / META).is_file()

    def stage(
        self,
        kind: str,
        parts: dict[str, Any],
        make: Callable[[], Made],
        force: bool = False,
        keep: Callable[[Made], bool] = lambda made: True,
    ) -> Made:
        """The entry for `parts`: read if there, else made and written. What fails, or `keep` denies, is not kept."""
        folder = self.folder(kind, parts)
        if not force and self.has(kind, parts):
            return self._read(folder)
        made = make()
        if keep(made):
            self._write(folder, parts, made)
        return made

    def _read(self, folder: Path) -> Made:
        try:
            entry = json.loads((folder / META).read_text())
            seal = entry.pop("seal")
            if seal != digest(entry):
                raise Damaged(f"{META} was changed")
            if file_hash(folder / DATA) != entry["data"]:
                raise Damaged(f"{DATA} was changed")
            return load_state(folder / DATA), entry["facts"]
        except (Damaged, UserError, ValueError, KeyError, AttributeError, TypeError, FileNotFoundError) as error:
            aside = folder.with_name(folder.name + ".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            raise Damaged(
                f"store entry {folder} is damaged ({error}): set aside as {aside.name}; "
                "run the same command again to make it anew"
            ) from error

    def _write(self, folder: Path, parts: dict[str, Any], made: Made) -> None:
        tensors, facts = made
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as temporary:
                new = Path(temporary) / "entry"
                new.mkdir()
                save_state(tensors, new / DATA)
                entry = {"parts": parts, "facts": facts, "data": file_hash(new / DATA)}
                (new / META).write_text(json.dumps({**entry, "seal": digest(entry)}, indent=1))
                for name in (DATA, META):
                    flush(new / name)
                if folder.exists():  # forced, or another process was first
                    folder.rename(Path(temporary) / "old")
                new.rename(folder)
        except OSError as error:
            raise UserError(cannot_write(self.root, error, "UNLEARNBENCH_CACHE")) from error


def flush(path: Path) -> None:
    """Make sure that the file is on the disk before it is renamed."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def cannot_write(path: Path, error: OSError, remedy: str) -> str:
    """One line for a folder that cannot be written."""
    what = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error)).lower()
    return f"cannot write to {path} ({what}): free it, or name another folder with {remedy}"
