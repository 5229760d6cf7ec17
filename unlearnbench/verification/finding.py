"""The results of `validate`: problems and notes about files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Note(NamedTuple):
    """Something that could not be checked, or that a reader should know. The record may well be right."""

    text: str
    group: str
    """Title under which notes of many records are counted."""
    strict: bool = False
    """Whether `validate --strict` treats it as a problem."""


Issue = str | Note
"""Result of a check: a problem as text, or a note."""


class Finding(NamedTuple):
    """A file, and a problem or a note about it."""

    path: Path
    text: str
    note: Note | None = None
    """The note, or None for a problem."""
