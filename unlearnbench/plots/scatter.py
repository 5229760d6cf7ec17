"""Draw a panel of points with two metrics, intervals, a line through the best, names, and an inset for crowds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from unlearnbench.leaderboard.rows import Board
from unlearnbench.leaderboard.tables import Derived
from unlearnbench.plots.labels import Box, LabelArea, Place, overlap
from unlearnbench.plots.layout import POINTS, format_tick, log_scale, text_width
from unlearnbench.plots.style import GREY, GRID, INK, SMALL, Style, fill

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from unlearnbench.metric import Metric

JOINED: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": "-"}
"""Style of the line through the best."""
LOGARITHMIC = ("fid", "fid_train", "unlearn_time", "prepare_time")
LETTERS = 1.17 * SMALL
"""Height of a name in points."""
NEIGHBOURS, CROWD = 22.0, 3
"""At least this many points without names, this near to each other in points, are a crowd."""
SIZES = ((0.66, 0.6), (0.6, 0.5), (0.5, 0.5), (0.5, 0.4), (0.4, 0.4), (0.4, 0.3))
"""Shares of the panel for an inset; the first that has room is taken."""
TICKS = (15.0, 9.0)
"""Points for ticks on the left and below."""


class Axis(NamedTuple):
    """One axis of a panel: a metric and its values as shown, with the ends of their intervals."""

    name: str
    metric: Metric | Derived
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def logarithmic(self) -> bool:
        """Whether its scale is logarithmic, which needs values above zero."""
        return self.name in LOGARITHMIC and bool((self.values > 0).all())

    def limits(self) -> tuple[float, float]:
        """Ends of the scale, from the worse to the better."""
        ends = np.concatenate([self.values, self.low, self.high])
        ends = ends[np.isfinite(ends)]
        if self.logarithmic:
            ends = np.log10(ends[ends > 0])
        low, high = float(ends.min()), float(ends.max())
        pad = 0.05 * (high - low) or 0.5
        low, high = low - pad, high + pad
        if self.logarithmic:
            low, high = 10.0**low, 10.0**high
        return (high, low) if self.metric.better == "lower" else (low, high)


def board_axis(table: Board, name: str, metric: Metric | Derived) -> Axis:
    """A metric of a board's rows with its interval, in the metric's unit."""
    return Axis(name, metric, *(table.column(name, part) * metric.scale for part in ("value", "low", "high")))


class Points(NamedTuple):
    """The N points of a panel with the styles of their methods."""

    across: Axis
    up: Axis
    looks: list[Style]
    areas: np.ndarray
    """(N,) areas of markers in square points."""
    labels: list[str]


def draw_points(axes: Axes, points: Points, limits: Sequence[tuple[float, float]], best: Sequence[int]) -> None:
    """Draw scales, grid, intervals, and the line through the `best`."""
    from matplotlib.ticker import MaxNLocator

    for which, side, ends in zip("xy", points[:2], limits, strict=True):
        if side.logarithmic:
            log_scale(axes, which, min(ends), max(ends))
        else:
            axis = axes.xaxis if which == "x" else axes.yaxis
            axis.set_major_locator(MaxNLocator(6))
            axis.set_major_formatter(format_tick)
        axes.set(**{f"{which}lim": ends})
    axes.grid(color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    for which, side, other in (("x", points.across, points.up), ("y", points.up, points.across)):
        _intervals(axes, which, side, other.values, points.looks)
    if len(best) > 1:
        axes.plot(
            points.across.values[best], points.up.values[best], drawstyle="steps-pre", gid="front", zorder=1, **JOINED
        )


def mark(axes: Axes, points: Points, ids: Sequence[str | None]) -> None:
    """Draw markers, smaller ones on top; `ids` (N,) are their gids."""
    for i in sorted(range(len(ids)), key=lambda i: -points.areas[i]):
        look = points.looks[i]
        axes.scatter(
            [points.across.values[i]], [points.up.values[i]], s=points.areas[i], marker=look.marker,
            linewidths=0.3 if look.face == look.colour else 0.8, gid=ids[i], zorder=4 if look.control else 3,
            **({"facecolor": look.colour, "edgecolor": "#ffffff"} if look.face == look.colour else fill(look)),
        )  # fmt: skip


def _intervals(axes: Axes, which: str, side: Axis, at: np.ndarray, looks: Sequence[Style]) -> None:
    """Draw thin bars where a row has an interval; on a logarithmic scale they end at the panel's edge."""
    known = np.isfinite(side.low) & np.isfinite(side.high)
    low = np.maximum(side.low, min(getattr(axes, f"get_{which}lim")())) if side.logarithmic else side.low
    colours = [look.colour for look, there in zip(looks, known, strict=True) if there]
    line = axes.hlines if which == "x" else axes.vlines
    line(at[known], low[known], side.high[known], colors=colours, linewidths=0.5, alpha=0.6, zorder=2)


