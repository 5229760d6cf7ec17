"""Plot the cost of unlearning: bars for each method of its time, the time per image afterwards, and peak memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.leaderboard.rows import Board, BoardRow
from unlearnbench.leaderboard.tables import head
from unlearnbench.plots.layout import (
    COLUMN,
    EDGE,
    POINTS,
    Item,
    assemble,
    blank,
    format_tick,
    log_scale,
    short,
    text_width,
)
from unlearnbench.plots.style import GREY, GRID, SMALL, Style, fill, settings, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = ("unlearn_time", "relative_time", "peak_memory")
PREPARE = "prepare_time"
ROW, BELOW, GAP = 0.135, 0.4, 0.16
"""Inches: height of a method's row, of the axis below, and the gap between panels."""
NOTHING = 0.01
"""Seconds below which there is no bar: that is a function call, not unlearning."""


def cost(table: Board, title: str, names: Iterable[str] | None = None) -> Figure:
    """Draw the costs of one table's rows as horizontal bars with standard deviations, the slowest method on top.

    The panels are unlearning time with preparation time below it (logarithmic), time per image relative to the
    original's, and peak memory. Methods and panels without values are left out; raises `UserError` where nothing is
    left. Pass all labels as `names` when the table has only some of the rows, so that colours stay the same.
    """
    panels = [name for name in PANELS if table.has(name)]
    shown = table.where(lambda row: any(row.stat(name).known for name in panels))
    if not len(shown):
        raise UserError("no row here has a cost: run the methods again")
    style = styles(names if names is not None else [row.label for row in table])
    ordered = shown.of(sorted(shown, key=lambda row: (_seconds(row), row.label)))
    with settings():
        return _drawn(ordered, panels, [style[row.label] for row in ordered], title)


def _seconds(row: BoardRow) -> float:
    """Time to prepare and to unlearn, as far as it is known."""
    return (row.stat(PANELS[0]).value or 0.0) + (row.stat(PREPARE).value or 0.0)


def _drawn(table: Board, panels: Sequence[str], looks: Sequence[Style], title: str) -> Figure:
    metrics = registry.load_metrics()
    labels = [short(row.label, 22) for row in table]
    body = BELOW + ROW * len(table)
    figure = blank(COLUMN, body, f"{title}: {', '.join(head(metrics[name]) for name in panels)}")
    left = (max(text_width(label, SMALL) for label in labels) + EDGE + 4) / POINTS
    wide = (COLUMN - left - 0.1 - GAP * (len(panels) - 1)) / len(panels)
    places = {}
    for number, name in enumerate(panels):
        axes = figure.add_axes((0, 0, 1, 1), label=name)
        places[axes] = (left + number * (wide + GAP), BELOW, wide, body - BELOW)
        (_times if name == PANELS[0] else _bars)(axes, table, name, looks)
        axes.set_ylim(-0.6, len(table) - 0.4)
        axes.set_yticks(range(len(table)), labels if number == 0 else [""] * len(table), fontsize=SMALL)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=SMALL)
        axes.grid(axis="x", color=GRID, linewidth=0.4)
        axes.set_axisbelow(True)
        axes.set_xlabel(head(metrics[name]).replace(" (", "\n(", 1), fontsize=6.5)
    items = []
    if _prepared(table):
        block = {"marker": "s", "mec": GREY, "ms": 4.0, "mew": 0.8}
        items = [
            Item("unlearning", {**block, "mfc": GREY}, 5.0),
            Item("preparing, below it", {**block, "mfc": "none"}, 5),
        ]
    if any(np.isfinite(table.column(name, "sd")).any() for name in panels):
        items.append(Item("± standard deviation", {"color": "#000000", "linewidth": 0.5, "linestyle": "-"}, 8.0))
    assemble(figure, body, places, title, items)
    return figure


def _times(axes: Axes, table: Board, name: str, looks: Sequence[Style]) -> None:
    """Draw unlearning time, and below it the time to prepare, half as high and hollow."""
    times, first = table.column(name), table.column(PREPARE)
    seen = np.concatenate([times, first])
    seen = seen[seen >= NOTHING]
    low, high = (seen.min() / 2, seen.max() * 2) if len(seen) else (NOTHING, 1.0)
    log_scale(axes, "x", low, high)
    axes.set_xlim(low, high)
    spreads = table.column(name, "sd"), table.column(PREPARE, "sd")
    for i, look in enumerate(looks):
        both = first[i] >= NOTHING
        up, height = (0.15, 0.42) if both else (0.0, 0.62)
        if times[i] >= NOTHING:
            axes.barh(i + up, times[i] - low, height, left=low, linewidth=0.6, gid=name, **fill(look))
            _spread(axes, i + up, times[i], spreads[0][i], low)
        elif times[i] < NOTHING:
            axes.text(low * 1.1, i + up, f"< {NOTHING:g}", fontsize=5, color=GREY, va="center")
        if both:
            hollow: dict[str, Any] = {"facecolor": "none", "edgecolor": look.colour}
            axes.barh(i - 0.22, first[i] - low, 0.24, left=low, linewidth=0.6, gid=PREPARE, **hollow)
            _spread(axes, i - 0.22, first[i], spreads[1][i], low)


def _bars(axes: Axes, table: Board, name: str, looks: Sequence[Style]) -> None:
    scale = registry.load_metrics()[name].scale
    values, spread = table.column(name) * scale, table.column(name, "sd") * scale
    for i, look in enumerate(looks):
        if not math.isnan(values[i]):
            axes.barh(i, values[i], 0.62, linewidth=0.6, gid=name, **fill(look))
            _spread(axes, i, values[i], spread[i], 0.0)
    axes.set_xlim(0, 1.08 * np.nanmax(values + np.nan_to_num(spread)) or 1.0)
    axes.locator_params(axis="x", nbins=3)
    axes.xaxis.set_major_formatter(format_tick)
    if name == "relative_time":
        axes.axvline(1, color=GREY, linewidth=0.6, linestyle=(0, (2, 1.5)))


def _spread(axes: Axes, y: float, value: float, sd: float, least: float) -> None:
    if not math.isnan(sd):
        axes.hlines(y, max(least, value - sd), value + sd, colors="#000000", linewidths=0.5, zorder=3)


def _prepared(table: Board) -> bool:
    """Whether any method took time to prepare."""
    return bool((table.column(PREPARE) >= NOTHING).any())
