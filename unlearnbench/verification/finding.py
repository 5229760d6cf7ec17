"""What `validate` has to say of a file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Note(NamedTuple):
    """Something that could not be checked, or that a reader should know; the record may well be right."""

    text: str
    group: str
    """What notes of many records are counted under."""
    strict: bool = False
    """Whether `validate --strict` takes it for a problem."""


Said = str | Note
"""What a check yields: a problem in words, or a note."""


class Finding(NamedTuple):
    """A file, and a problem or a note about it."""

    path: Path
    text: str
    note: Note | None = None
    """None for a problem."""
