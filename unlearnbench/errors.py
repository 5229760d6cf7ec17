"""Errors that a user can mend: one line with the value and the remedy, exit code 2."""

from collections.abc import Iterable
from difflib import get_close_matches

FEW = 3


class UserError(Exception):
    """Something the user typed or gave cannot be used; the message names it and says what to do."""


class Unsupported(UserError):
    """A method needs what this model or task does not have; the cell is skipped with this reason."""


class Damaged(UserError):
    """A file of ours no longer holds what was written to it."""


def one_line(error: BaseException) -> str:
    """An error's kind and message without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An unknown name, with the nearest known ones; with all of them when none is near, or there are few."""
    known = sorted(known)
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    if len(near) < len(known) <= FEW or not near:
        hints.append(f"known: {', '.join(known)}")
    return UserError(f"unknown {kind} {name!r}: {' '.join(hints)}")
