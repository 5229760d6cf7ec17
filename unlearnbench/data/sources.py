"""Files that a task needs but does not ship: where they come from, and checks that they stay as first fetched."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from unlearnbench.data.download import INSTEAD, Changed, Facts, download
from unlearnbench.errors import Damaged, UserError
from unlearnbench.hashing import file_hash
from unlearnbench.storage.files import cannot_write, flush, replace_file

LOCK = "lock.json"
_WORD = r"[A-Za-z0-9_][A-Za-z0-9._+=-]*"


class Source(NamedTuple):
    """One file. Facts that were unknown when it was listed are None; the first fetch locks them."""

    name: str
    """Path below the data folder, at most two folders deep."""
    url: str
    licence: str
    login: bool
    """Whether the download needs a hub token."""
    use: str
    size: int | None = None
    """Size in bytes."""
    revision: str | None = None
    """The commit that the address names, on the hub or on GitHub, or the ETag of another server."""
    sha256: str | None = None
    instead: str = INSTEAD
    """What messages say that the user can do besides putting the file there by hand."""


def source_path(folder: Path, source: Source) -> Path:
    """Return the file's path. Raises `UserError` for a name that leads out of the folder."""
    if not re.fullmatch(rf"{_WORD}(/{_WORD}){{0,2}}", source.name) or source.name == LOCK:
        raise UserError(
            f"{source.name!r} cannot name a source: use letters, digits and ._+=-, at most two folders deep"
        )
    return folder / source.name


def locks(folder: Path) -> dict[str, Facts]:
    """Read what each file was when it was first fetched into this folder."""
    path = folder / LOCK
    with _readable(path):
        try:
            entries = json.loads(path.read_bytes())
            return {name: Facts(int(e["size"]), str(e["sha256"]), e["revision"]) for name, e in entries.items()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{path} is damaged: restore it, or delete it and fetch again") from error


def known(folder: Path, source: Source) -> Facts:
    """Return what the file must be: the source's own facts, and the locked ones where the source has none."""
    locked = locks(folder).get(source.name, Facts())
    if source.sha256 not in (None, locked.sha256):
        locked = Facts()  # it was locked before the source's own hash was known
    size = locked.size if source.size is None else source.size
    return Facts(size, source.sha256 or locked.sha256, source.revision or locked.revision)


def state(folder: Path, source: Source) -> str:
    """Return `there`, `missing`, or `differs` if the file is not the expected one."""
    path = source_path(folder, source)
    with _readable(path):
        if not path.is_file():
            return "missing"
        return "differs" if _difference(path, known(folder, source)) else "there"


def check_source(folder: Path, source: Source, task: str = "") -> Path:
    """Return the file's path after reading all of it. Raises `Damaged` if it differs from its source or lock.

    `task` is the task whose files `fetch` brings, for the message where it is missing.
    """
    path = source_path(folder, source)
    with _readable(path):
        if not path.is_file():
            raise missing_source(folder, source, task=task)
        if reason := _difference(path, known(folder, source)):
            raise Damaged(f"{path} is not what it was when it was fetched ({reason}): delete it and fetch again")
    return path


def check_given(folder: Path, source: Source) -> Path:
    """As `check_source`, but take any file that was put into the folder by hand, such as prompts of your own.

    A file that was fetched must still be what it was. Whether another is the published one: `is_published`.
    """
    return check_source(folder, source if source.name in locks(folder) else source._replace(size=None, sha256=None))


def is_published(path: Path, source: Source) -> bool | None:
    """Whether a file is the one that the source is known to be; None if that is not known."""
    return None if source.sha256 is None else not _difference(path, Facts(source.size, source.sha256))


def missing_source(folder: Path, source: Source, *others: Source, task: str = "") -> UserError:
    """Build the error for a folder that has neither this file nor another copy of it."""
    names = " or ".join(each.name for each in (source, *others))
    return UserError(
        f"{names} is not in {folder}: fetch it with `{fetch_command(task)}`, or bring {source.url} into that folder, "
        "or give a folder that has it with --data"
    )


def fetch_command(task: str) -> str:
    """The command that brings a task's files."""
    return f"unlearnbench fetch --task {task}" if task else "unlearnbench fetch"


def fetch_source(source: Source, folder: Path) -> Path:
    """Download the file unless it exists, and lock it when it is first seen, whether fetched or placed by hand.

    The final name is given only to a complete and checked file. Running a stopped fetch again skips the finished files.
    """
    path = source_path(folder, source)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if path.is_file():
                check_source(folder, source)
                if source.sha256 or source.name not in locks(folder):
                    sha256 = source.sha256 or file_hash(path)
                    _lock(folder, source, Facts(path.stat().st_size, sha256, source.revision))
            else:
                _bring(source, folder, path)
    except OSError as error:
        raise UserError(cannot_write(path, error, "--data")) from error
    return path


def _bring(source: Source, folder: Path, path: Path) -> None:
    top = folder.resolve()
    if top not in (path.parent.resolve(), *path.parent.resolve().parents):
        raise UserError(f"{path.parent} leads out of {folder}: put the file there by hand, or make it a folder")
    with _scratch(path) as scratch:
        try:
            file, facts = download(
                source.url, path, scratch, source.login, known(folder, source), source.revision, source.instead
            )
        except Changed as error:
            raise _moved(source, folder, path, str(error)) from error
        flush(file)
        _lock(folder, source, facts)  # before the rename, so that a stop between the two does not lose the revision
        file.replace(path)


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """Yield an empty folder next to `path` and delete it afterwards. Remains of a killed process are deleted first."""
    folder = path.with_name(f".{path.name}.fetch")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path, source: Source, facts: Facts) -> None:
    """Write down the file's facts. An existing entry for the same bytes is kept."""
    entries = locks(folder)
    if entries.get(source.name, Facts()).sha256 == facts.sha256:
        return
    entries[source.name] = facts
    text = json.dumps({name: entries[name]._asdict() for name in sorted(entries)}, indent=1)
    replace_file(folder / LOCK, f"{text}\n".encode())


def _moved(source: Source, folder: Path, path: Path, reason: str) -> Damaged:
    """Build the error for a server that has a different file from the known one."""
    by_lock = source.sha256 is None and source.name in locks(folder)
    ours, remedy = (
        (f"was locked in {folder / LOCK}", "delete its entry there to take the new one")
        if by_lock
        else ("this unlearnbench was written for", "look for a newer one")
    )
    return Damaged(
        f"{source.url} no longer gives the {source.name} that {ours} ({reason}): put that file at {path} by hand, or "
        f"{remedy}"
    )


@lru_cache(maxsize=256)
def _hashed(path: Path, size: int, changed: int) -> str:
    return file_hash(path)


def known_hash(path: Path) -> str:
    """Return the SHA-256 of a file, read once per process unless its size or modification time changes."""
    about = path.stat()
    return _hashed(path, about.st_size, about.st_mtime_ns)


def _difference(path: Path, want: Facts) -> str:
    """Describe how the file differs from the expected one; empty if it does not. The size is compared first: it is
    free.
    """
    if want.size not in (None, size := path.stat().st_size):
        return f"{size} bytes, not {want.size}"
    if want.sha256 is None or (sha256 := known_hash(path)) == want.sha256:
        return ""
    return f"SHA-256 {sha256[:12]}…, not {want.sha256[:12]}…"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path} ({(error.strerror or '').lower()}): make it readable") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the folder for this process. Does nothing on Windows or on file systems that cannot lock a folder."""
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            flock(handle, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is fetching into {folder}: wait until it is done") from error
        except OSError:
            pass
        yield
    finally:
        os.close(handle)
