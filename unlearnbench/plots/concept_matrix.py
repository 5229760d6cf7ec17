"""Plot the effect of forgetting one concept on every other: one row per method and forget concept, one column per
concept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from unlearnbench.errors import UserError
from unlearnbench.plots.layout import COLUMN, EDGE, PAGE, POINTS, assemble, blank, short, text_width
from unlearnbench.plots.style import OF_CONTROLS, SMALL, TEXT, Style, control_of, settings, styles
from unlearnbench.records.identity import strip_suffix

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

COLOURS = ("#7f3b08", "#e08214", "#fee0b6", "#f7f7f7", "#d1e5f0", "#4393c3", "#053061")
"""From loss to gain, ColorBrewer's orange and blue, which colour-blind readers can tell apart."""
WHOLE = 100.0
"""Change in points at the ends of the scale, which are fixed so that figures can be compared."""
LEAST, MOST, ROW, BLOCK, GAP = 0.2, 0.42, 0.135, 0.035, 0.16
"""Inches: least and greatest width of a cell, height of a row, gaps between methods and between panels."""
LINE = 0.13
"""Inches: height of a panel's title."""
BAR, BELOW = 0.07, 0.26
"""Inches: height of the colour bar, and of everything below the cells."""
NOTE = "share judged as asked: change against the original, in points; framed: to be forgotten, blue where it fell"
SWATCH = 0.1
"""Inches: room for a method's marker beside its name."""
INKS = "#111111", "#ffffff"
"""Colours of text on cells, which do not change between light and dark pages."""
DARK = 55.0
"""Change in points from which text in a cell is white."""


def matrix(effects: pd.DataFrame, title: str, names: Iterable[str] | None = None) -> Figure:
    """Plot the change of the share judged as asked from the original, in points, as `concept_effects.effects` gives it.

    Each method has one row per forget concept. Losses are orange and gains blue; the cells of forgotten concepts are
    framed, and blue where they fall, since that was asked for. Pass all labels as `names` when there are only some, so
    that the colours of markers stay the same. Forget concepts that
    were measured on different concepts (digits, colours) have panels side by side. The figure is one column of a paper
    wide if that is enough, else two. Raises `UserError` where there is no change to show.
    """
    shown = effects[effects["change"].notna() & (effects["label"].map(strip_suffix) != "original")]
    if shown.empty:
        raise UserError("no effects to show: there are no values by image of both a method and the original")
    panels = _panels(shown)
    labels = sorted(dict.fromkeys(shown["label"]), key=_rank)
    looks = styles([*(names or ()), *labels])
    with settings():
        return _drawn(shown, panels, labels, title, looks)


def _rank(label: str) -> tuple[int, str]:
    """Controls first, in their usual order."""
    control = control_of(label)
    return (list(OF_CONTROLS).index(control) if control else len(OF_CONTROLS), label)


def _panels(shown: pd.DataFrame) -> list[tuple[list[str], list[str]]]:
    """Forget concepts and the concepts they were measured on; those that share any are in one panel."""
    order = {name: number for number, name in enumerate(dict.fromkeys(shown["concept"]))}
    panels: list[tuple[list[str], set[str]]] = []
    for forget, rows in shown.groupby("forget", sort=False):
        concepts = set(rows["concept"])
        joined = [panel for panel in panels if panel[1] & concepts]
        panels = [panel for panel in panels if panel not in joined]
        forgets = [name for panel in joined for name in panel[0]]
        panels.append(([*forgets, str(forget)], concepts.union(*(panel[1] for panel in joined))))
    return [(sorted(forgets), sorted(concepts, key=order.__getitem__)) for forgets, concepts in panels]


def _drawn(
    shown: pd.DataFrame,
    panels: Sequence[tuple[list[str], list[str]]],
    labels: Sequence[str],
    title: str,
    looks: Mapping[str, Style],
) -> Figure:
    names = [short(label) for label in labels]
    left = (max(text_width(name, SMALL) for name in names) + EDGE + 3) / POINTS + SWATCH
    marks = [_width_of_marks(forgets) for forgets, _ in panels]
    count = sum(len(concepts) for _, concepts in panels)
    beside = left + sum(marks) + GAP * (len(panels) - 1) + EDGE / POINTS
    width = COLUMN if beside + LEAST * count <= COLUMN else PAGE
    cell = min(MOST, (width - beside) / count)
    widest = max(text_width(short(name, 16), 5.0) / POINTS for _, concepts in panels for name in concepts)
    turned = widest > cell
    above = (widest * SMALL / 5.0 if turned else SMALL / POINTS) + 0.06 + LINE * any(mark == 0 for mark in marks)
    most = max(len(forgets) for forgets, _ in panels)
    body = BELOW + len(labels) * (most * ROW + BLOCK) + above
    figure = blank(width, body, f"{title}: change against the original in points, by forget concept and concept")
    places, x = {}, left
    for number, ((forgets, concepts), mark) in enumerate(zip(panels, marks, strict=True)):
        axes = figure.add_axes((0, 0, 1, 1), label=f"panel {number}")
        places[axes] = (x + mark, BELOW, cell * len(concepts), body - BELOW - above)
        _cells(axes, shown, labels, forgets, concepts, cell, turned)
        x += mark + cell * len(concepts) + GAP
    for number, name in enumerate(names):
        y = number * (most * ROW + BLOCK) + most * ROW / 2
        next(iter(places)).text(
            -(marks[0] + 0.03 + SWATCH) / cell, y, name, fontsize=SMALL, ha="right", va="center_baseline", clip_on=False
        )
        look = looks[labels[number]]
        next(iter(places)).plot(
            [-(marks[0] + 0.03 + SWATCH / 2) / cell], [y], look.marker, ms=3.4, mew=0.7, mfc=look.face,
            mec=look.colour, gid="swatch", clip_on=False,
        )  # fmt: skip
    scale = figure.add_axes((0, 0, 1, 1), label="scale")
    places[scale] = (left + marks[0], 0.13, min(2.0, width - left - marks[0] - 0.1), BAR)
    _scale(scale)
    assemble(figure, body, places, title, notes=[NOTE])
    return figure


