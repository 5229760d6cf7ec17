"""Lay out a figure in inches: title on top, axes in the middle, legend and notes below."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench.plots.style import SETTINGS, TEXT, TITLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.3, 6.9
"""Widths in inches of one column and of two columns of a paper."""
POINTS = 72.0
"""Points per inch; figures are laid out at this resolution, so that a pixel is a point."""
LEGEND, LINE, BETWEEN = 6.5, 9.5, 9.0
"""Of the legend in points: font size, height of a line, space between entries."""
EDGE = 3.0
"""Margin at the figure's edge in points."""
Rectangle = tuple[float, float, float, float]
"""Left, bottom, width, height in inches, from the lower left of the area between title and legend."""


class Item(NamedTuple):
    """A legend entry."""

    text: str
    drawn: Mapping[str, Any] | None = None
    """Arguments for matplotlib.lines.Line2D; None for text only."""
    width: float = 0.0
    """Width of the symbol in points."""

    def room(self) -> float:
        """Width of the whole entry in points."""
        return (self.width + 3.0 if self.drawn else 0.0) + text_width(self.text, LEGEND)


def blank(width: float, height: float, about: str) -> Figure:
    """Make an empty figure of this size in inches; `about` describes it for readers who cannot see it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=POINTS)
    FigureCanvasAgg(figure)
    figure.set_label(about)
    return figure


def assemble(
    figure: Figure,
    body: float,
    places: Mapping[Axes, Rectangle],
    title: str,
    items: Sequence[Item] = (),
    notes: Sequence[str] = (),
) -> float:
    """Put title, axes and legend in place and set the figure's height; the area of the axes is `body` inches high.

    Returns the bottom of that area in inches.
    """
    width = float(figure.get_size_inches()[0])
    room = POINTS * width - 2 * EDGE
    heads = _wrapped(title, room, TITLE)
    rows, lines = _rows(items, room), [line for note in notes for line in _wrapped(note, room, LEGEND)]
    bottom = ((len(rows) + len(lines)) * LINE + EDGE) / POINTS
    top = (len(heads) * 1.2 * TITLE + 2 * EDGE) / POINTS
    height = bottom + body + top
    figure.set_size_inches(width, height)
    for axes, (left, low, wide, tall) in places.items():
        axes.set_position((left / width, (bottom + low) / height, wide / width, tall / height))
    for number, line in enumerate(heads):
        y = 1 - (EDGE + number * 1.2 * TITLE) / (POINTS * height)
        figure.text(EDGE / (POINTS * width), y, line, fontsize=TITLE, va="top")
    _legend(figure, rows, lines, bottom)
    return bottom


def _legend(figure: Figure, rows: Sequence[Sequence[Item]], lines: Sequence[str], bottom: float) -> None:
    """Place entries and notes from left to right and top to bottom."""
    from matplotlib.lines import Line2D

    scale, y = figure.dpi_scale_trans, bottom * POINTS - LINE / 2
    for row in rows:
        x = EDGE
        for item in row:
            if item.drawn:
                middle = x + item.width / 2
                at = [x, middle, x + item.width] if "linestyle" in item.drawn else [middle]
                drawn = {"markevery": [len(at) // 2], **item.drawn}
                figure.add_artist(
                    Line2D([end / POINTS for end in at], [y / POINTS] * len(at), transform=scale, **drawn)
                )
            start = x + (item.width + 3.0 if item.drawn else 0.0)
            figure.text(start / POINTS, y / POINTS, item.text, fontsize=LEGEND, va="center_baseline", transform=scale)
            x += item.room() + BETWEEN
        y -= LINE
    for line in lines:
        figure.text(EDGE / POINTS, y / POINTS, line, fontsize=LEGEND, va="center_baseline", transform=scale)
        y -= LINE


def _rows(items: Sequence[Item], room: float) -> list[list[Item]]:
    rows: list[list[Item]] = []
    left = 0.0
    for item in items:
        if not rows or item.room() > left:
            rows.append([])
            left = room
        rows[-1].append(item)
        left -= item.room() + BETWEEN
    return rows


def text_width(text: str, size: float = TEXT) -> float:
    """Width of a line of text in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=SETTINGS["font.family"], size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0])


def short(text: str, most: int = 28) -> str:
    """Shorten a text on one line to this many characters; of a part in brackets at its end, the end is kept."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    kept = min(len(text) - text.find(" ("), 2 * most // 3) if text.endswith(")") and " (" in text else 0
    return f"{text[: most - 1 - kept]}…{text[len(text) - kept :]}"


def _wrapped(text: str, room: float, size: float) -> list[str]:
    """Break a text into lines of this width in points."""
    return textwrap.wrap(text, max(10, int(room / (0.58 * size))))


def log_scale(axes: Axes, which: str, low: float, high: float) -> None:
    """Set a logarithmic scale with plain numbers at its ticks, three per decade where there are few decades."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis: Axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 300 * low else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(format_tick)


def format_tick(value: float, place: float | None = None) -> str:
    """Format a tick without powers and trailing zeros."""
    return f"{value:,.6g}"
