"""Plot trajectories: efficacy and utility by step and by second, and below them what methods noted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench import registry
from unlearnbench.leaderboard.tables import head
from unlearnbench.plots.layout import EDGE, PAGE, POINTS, Item, assemble, blank, format_tick, log_scale, short
from unlearnbench.plots.style import GRID, TEXT, Style, settings, styles
from unlearnbench.records.schema import Record
from unlearnbench.records.trajectory import PointRecord, TrajectoryRecord
from unlearnbench.statistics import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORES = ("ua", "ra")
COLUMNS, MOST = 4, 16
"""Number of series in a row, and in all."""
LEFT, TALL, SMALL, BELOW, TITLED = 0.5, 1.2, 0.85, 0.34, 0.2
"""Inches: scale on the left, height of a panel of scores, of a series, ticks with a name, title."""
DECADES = 100.0
"""Ratio of largest to smallest value from which a series has a logarithmic scale."""
ABOUT = (
    "filled: the step that is reported, always the last; bands: 95 % intervals over images; scores are of held-out "
    "noise and fewer images, not the reported ones"
)
Lines = list[tuple[str, list[float], list[float | None]]]
"""Label, positions and values."""


class Panel(NamedTuple):
    """One of the figure's axes."""

    name: str
    across: str
    lines: Lines
    score: bool
    """Whether its values are scores in per cent."""
    counts: list[int]
    """Images per score, by line."""


def trajectory_figure(
    title: str, groups: Mapping[str, Sequence[Record]], names: Iterable[str] | None = None
) -> Figure | None:
    """Plot the trajectories of these records, by label; None where there is none.

    Two columns of scores, by step and by second of unlearning, then a panel for each series by step, with a logarithmic
    scale where all values are positive and span two decades. Pass all labels as `names` when there are only some, so
    that colours stay the same.
    """
    runs = [(name, r.trajectory) for name, records in groups.items() for r in records if r.trajectory]
    if not runs:
        return None
    scores, watched = list(_score_panels(runs)), _series_panels(runs)
    looks = styles(names if names is not None else groups)
    rows, low = len(scores) // 2, -(-min(len(watched), MOST) // COLUMNS)
    body = rows * (TALL + BELOW) + low * (SMALL + BELOW + TITLED)
    with settings():
        made = blank(PAGE, max(body, 1.0), f"{title}: scores and what was watched, step by step")
        places = {}
        for panel, place in [
            *_grid(scores, 2, TALL, BELOW, body),
            *_grid(watched[:MOST], COLUMNS, SMALL, BELOW + TITLED, low * (SMALL + BELOW + TITLED)),
        ]:
            axes = made.add_axes((0, 0, 1, 1), label=f"{panel.name} by {panel.across}")
            places[axes] = place
            (_scored if panel.score else _watched)(axes, panel, looks)
        drawn = dict.fromkeys(name for name, _ in runs)
        items = [Item(short(name), _line(looks[name]), 14.0) for name in drawn]
        more = [short(panel.name) for panel in watched[MOST:]]
        notes = [ABOUT] if scores else []
        if again := list(dict.fromkeys(short(name) for name, kept in runs if kept.other_weights)):
            notes.append(f"of a second unlearning, to other weights than the record's: {', '.join(again)}")
        assemble(made, body, places, title, items, [*notes, *([f"not drawn: {', '.join(more)}"] if more else [])])
    return made


def _grid(
    panels: Sequence[Panel], columns: int, tall: float, between: float, top: float
) -> Iterator[tuple[Panel, tuple[float, float, float, float]]]:
    """Place panels row by row, downwards from `top`."""
    wide = (PAGE - EDGE / POINTS) / columns
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        foot = top - (row + 1) * (tall + between) + BELOW
        yield panel, (column * wide + LEFT, foot, wide - LEFT - 0.08, tall)


def _score_panels(runs: Sequence[tuple[str, TrajectoryRecord]]) -> Iterator[Panel]:
    """Two panels for each score, side by side."""
    axes: list[tuple[str, Callable[[PointRecord], float]]] = [
        ("step", lambda point: float(point.step)),
        ("seconds of unlearning", lambda point: point.seconds),
    ]
    for score in SCORES:
        found = [(name, kept) for name, kept in runs if any(p.scores.get(score) is not None for p in kept.points)]
        for across, place in axes if found else []:
            lines: Lines = [
                (name, [place(p) for p in kept.points], [p.scores.get(score) for p in kept.points])
                for name, kept in found
            ]
            yield Panel(score, across, lines, True, [kept.n.get(score, 0) for _, kept in found])


def _series_panels(runs: Sequence[tuple[str, TrajectoryRecord]]) -> list[Panel]:
    names = dict.fromkeys(name for _, kept in runs for name in kept.watched)
    found = []
    for series in names:
        lines: Lines = [
            (label, list(map(float, kept.watched[series].steps)), list(kept.watched[series].values))
            for label, kept in runs
            if series in kept.watched
        ]
        found.append(Panel(series, "step", lines, False, []))
    return found


def _scored(axes: Axes, panel: Panel, looks: Mapping[str, Style]) -> None:
    metric = registry.load_metrics()[panel.name]
    for (name, across, values), n in zip(panel.lines, panel.counts, strict=True):
        known = [(x, value) for x, value in zip(across, values, strict=True) if value is not None]
        if not known:
            continue
        places, heights = zip(*((x, metric.scale * value) for x, value in known), strict=True)
        axes.plot(places, heights, zorder=3, **{**_line(looks[name]), "markerfacecolor": "white"})
        if known[-1][0] == across[-1]:
            axes.plot(places[-1:], heights[-1:], zorder=4, **{**_line(looks[name]), "markersize": 4.0})
        bounds = [bound for _, value in known if (bound := wilson(round(value * n), n))]
        if len(bounds) > 1:
            low, high = ([metric.scale * bound[side] for bound in bounds] for side in (0, 1))
            axes.fill_between(places, low, high, color=looks[name].colour, alpha=0.1, linewidth=0)
    axes.set(ylim=(-3, 103), ylabel=head(metric), xlabel=panel.across)
    _plainly(axes)


def _watched(axes: Axes, panel: Panel, looks: Mapping[str, Style]) -> None:
    known = [value for _, _, values in panel.lines for value in values if value is not None]
    for name, across, values in panel.lines:
        look = _line(looks[name])
        single = len(values) == 1
        heights = [math.nan if value is None else value for value in values]
        axes.plot(across, heights, **{**look, "marker": look["marker"] if single else "", "linewidth": 0.8})
    if known and min(known) > 0 and max(known) >= DECADES * min(known):
        log_scale(axes, "y", min(known), max(known))
    else:
        axes.yaxis.set_major_formatter(format_tick)
    axes.set_title(short(panel.name), fontsize=TEXT, pad=3)
    axes.set_xlabel(panel.across)
    _plainly(axes)


def _plainly(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(format_tick)
    axes.grid(color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)


def _line(look: Style) -> dict[str, Any]:
    """Line style for matplotlib, with the method's marker."""
    marker = {"marker": look.marker, "markersize": 2.6, "markerfacecolor": look.face, "markeredgewidth": 0.5}
    return {"color": look.colour, "linestyle": look.dash, "linewidth": 1.0, **marker}
