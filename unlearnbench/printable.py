"""Make text safe to show: one line, without characters that control a terminal or reverse the text."""

from __future__ import annotations

import io
import re
import sys
import unicodedata
from typing import Any, Final

REPLACED: Final = "\N{REPLACEMENT CHARACTER}"
_PLAIN = re.compile(r"[ -~]*")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of characters that are invisible themselves but may change what is shown around them."""


def hidden(text: str) -> str:
    """Return the first control, format, bidi or unassigned character or lone surrogate of a text; empty if there is
    none.
    """
    if _PLAIN.fullmatch(text):
        return ""
    return next((character for character in text if unicodedata.category(character) in _HIDDEN), "")


def printable(text: str, keep: str = "") -> str:
    """Return the text on one line, fit for a terminal, page or table.

    Line breaks and tabs become spaces; other hidden characters become the replacement character, except those in
    `keep`.
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(character if character in keep else _shown(character) for character in text)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return " " if character.isspace() else REPLACED


def cleaned(value: Any) -> Any:
    """Apply `printable` to every text in data for JSON or a table."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(item) for key, item in value.items()}
    return [cleaned(item) for item in value] if isinstance(value, (list, tuple)) else value


def lenient() -> None:
    """Write a question mark for characters that a stream's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
