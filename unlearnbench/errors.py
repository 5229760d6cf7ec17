"""Errors that a user can mend: one line with the value and the remedy, exit code 2."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

from unlearnbench.printable import printable

FEW = 3


class UserError(Exception):
    """Something the user typed or gave cannot be used; the message names it and says what to do."""

    exit_code: ClassVar[int] = 2
    """Of a command that ends with this error."""


class Failed(UserError):
    """Code that is not the user's command failed: a method's, a plug-in's, or what a method returned is no model."""

    exit_code = 1


class OutOfMemory(UserError):
    """A device, or the machine, has too little memory for what was asked."""

    exit_code = 1


class Unsupported(UserError):
    """A method needs what this model or task does not have; the cell is skipped with this reason."""


class Damaged(UserError):
    """A file of ours no longer holds what was written to it."""


def message(error: BaseException) -> str:
    """An error's message on one line; errors of foreign code may fail to say what they are."""
    try:
        text = str(error)
    except (Exception, SystemExit) as failure:  # noqa: BLE001 - whatever `__str__` raises, the first error is to be told
        return f"(its message cannot be shown: {type(failure).__name__})"
    return " ".join(printable(text).split())


def one_line(error: BaseException) -> str:
    """An error's kind and message on one line."""
    return f"{type(error).__name__}: {message(error)}"


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An unknown name, with the nearest known ones; with all of them when none is near, or there are few."""
    known = sorted(known)
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    if len(near) < len(known) <= FEW or not near:
        hints.append(f"known: {', '.join(known)}")
    return UserError(f"unknown {kind} {name!r}: {' '.join(hints)}")
