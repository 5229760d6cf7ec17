"""What may be a name, as records, folders and columns have it, and where a path made from names may lead."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from unlearnbench.errors import UserError
from unlearnbench.printable import hidden

LONGEST: Final = 128
"""Characters of a name."""
LONGEST_LINE: Final = 1000
"""Characters of a line of words."""
_BYTES: Final = 200
"""Of a name in UTF-8: file systems allow 255, and a suffix comes behind."""
_NAME = re.compile(r"\w[\w .,'&()~@+=-]*")


def wrong_name(name: str) -> str:
    """Why a text cannot be a name; empty where it can.

    A name is one folder or file: letters, digits and marks of any script, spaces and _.,'&()~@+=- in it, at most
    `LONGEST` characters. It begins with a letter, a digit or _ and ends neither in a space nor in a dot.
    """
    if not name:
        return "it is empty"
    if len(name) > LONGEST or len(name.encode(errors="replace")) > _BYTES:
        return f"it is longer than {LONGEST} characters, or {_BYTES} bytes"
    if not _NAME.fullmatch(name) or hidden(name):
        return "it must begin with a letter, digit or _, and have only letters, digits, spaces and _.,'&()~@+=-"
    return "it ends in a space or dot" if name[-1] in " ." else ""


def require_name(what: str, name: str) -> str:
    """The name, if it can be one; raises `UserError` with what it names and why it cannot."""
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
"""A field that may become a folder, a file or a column: see `wrong_name`."""
MethodName = Annotated[str, AfterValidator(_identifier)]
"""A field that names a method, and with it a Python file."""
Line = Annotated[str, Field(max_length=LONGEST_LINE), AfterValidator(_line)]
"""A field of words on one line, without control or format characters."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A field that is a seed of random numbers."""


def joined(*names: str) -> Path:
    """A relative path of names, each of which can be one; raises `UserError` where one cannot."""
    return Path(*(require_name("the folder or file", name) for name in names))


def inside(folder: Path, path: PurePath | str) -> Path:
    """The path of a file below a folder; raises `UserError` where it leads elsewhere, through .. or a linked folder.

    `path` is relative to the folder. A file may itself be a link: writing puts a file in the link's place.
    """
    place = folder / path
    parent = place.parent.resolve()
    if not place.name or place.name in (".", "..") or not parent.is_relative_to(folder.resolve()):
        raise UserError(f"{str(path)!r} leads out of {folder}: rename it, or make the linked folder a folder")
    return place