def room_of(axes: Axes, points: Points, best: Sequence[int], blocked: Sequence[Box] = ()) -> LabelArea:
    """The panel in points from its lower left, with markers, intervals and the line through the `best`."""
    across, up = points.across, points.up
    origin = axes.transAxes.transform((0, 0))

    def at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = (np.where(np.isfinite(each), each, side.values) for each, side in ((x, across), (y, up)))
        if across.logarithmic:
            x = np.maximum(x, min(axes.get_xlim()))
        if up.logarithmic:
            y = np.maximum(y, min(axes.get_ylim()))
        return axes.transData.transform(np.column_stack([x, y])) - origin

    sides = [
        (at(across.low, up.values), at(across.high, up.values)),
        (at(across.values, up.low), at(across.values, up.high)),
    ]
    own = at(across.values, up.values)
    turns = [(*own[a], own[a][0], own[b][1]) for a, b in pairwise(best)]
    turns += [(own[a][0], own[b][1], *own[b]) for a, b in pairwise(best)]
    bars = np.vstack([*(np.hstack(ends) for ends in sides), np.array(turns).reshape(-1, 4)])
    width, height = axes.transAxes.transform((1, 1)) - origin
    radii = np.sqrt(points.areas) / 2 + 0.6
    return LabelArea((0.0, 0.0, float(width), float(height)), own, radii, bars, blocked)


def place_names(room: LabelArea, labels: Sequence[str], which: Sequence[int]) -> dict[int, Place]:
    """Find places for the names of some points."""
    sizes = [(text_width(label, SMALL), LETTERS) if i in which else None for i, label in enumerate(labels)]
    return room.place(sizes)


def write_labels(
    figure: Figure, corner: tuple[float, float], places: Mapping[int, Place], texts: Mapping[int, str], points: Points
) -> None:
    """Write names or numbers in their places; `corner` of the panel in inches."""
    from matplotlib.lines import Line2D

    scale, start = figure.dpi_scale_trans, np.array(corner)
    for i, place in places.items():
        left, low, right, high = place.box
        x, y = start + np.array([left + right, low + high]) / 2 / POINTS
        figure.text(x, y, texts[i], fontsize=SMALL, ha="center", va="center", transform=scale, gid="name", zorder=6)
        if place.leader:
            ends = np.array(place.leader).reshape(2, 2) / POINTS + start
            line = Line2D(ends[:, 0], ends[:, 1], color=points.looks[i].colour, linewidth=0.4, transform=scale)
            figure.add_artist(line)


def ticked(axes: Axes, points: Points) -> None:
    """Set small ticks for an inset, none outside the possible values."""
    from matplotlib.ticker import MaxNLocator

    axes.tick_params(labelsize=5, length=1.5, pad=1)
    axes.spines[:].set(visible=True, color=GREY)
    for which, side in (("x", points.across), ("y", points.up)):
        low, high = sorted(getattr(axes, f"get_{which}lim")())
        if side.logarithmic:
            continue
        bounds = (None, None) if isinstance(side.metric, Derived) else side.metric.bounds()
        least, most = (end if end is None else end * side.metric.scale for end in bounds)
        low, high = max(low, low if least is None else least), min(high, high if most is None else most)
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
        axes.set(**{f"{which}ticks": ticks})


def crowded(room: LabelArea, without: Sequence[int]) -> Box | None:
    """The part of a panel where most points have no name; None where these are no crowd."""
    groups: list[set[int]] = []
    for i in without:
        near = np.linalg.norm(room.points - room.points[i], axis=1) < NEIGHBOURS
        joined = [group for group in groups if any(near[j] for j in group)]
        groups = [group for group in groups if group not in joined] + [{i}.union(*joined)]
    most = max(groups, key=len, default=set())
    if len(most) < CROWD:
        return None
    some = room.markers[sorted(most)]
    left, low = some[:, :2].min(axis=0) - 2
    right, high = some[:, 2:].max(axis=0) + 2
    return float(left), float(low), float(right), float(high)


def free(room: LabelArea, region: Box) -> Box | None:
    """The largest free place for an inset of a region, without its ticks; None if there is none."""
    _, _, width, height = room.area
    for wide, tall in SIZES:
        w, h = wide * width, tall * height
        if min(w / (region[2] - region[0]), h / (region[3] - region[1])) < 1.5:
            continue
        for x in np.linspace(TICKS[0] + 2, width - w - 2, 12):
            for y in np.linspace(height - h - 4, TICKS[1] + 2, 12):
                box = np.array([[x - TICKS[0] - 2, y - TICKS[1] - 2, x + w + 2, y + h + 2]])
                if not overlap(box, np.array([*room.markers, region])).any():
                    return float(x), float(y), float(x + w), float(y + h)
    return None
