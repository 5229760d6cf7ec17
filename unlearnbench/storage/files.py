"""Write files safely: replace them as a whole, flush them to disk, and explain why they cannot be written."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file's content as a whole; if anything fails, the old file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Make sure that a file is on the disk before it is renamed."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def cannot_write(path: Path, error: OSError, remedy: str) -> str:
    """Build the one-line message for a folder that cannot be written."""
    return f"cannot write to {path} ({reason(error)}): free it, or name another folder with {remedy}"


def reason(error: OSError) -> str:
    """Say in a few words why a file could not be read or written."""
    return "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error)).lower()
