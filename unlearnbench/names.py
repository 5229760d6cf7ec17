"""Which names are allowed for records, folders and columns, and which paths may be built from them."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from unlearnbench.errors import UserError
from unlearnbench.printable import hidden

LONGEST: Final = 128
"""Maximum length of a name, in characters."""
LONGEST_LINE: Final = 1000
"""Maximum length of a line of text, in characters."""
LOADED: Final = "checkpoint"
"""The method that loads weights which others unlearned."""
_BYTES: Final = 200
"""Maximum length of a name in UTF-8 bytes: file systems allow 255, and a suffix is added."""
_NAME = re.compile(r"\w[\w .,'&()~@+=-]*")


def wrong_name(name: str) -> str:
    """Say why a text cannot be a name; empty if it can.

    A name is one folder or file. It consists of letters, digits and marks of any script, spaces and _.,'&()~@+=- and
    has at most `LONGEST` characters. It starts with a letter, a digit or _ and does not end with a space or a dot.
    """
    if not name:
        return "it is empty"
    if len(name) > LONGEST or len(name.encode(errors="replace")) > _BYTES:
        return f"it is longer than {LONGEST} characters, or {_BYTES} bytes"
    if not _NAME.fullmatch(name) or hidden(name):
        return "it must begin with a letter, digit or _, and have only letters, digits, spaces and _.,'&()~@+=-"
    return "it ends in a space or dot" if name[-1] in " ." else ""


def require_name(what: str, name: str) -> str:
    """Return the name if it is allowed; otherwise raise `UserError` with what it is for and what is wrong."""
    if reason := wrong_name(name):
        raise UserError(f"{what} {name!r} cannot be a name: {reason}")
    return name


def _name(name: str) -> str:
    if reason := wrong_name(name):
        raise ValueError(f"{name[:60]!r} cannot be a name: {reason}")
    return name


def _identifier(name: str) -> str:
    if not name.isidentifier() or wrong_name(name):
        raise ValueError(f"{name[:60]!r} cannot name a method: use letters, digits and _")
    return name


def _line(text: str) -> str:
    if character := hidden(text):
        raise ValueError(f"{text[:60]!r} has the control character {character!r}")
    return text


Name = Annotated[str, AfterValidator(_name)]
"""A field that may become a folder, file or column name; see `wrong_name`."""
MethodName = Annotated[str, AfterValidator(_identifier)]
"""A field that names a method, and so a Python file."""
Line = Annotated[str, Field(max_length=LONGEST_LINE), AfterValidator(_line)]
"""A text field of one line, without control or format characters."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A field that holds a random seed."""


def join_names(*names: str) -> Path:
    """Join names to a relative path. Raises `UserError` if one of them is not allowed."""
    return Path(*(require_name("the folder or file", name) for name in names))


def inside(folder: Path, path: PurePath | str) -> Path:
    """Return the path of a file below a folder. Raises `UserError` if it leads outside, through `..` or a linked
    folder.

    `path` is relative to the folder. The file itself may be a link, since writing replaces the link.
    """
    place = folder / path
    parent = place.parent.resolve()
    if not place.name or place.name in (".", "..") or not parent.is_relative_to(folder.resolve()):
        raise UserError(f"{str(path)!r} leads out of {folder}: rename it, or make the linked folder a folder")
    return place
