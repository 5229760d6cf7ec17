"""What of a text can be shown: one line, without characters that steer a terminal or turn the text around."""

from __future__ import annotations

import io
import re
import sys
import unicodedata
from typing import Any, Final

REPLACED: Final = "\N{REPLACEMENT CHARACTER}"
_PLAIN = re.compile(r"[ -~]*")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of characters that show nothing themselves but may change what is shown around them."""


def hidden(text: str) -> str:
    """The first control, format, bidi or unassigned character, or lone surrogate, of a text; empty without one."""
    if _PLAIN.fullmatch(text):
        return ""
    return next((character for character in text if unicodedata.category(character) in _HIDDEN), "")


def printable(text: str, keep: str = "") -> str:
    """A text that a terminal, page or table can show on one line.

    Line breaks and tabs become spaces, other hidden characters the replacement character. Those in `keep` stay.
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(character if character in keep else _shown(character) for character in text)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return " " if character.isspace() else REPLACED


def cleaned(value: Any) -> Any:
    """Data for JSON or a table with every text in it `printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(item) for key, item in value.items()}
    return [cleaned(item) for item in value] if isinstance(value, (list, tuple)) else value


def lenient() -> None:
    """Let no character stop a command: what a stream's encoding lacks is written as a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
