"""Errors that the user can fix. Each is one line that names the value and the remedy; the exit code is 2."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import ClassVar

from unlearnbench.printable import printable

FEW = 3
"""As many names are listed even if some are similar."""
MANY = 20
"""More names than this are not listed in an error: `unlearnbench list` shows them."""
LISTED = {"method": "methods", "task": "tasks", "attack": "attacks", "metric": "metrics"}
LISTED |= {"released weights": "checkpoints"}
"""Kinds that `unlearnbench list` shows."""


class UserError(Exception):
    """Something the user typed or provided cannot be used. The message names it and says what to do."""

    exit_code: ClassVar[int] = 2
    """Exit code of a command that ends with this error."""


class Failed(UserError):
    """Other code failed, such as a method or a plug-in, or a method returned something that is not a model."""

    exit_code = 1


class OutOfMemory(UserError):
    """The device or the machine has too little memory for the request."""

    exit_code = 1


class Unsupported(UserError):
    """A method needs something that this model or task lacks. The cell is skipped with this reason."""


class Damaged(UserError):
    """A file no longer holds what this package wrote to it."""


def message(error: BaseException) -> str:
    """Return an error's message on one line, even if its `__str__` fails."""
    try:
        text = str(error)
    except (Exception, SystemExit) as failure:  # noqa: BLE001 - whatever `__str__` raises, the first error is to be told
        return f"(its message cannot be shown: {type(failure).__name__})"
    return " ".join(printable(text).split())


def one_line(error: BaseException) -> str:
    """Return an error's type and message on one line."""
    return f"{type(error).__name__}: {message(error)}"


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Build the error for an unknown name: it suggests similar names, or lists what there is.

    Up to `MANY` names are listed; beyond that, the error names the likest, or the command that lists them.
    """
    known = sorted(set(known))
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hints = [f"did you mean {either(near)}?"] if near else []
    if not near and len(known) > MANY and kind in LISTED:
        hints.append(f"`unlearnbench list {LISTED[kind]}` shows all {len(known)}")
    elif not near and len(known) > MANY:
        likest = get_close_matches(name.lower(), known, n=FEW, cutoff=0.0)
        hints.append(f"known: {', '.join(likest)} and {len(known) - len(likest)} more")
    elif not near or len(near) < len(known) <= FEW:
        hints.append(f"known: {', '.join(known)}")
    return UserError(f"unknown {kind} {name!r}: {' '.join(hints)}")


def either(words: Sequence[str]) -> str:
    """Join words as alternatives: "a", "a or b", "a, b or c"."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
