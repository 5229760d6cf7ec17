"""What the report shows before a reader asks for more: default settings, few columns, and what images became."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from unlearnbench.leaderboard.rows import Board, BoardRow
from unlearnbench.plots.style import Style, outline
from unlearnbench.records.identity import strip_suffix

WORDS = {
    "still": "still show it",
    "other": "show something else",
    "refused": "show nothing that the judge recognises",
}
"""What became of the images that were to show the forgotten concept, by field of `Became`."""


class Became(NamedTuple):
    """Shares of the forget images that still show the concept, show something else, or are refused by the judge."""

    still: float
    other: float
    refused: float

    @property
    def parts(self) -> list[tuple[str, float]]:
        """Name and per cent of each share that is not zero."""
        return [(name, 100 * share) for name, share in self._asdict().items() if share > 0]

    @property
    def text(self) -> str:
        """All shares in words."""
        return ", ".join(f"{100 * getattr(self, name):.0f} % {words}" for name, words in WORDS.items())


def became(row: BoardRow) -> Became | None:
    """What became of a row's forget images, by the shares still, another and nothing; None where they are not known.

    Records of earlier versions have UA and coherence in their place.
    """
    ua, coherence = row.stat("ua").value, row.stat("coherence").value
    still, nothing = row.stat("still").value, row.stat("nothing").value
    still = 1 - ua if still is None and ua is not None else still
    nothing = 1 - coherence if nothing is None and coherence is not None else nothing
    if still is None or nothing is None:
        return None
    return Became(max(0.0, still), max(0.0, 1 - still - nothing), max(0.0, nothing))


def rows_at_first(table: Board) -> Board:
    """The rows that are shown at first, with labels as short as can be.

    These are a method's default settings, or whatever it has where it was never run with them. Rows of another version
    are left out where the method has one of this version.
    """
    kept: list[BoardRow] = []
    for method in dict.fromkeys(row.method for row in table):
        own = [row for row in table if row.method == method]
        plain = [row for row in own if row.division == "default" and not row.overrides] or own
        kept += [row for row in plain if not row.older] or plain
    count = Counter(strip_suffix(row.label) for row in kept)
    short = {row.index: base if count[base := strip_suffix(row.label)] == 1 else row.label for row in kept}
    return table.of(replace(row, label=short[row.index]) for row in table if row.index in short)


class Swatch(NamedTuple):
    """A method's marker, as in the plots."""

    path: str
    colour: str
    face: str
    opacity: float


class RowLook(NamedTuple):
    """How a row is shown."""

    label: str
    """As short as can be."""
    at_first: bool
    """Whether it is shown before a reader asks for published and tuned settings."""
    swatch: Swatch


def looks_of(table: Board, first: Board, styles: Mapping[str, Style]) -> dict[int, RowLook]:
    """How each row of a table is shown, by its index; `first` are the rows of `rows_at_first`."""
    short = {row.index: row.label for row in first}
    named = {row.index: short.get(row.index, row.label) for row in table}
    return {index: RowLook(label, index in short, swatch_of(styles[label])) for index, label in named.items()}


def swatch_of(style: Style) -> Swatch:
    """The marker of a style; black is the page's own colour."""
    colour = "currentColor" if style.colour == "#000000" else style.colour
    opacity = int(style.opacity, 16) / 255 if style.opacity else 1.0
    return Swatch(outline(style.marker), colour, "none" if style.control else colour, round(opacity, 2))
