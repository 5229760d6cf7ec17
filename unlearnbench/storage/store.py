"""A store of finished stages under content keys: what was made from the same parts is not made again.

It is written here because no cache library combines what it needs: tensors as safetensors instead of pickles, entries
that appear whole or not at all on shared disks, and a hash check on every read.
"""

from __future__ import annotations

import contextlib
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
from unlearnbench.storage.files import cannot_write, flush, reason
from unlearnbench.storage.weights import load_state, save_state

Made = tuple[dict[str, Tensor], dict[str, Any]]
DATA, META = "data.safetensors", "meta.json"


class Store:
    """Entries root/<kind>/<key>/ of tensors and facts. They are written as a whole and checked on every read."""

    def __init__(self, root: Path | None = None):
        self.root = root or default_root()
        self.touched: dict[Path, None] = {}
        """Entries that were requested, relative to the root, in order; a job passes them on to later jobs."""

    def folder(self, kind: str, parts: dict[str, Any]) -> Path:
        """Folder of the entry made from these parts."""
        return self.root / kind / digest(parts)[:32]

    def has(self, kind: str, parts: dict[str, Any]) -> bool:
        """Whether the entry exists."""
        return (self.folder(kind, parts) / META).is_file()

    def stage(
        self,
        kind: str,
        parts: dict[str, Any],
        make: Callable[[], Made],
        force: bool = False,
        keep: Callable[[Made], bool] = lambda made: True,
    ) -> Made:
        """Return the entry for `parts`: read it if it exists, else make and store it. Failures, and entries that `keep`
        rejects, are not stored.
        """
        folder = self.folder(kind, parts)
        self.touched[folder.relative_to(self.root)] = None
        if not force and (found := self._read(folder)):
            return found
        made = make()
        if keep(made) and not self._write(folder, parts, made, force):
            return self._read(folder) or made  # another process was faster: both continue from its entry
        return made

    def reader(self, kind: str, parts: dict[str, Any], name: str, made: Made) -> Callable[[], Tensor]:
        """Return a function that reads one tensor of an entry from disk. If the entry was not stored, the tensor stays
        in memory.
        """
        path = self.folder(kind, parts) / DATA
        if not self.has(kind, parts):
            return lambda: made[0][name]
        return lambda: load_state(path)[name]

    def _read(self, folder: Path) -> Made | None:
        """Read the entry; None if there is none. A damaged entry is reported and moved aside."""
        damage: Exception | None = None
        for _ in range(2):  # another process may have replaced the entry while its two files were read
            if not (folder / META).is_file():
                return None
            try:
                return _checked(folder)
            except (Damaged, UserError, ValueError, KeyError, AttributeError, TypeError, FileNotFoundError) as error:
                damage = error
            except OSError as error:
                raise UserError(f"cannot read store entry {folder} ({reason(error)}): make it readable") from error
        aside = folder.with_name(folder.name + ".damaged")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # another process has just done the same
                folder.rename(aside)
        except OSError as error:
            raise Damaged(
                f"store entry {folder} is damaged ({damage}) and cannot be set aside ({reason(error)}): "
                "delete it, or name another folder with UNLEARNBENCH_CACHE"
            ) from error
        raise Damaged(
            f"store entry {folder} is damaged ({damage}): set aside as {aside.name}; "
            "run the same command again to make it again"
        ) from damage

    def _write(self, folder: Path, parts: dict[str, Any], made: Made, force: bool) -> bool:
        """Move the finished entry into place; False if another process stored its own first."""
        tensors, facts = made
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as temporary:
                new = Path(temporary) / "entry"
                new.mkdir()
                save_state(tensors, new / DATA)
                entry = {"parts": parts, "facts": facts, "data": file_hash(new / DATA)}
                (new / META).write_bytes(_text({**entry, "seal": digest(entry)}))
                for name in (DATA, META):
                    flush(new / name)
                return _place(new, folder, Path(temporary) / "old", force)
        except OSError as error:
            raise UserError(cannot_write(self.root, error, "UNLEARNBENCH_CACHE")) from error


def _text(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, indent=1).encode()


def _checked(folder: Path) -> Made:
    """Read an entry and check that every byte is as it was written."""
    raw = (folder / META).read_bytes()
    entry = json.loads(raw)
    if raw != _text(entry):  # the seal does not cover white space
        raise Damaged(f"{META} was changed")
    seal = entry.pop("seal")
    if seal != digest(entry):
        raise Damaged(f"{META} was changed")
    if file_hash(folder / DATA) != entry["data"]:
        raise Damaged(f"{DATA} was changed")
    state = load_state(folder / DATA)
    if (folder / META).read_bytes() != raw:  # otherwise the tensors may belong to another entry than the hash
        raise Damaged("it was replaced while it was read")
    return state, entry["facts"]


def _place(new: Path, folder: Path, old: Path, force: bool) -> bool:
    """Rename a finished entry into place; False if another process was faster.

    Entries with the same key differ in times only, so either may stay.
    """
    if folder.exists() and (force or not (folder / META).is_file()):
        with contextlib.suppress(FileNotFoundError):  # another forced run has just moved it
            folder.rename(old)
    try:
        new.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def default_root() -> Path:
    """The store's folder: `UNLEARNBENCH_CACHE`, or the platform's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("UNLEARNBENCH_CACHE") or user_cache_path("unlearnbench"))
