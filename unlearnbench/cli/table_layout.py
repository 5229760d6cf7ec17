"""How a table fits into the width of a terminal: where cells wrap, and which columns share a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

GAP = 2
"""Blank characters between two columns; a row also begins and ends with one."""
PROSE = 12
"""A column of longer text gets at least this many characters."""
NAME = 24
"""A column of names gets this many characters, or a third of the line, before names wrap."""
BESIDE = ("rank",)
"""Heads of columns that only make sense right after the column before them."""
_WORDS = re.compile(r"\s+|[+@\[]?[^\s+@\[]+(?: [↑↓])?|[+@\[]")
_PARTS = re.compile(r"[^,/=_]*[,/=_]|[^,/=_]+")


class TextColumn(NamedTuple):
    """A column to lay out; its `rows` may contain line breaks."""

    head: str
    rows: Sequence[str]
    prose: bool = False
    """Whether its cells may wrap; numbers never do."""


class TablePart(NamedTuple):
    """One of the tables that a table is split into."""

    columns: list[int]
    """Which columns it shows, by position; those that identify a row come first."""
    widths: list[int]
    """Their widths in characters."""

    @property
    def width(self) -> int:
        """Length of its lines in characters."""
        return _line(self.widths)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many characters that together say all of a text.

    Text breaks at spaces, but not before an arrow, and before `+`, `@` and `[`, as in `esd@tuned+lr=0.1`; where that is
    not enough after `,`, `/`, `=` and `_`, and at last between any two characters. Wide characters count as two.
    """
    lines = []
    for given in text.split("\n"):
        line = ""
        for piece in _pieces(given, width):
            if cell_len(line + piece.rstrip()) > width and line:
                lines.append(line.rstrip())
                line = ""
            line += "" if not line and piece.isspace() else piece
        lines.append(line.rstrip())
    return lines


def split(columns: Sequence[TextColumn], width: int, keys: int = 1) -> list[TablePart]:
    """Tables of at most so many characters that together show every column, in the order given.

    The first `keys` columns identify a row and are part of every table. A table is wider than `width` only if a single
    column beside them does not fit.
    """
    needs, tables = _fitting(columns, width, keys), []  # type: list[int], list[list[int]]
    for unit in _units(columns, keys):
        whole = [*(tables[-1] if tables else []), *unit]
        if tables and _line([*needs[:keys], *(needs[i] for i in whole)]) <= width:
            tables[-1] = whole
        else:
            tables.append(unit)
    return [_widened(columns, [*range(keys), *table], needs, width, keys) for table in tables or [[]]]


def fit_columns(columns: Sequence[TextColumn], width: int, keys: int = 1, first: Sequence[str] = ()) -> list[int]:
    """Positions of the columns that fit into one table of so many characters, in their order.

    Columns with a head in `first` have priority, in the order of `first`; the others follow in their own order. The
    columns that identify a row and the first of the others are always among them.
    """
    needs = _fitting(columns, width, keys)
    rank = {head: place for place, head in reversed(list(enumerate(first)))}
    kept = list(range(keys))
    for unit in sorted(_units(columns, keys), key=lambda unit: rank.get(columns[unit[0]].head, len(first))):
        if len(kept) > keys and _line([needs[i] for i in (*kept, *unit)]) > width:
            break
        kept += unit
    return sorted(kept)


def _pieces(text: str, width: int) -> Iterable[str]:
    """A text in the largest parts that fit."""
    for word in _WORDS.findall(text):
        if cell_len(word) <= width:
            yield word
            continue
        for part in _PARTS.findall(word):
            while cell_len(part) > width:
                start = set_cell_size(part, width).rstrip() or part[0]
                yield start
                part = part[len(start) :]
            yield part


def _full(column: TextColumn) -> int:
    """Width in which nothing wraps."""
    return max(cell_len(line) for text in (column.head, *column.rows) for line in text.split("\n"))


def _least(texts: Iterable[str]) -> int:
    """Width of the longest word."""
    return max((cell_len(word) for text in texts for word in _WORDS.findall(text)), default=0)


def _least_parts(texts: Iterable[str]) -> int:
    """Width of the longest part of a word; words have several where they contain `,`, `/`, `=` or `_`."""
    words = [word for text in texts for word in _WORDS.findall(text)]
    return max((cell_len(part) for word in words for part in _PARTS.findall(word)), default=0)


def _fitting(columns: Sequence[TextColumn], width: int, keys: int) -> list[int]:
    """The width that each column must have: words of names stay whole, unless breaking them spares a second table."""
    whole = _needs(columns, width, keys)
    if _line(whole) <= width:
        return whole
    broken = _needs(columns, width, keys, _least_parts)
    return broken if _line(broken) <= width else whole


def _needs(
    columns: Sequence[TextColumn], width: int, keys: int, of_names: Callable[[Iterable[str]], int] = _least
) -> list[int]:
    """The width that each column must have; that of the columns beside the `keys` is counted first.

    `of_names` is the least width of names and longer text.
    """
    longest = _longest(width)
    widths = [0 if column.prose else _full(column._replace(head="")) for column in columns]
    widest = max((_line([widths[i] for i in unit]) for unit in _units(columns, keys)), default=0)
    most = min(longest, max(PROSE, (width - widest) // max(keys, 1) - GAP))  # numbers come whole before names do
    needs = [min(_full(column), most, of_names([column.head, *column.rows])) for column in columns[:keys]]
    room = width - _line(needs) - GAP
    for column in columns[keys:]:
        words = _least([column.head])
        if column.prose:
            words = min(max(words, of_names(column.rows), PROSE), longest)
        else:
            words = max(words, _full(column._replace(head="")))
        if words > room:
            words = max(room, min(longest, _least([column.head, *column.rows])))
        needs.append(min(_full(column), words))
    return needs


def _units(columns: Sequence[TextColumn], keys: int) -> list[list[int]]:
    """Columns that must stay together."""
    units: list[list[int]] = []
    for i in range(keys, len(columns)):
        if columns[i].head in BESIDE and units:
            units[-1].append(i)
        else:
            units.append([i])
    return units


def _longest(width: int) -> int:
    """The width of names beyond which they wrap."""
    return max(NAME, width // 3)


def _widened(
    columns: Sequence[TextColumn], shown: Sequence[int], needs: Sequence[int], width: int, keys: int
) -> TablePart:
    """A table in which what is left of the line goes to columns that wrap: names, then text, then heads of numbers."""
    widths, full = [needs[i] for i in shown], [_full(columns[i]) for i in shown]
    left = width - _line(widths)
    if sum(full) - sum(widths) <= left:
        return TablePart(list(shown), full)

    def lack(i: int) -> tuple[bool, bool, float]:
        ratio = full[i] / widths[i] if widths[i] else 0.0
        return i < keys and widths[i] < min(full[i], _longest(width)), columns[shown[i]].prose and ratio > 1, ratio

    for _ in range(left):
        widths[max(range(len(widths)), key=lack)] += 1
    return TablePart(list(shown), widths)


def _line(widths: Collection[int]) -> int:
    """Length of a line with columns of these widths."""
    return sum(widths) + GAP * len(widths)
