"""Plot efficacy against utility: one point with intervals per method, and a line through the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from unlearnbench import registry
from unlearnbench.errors import UserError, unknown
from unlearnbench.leaderboard.rows import Board
from unlearnbench.leaderboard.tables import columns_of, head
from unlearnbench.plots.labels import Box, LabelArea, Place, overlap
from unlearnbench.plots.layout import COLUMN, EDGE, POINTS, Item, assemble, blank, format_tick, short, text_width
from unlearnbench.plots.scatter import (
    JOINED,
    TICKS,
    Axis,
    Points,
    board_axis,
    crowded,
    draw_points,
    free,
    mark,
    place_names,
    room_of,
    ticked,
    write_labels,
)
from unlearnbench.plots.style import GREY, TEXT, Style, settings, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, BELOW, BODY = 0.08, 0.34, 3.0
"""Inches: margin on the right, height of the axis below, total height without title and legend."""
MANY = 60
"""Number of points beyond which only the best and the controls are named."""
TIMES = {"1 s": 1.0, "10 s": 10.0, "1 min": 60.0, "10 min": 600.0, "1 h": 3600.0, "10 h": 36000.0, "100 h": 360000.0}


def front(x: Sequence[float], y: Sequence[float], better: tuple[str, str] = ("higher", "higher")) -> list[int]:
    """Indices of the points that no other dominates, from worse x to better."""
    signs = [1 if way == "higher" else -1 for way in better]
    points = [(signs[0] * a, signs[1] * b) for a, b in zip(x, y, strict=True)]
    kept = [i for i, (a, b) in enumerate(points) if not any(c >= a and d >= b and (c, d) != (a, b) for c, d in points)]
    return sorted(kept, key=lambda i: points[i])


def pareto(
    table: Board, title: str, x: str | None = None, y: str | None = None, names: Iterable[str] | None = None
) -> Figure:
    """Draw efficacy `y` against utility `x` for the rows of one table; better is up and to the right.

    When `x` or `y` is None, the first metric of its axis that has values is drawn. Bars are 95 % intervals, areas grow
    with unlearning time, controls are hollow, and a line joins the methods that no other beats. Pass all labels as
    `names` when the table has only some of the rows, so that colours stay the same. The point of a row has the gid
    `row-<index>`. With more than `MANY` points only those on the line and the controls are named. Raises `UserError`
    where no row has both values.
    """
    known = columns_of(registry.load_metrics())
    x, y = x or axis_metric(table, "utility"), y or axis_metric(table, "efficacy")
    for name in (x, y):
        if name not in known:
            raise unknown("metric", name, known)
        if not table.has(name):
            raise UserError(f"no values of {name} here: name another metric")
    shown = table.where(lambda row: row.stat(x).known and row.stat(y).known)
    if not len(shown):
        raise UserError(f"no row here has both {x} and {y}: name others with --x and --y")
    hidden = [row.label for row in table if not (row.stat(x).known and row.stat(y).known)]
    style = styles(names if names is not None else [row.label for row in table])
    with settings():
        sides = [board_axis(shown, name, known[name]) for name in (x, y)]
        return _drawn(shown, sides, [style[row.label] for row in shown], title, hidden)


def axis_metric(table: Board, axis: str) -> str:
    """The first metric of an axis, with a better direction, that has values in these rows."""
    left_out = set().union(*(registry.without(task) for task in {row.task for row in table}))
    for name, metric in registry.load_metrics().items():
        if metric.axis == axis and metric.better and name not in left_out and table.has(name):
            return name
    raise UserError(f"no row here has a metric of {axis}: run the methods again, or name metrics with --x and --y")


def _drawn(table: Board, sides: Sequence[Axis], looks: list[Style], title: str, hidden: list[str]) -> Figure:
    across, up = sides
    seconds = table.column("unlearn_time")
    areas = np.array([area_of(each) for each in seconds])
    points = Points(across, up, looks, areas, [short(row.label) for row in table])
    figure = blank(COLUMN, BODY, f"{title}: {head(up.metric)} against {head(across.metric)}")
    axes = figure.add_axes((0.0, BELOW / BODY, 1.0, 1.0 - BELOW / BODY), label="main")
    best = _best(points)
    draw_points(axes, points, [side.limits() for side in sides], best)
    left = (1.3 * TEXT + EDGE + 6.0 + _widest_tick(axes)) / POINTS
    inner = (left, BELOW, COLUMN - left - RIGHT, BODY - BELOW)
    axes.set_position((left / COLUMN, BELOW / BODY, inner[2] / COLUMN, inner[3] / BODY))
    mark(axes, points, [f"row-{row.index}" for row in table])
    axes.set(xlabel=head(across.metric), ylabel=head(up.metric))

    few = len(looks) <= MANY
    which = [i for i, look in enumerate(looks) if few or i in best or look.control]
    panels = _panels(axes, points, best, which)
    texts = _texts(panels, points.labels)
    items = [*_size_items(seconds), *([Item("Pareto front", JOINED, 10.0)] if len(best) > 1 else [])]
    if np.isfinite([across.low, up.low]).any():
        items.append(Item("95 % interval", {"color": GREY, "linewidth": 0.5, "linestyle": "-"}, 10.0))
    if any(look.control for look in looks):
        items.append(Item("controls", {"marker": "o", "mfc": "none", "mec": GREY, "ms": 4.0, "mew": 0.8}, 5.0))
    rest = [i for i in which if texts.get(i) != points.labels[i]]
    for i in sorted(rest, key=lambda i: int(texts.get(i, len(looks) + 1))):
        items.append(Item(f"{texts.get(i, '')} {points.labels[i]}".strip(), _marker(looks[i]), 5.0))
    notes = [f"not shown, for want of a value: {', '.join(hidden)}"] if hidden else []
    notes += [] if few else [f"{len(looks) - len(which)} more methods are not named"]
    bottom = assemble(figure, BODY, {axes: inner}, title, items, notes)
    for panel in panels:
        x, y = panel.corner
        write_labels(figure, (left + x / POINTS, bottom + BELOW + y / POINTS), panel.places, texts, points)
    return figure


def _widest_tick(axes: Axes) -> float:
    """Width in points of the widest number next to the plot."""
    low, high = sorted(axes.get_ylim())
    return max((text_width(format_tick(tick), 6.5) for tick in axes.get_yticks() if low <= tick <= high), default=0.0)


def _best(points: Points) -> list[int]:
    """The methods that no other dominates, without controls, where both axes have a better direction."""
    better = points.across.metric.better, points.up.metric.better
    rivals = [i for i, look in enumerate(points.looks) if not look.control]
    x, y = points.across.values[rivals], points.up.values[rivals]
    return [rivals[i] for i in front(x, y, better)] if all(better) else []  # type: ignore[arg-type]


class _Panel(NamedTuple):
    """The plot, or an inset that enlarges a part of it."""

    corner: tuple[float, float]
    """Points from the lower left of the plot."""
    room: LabelArea
    places: dict[int, Place]
    lost: list[int]
    """Points of this panel without room for their name."""


def _panels(axes: Axes, points: Points, best: Sequence[int], which: Sequence[int]) -> list[_Panel]:
    """Name some points; a crowd without room for names is named in an inset."""
    whole = _panel((0.0, 0.0), room_of(axes, points, best), points.labels, which)
    region = crowded(whole.room, whole.lost)
    spot = free(whole.room, region) if region else None
    if region is None or spot is None:
        return [whole]
    inset = _closer(axes, region, spot, points, best)
    within = [i for i in which if overlap(whole.room.markers[[i]], np.array([region])).any()]
    left, low, right, high = spot
    blocked = [(left - TICKS[0], low - TICKS[1], right + 2, high + 2), region]
    return [
        _panel((0.0, 0.0), room_of(axes, points, best, blocked), points.labels, [i for i in which if i not in within]),
        _panel((left, low), room_of(inset, points, best), points.labels, within),
    ]


def _closer(axes: Axes, region: Box, spot: Box, points: Points, best: Sequence[int]) -> Axes:
    """Draw a region of the plot enlarged at a free place, connected to the region by a line."""
    from matplotlib.patches import Rectangle

    origin, corner = axes.transAxes.transform([(0, 0), (1, 1)])
    left, low, right, high = np.tile(1 / (corner - origin), 2) * spot
    inset = axes.inset_axes((left, low, right - left, high - low))
    ends = axes.transData.inverted().transform(np.array(region).reshape(2, 2) + origin)
    draw_points(inset, points, [(ends[0, 0], ends[1, 0]), (ends[0, 1], ends[1, 1])], best)
    mark(inset, points, [None] * len(points.labels))
    ticked(inset, points)
    part = np.tile(1 / (corner - origin), 2) * region
    frame = Rectangle((part[0], part[1]), *(part[2:] - part[:2]), transform=axes.transAxes)
    axes.add_patch(frame)
    frame.set(fill=False, edgecolor=GREY, linewidth=0.5, zorder=5, clip_on=False)
    starts, stops = (np.array([(b[i], b[j]) for i in (0, 2) for j in (1, 3)]) for b in ((left, low, right, high), part))
    apart = np.linalg.norm(starts[:, None] - stops[None], axis=2)
    i, j = np.unravel_index(apart.argmin(), apart.shape)
    line = np.array([starts[i], stops[j]])
    axes.plot(line[:, 0], line[:, 1], color=GREY, linewidth=0.5, transform=axes.transAxes, zorder=1)
    return inset


def _panel(corner: tuple[float, float], room: LabelArea, labels: Sequence[str], which: Sequence[int]) -> _Panel:
    places = place_names(room, labels, which)
    return _Panel(corner, room, places, [i for i in which if i not in places])


def _texts(panels: Sequence[_Panel], labels: Sequence[str]) -> dict[int, str]:
    """The text at each point: its name, else a number if there is room, else nothing."""
    texts = {i: labels[i] for panel in panels for i in panel.places}
    number = 0
    for panel in panels:
        for i in panel.lost:
            found = place_names(panel.room, [str(number + 1)] * len(labels), [i])
            if found:
                number += 1
                texts[i] = str(number)
                panel.places.update(found)
    return texts


def _marker(look: Style) -> dict[str, Any]:
    return {"marker": look.marker, "mfc": look.face, "mec": look.colour, "ms": 4.0, "mew": 0.8}


def _size_items(seconds: np.ndarray) -> list[Item]:
    """Up to three times in the range of the rows, as circles with their areas."""
    known = [each for each in seconds if not math.isnan(each)]
    if not known:
        return []
    inside = [text for text, time in TIMES.items() if min(known) <= time <= max(known)] or ["1 s"]
    kept = inside if len(inside) <= 3 else [inside[0], inside[len(inside) // 2], inside[-1]]
    items = [Item("unlearning time:")]
    for text in kept:
        size = math.sqrt(area_of(TIMES[text]))
        items.append(Item(text, {"marker": "o", "mfc": GREY, "mec": "none", "ms": size}, size))
    return items


def area_of(seconds: float) -> float:
    """Area of a marker in square points, growing with the logarithm of the time; unknown counts as 0."""
    return 10.0 + 9.0 * math.log10(1.0 + (0.0 if math.isnan(seconds) else max(0.0, seconds)))