def _width_of_marks(forgets: Sequence[str]) -> float:
    """Width in inches of the names of forget concepts next to the rows; a single one is above the panel."""
    return 0.0 if len(forgets) == 1 else max(text_width(short(name, 16), SMALL) for name in forgets) / POINTS + 0.06


def _cells(
    axes: Axes,
    shown: pd.DataFrame,
    labels: Sequence[str],
    forgets: Sequence[str],
    concepts: Sequence[str],
    cell: float,
    turned: bool,
) -> None:
    """One panel, in inches downwards and cells across."""
    from matplotlib.patches import Rectangle

    found = {(row.label, row.forget, row.concept): row for row in shown.itertuples()}
    block = len(forgets) * ROW + BLOCK
    framed = []
    size = min(SMALL, POINTS * cell / 3.0)
    for number, label in enumerate(labels):
        for place, forget in enumerate(forgets):
            top = number * block + place * ROW
            if len(forgets) > 1:
                name = short(forget, 16)
                axes.text(-0.04 / cell, top + ROW / 2, name, fontsize=SMALL, ha="right", va="center_baseline")
            for column, concept in enumerate(concepts):
                row = found.get((label, forget, concept))
                if row is None:
                    continue
                change = 100 * float(row.change)
                face = _colour(-change if row.forgotten else change)
                axes.add_patch(Rectangle((column + 0.015, top + 0.003), 0.97, ROW - 0.006, facecolor=face, linewidth=0))
                ink = INKS[abs(change) >= DARK]
                axes.text(
                    column + 0.5, top + ROW / 2, _points(change), fontsize=size, color=ink, ha="center",
                    va="center_baseline", gid="change",
                )  # fmt: skip
                if row.forgotten:
                    framed.append((column, top))
    for corner in framed:
        for colour, width in zip(INKS, (1.6, 0.5), strict=True):  # seen on light and dark cells and pages
            frame = Rectangle(corner, 1, ROW, fill=False, edgecolor=colour, linewidth=width, zorder=3, clip_on=False)
            frame.set_gid("forgotten" if colour == INKS[0] else None)
            axes.add_patch(frame)
    axes.set(xlim=(0, len(concepts)), ylim=(len(labels) * block - BLOCK, 0), yticks=[])
    axes.set_xticks([i + 0.5 for i in range(len(concepts))], [short(name, 16) for name in concepts])
    size = (
        SMALL
        if turned
        else min(SMALL, 5.0 * cell / (max(text_width(short(name, 16), 5.0) for name in concepts) / POINTS))
    )
    axes.tick_params(labelsize=size, length=0, top=True, labeltop=True, labelbottom=False, rotation=90 * turned)
    axes.spines[:].set_visible(False)
    if len(forgets) == 1:
        axes.set_title(f"forget {short(forgets[0])}", fontsize=TEXT, loc="left", pad=3)


def _points(change: float) -> str:
    """Format a change in whole points with its sign."""
    return f"{change:+.0f}".replace("-", "−") if round(change) else "0"


@cache
def _colours() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("loss and gain", COLOURS)


def _colour(wanted: float) -> tuple[float, float, float, float]:
    """The colour of a change in points: blue where it is what is wanted, orange where it is not."""
    return _colours()(0.5 + wanted / (2 * WHOLE))


def _scale(axes: Axes) -> None:
    """Draw the colour bar."""
    from matplotlib.patches import Rectangle

    steps = 40
    for step in range(steps):
        left = (2 * step / steps - 1) * WHOLE
        face = _colour((2 * (step + 0.5) / steps - 1) * WHOLE)
        axes.add_patch(Rectangle((left, 0), 2 * WHOLE / steps, 1, facecolor=face, edgecolor=face, linewidth=0.3))
    axes.set(xlim=(-WHOLE, WHOLE), ylim=(0, 1), yticks=[], xticks=[-100, -50, 0, 50, 100])
    axes.tick_params(labelsize=SMALL, length=1.5)
    axes.spines[:].set_visible(False)
