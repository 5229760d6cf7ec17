"""Plot attacks as recovered share against budget, one panel per attack, one line per method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlearnbench.attacks.spec import AttackSpec
from unlearnbench.leaderboard.robustness import GOLD, attack_labels, curve, found
from unlearnbench.plots.layout import EDGE, PAGE, POINTS, Item, assemble, blank, format_tick, short
from unlearnbench.plots.style import GREY, GRID, TEXT, Style, settings, styles
from unlearnbench.records.identity import strip_suffix
from unlearnbench.records.schema import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
BEYOND = 1.8
"""How far curves go on past the limit, so that what the last look found can be seen."""
LEFT, TALL, BELOW, ABOVE = 0.42, 1.12, 0.2, 0.18
"""Inches: what the scale on the left takes, a panel, its ticks, its title."""
WIDTHS = {GOLD: 1.6, "original": 1.0}
"""Line widths in points of retrain and the original."""
ABOUT = "budget: what was spent on a target, up to the dotted line; black: retrain, the floor, and the original"
Points = list[tuple[float, float]]


def attack_figure(
    title: str, groups: Mapping[str, Sequence[Record]], names: Iterable[str] | None = None
) -> Figure | None:
    """Plot every attack that has a value on these methods; None where there is none.

    `groups` are records by label. Curves rise where targets are recovered; targets that are not recovered by the limit
    are censored there, and the curve stays flat. The scale is logarithmic above the first step. Coinciding lines are
    drawn slightly apart. Pass all labels as `names` when `groups` has only some, so that colours stay the same. Attacks
    with a budget given by a user are left out.
    """
    known = attack_labels(each for records in groups.values() for each in records)
    every = [label for label in known if AttackSpec.parse(label).budget is None]
    lines = {label: {name: curve(found(records, label)) for name, records in groups.items()} for label in every}
    panels = {label: each for label, each in lines.items() if any(each.values())}
    if not panels:
        return None
    looks = styles(names if names is not None else groups)
    rows = -(-len(panels) // COLUMNS)
    tall = TALL + BELOW + ABOVE
    with settings():
        made = blank(PAGE, rows * tall, f"{title}: recovered share of targets against budget, by attack")
        wide = (PAGE - LEFT - EDGE / POINTS) / COLUMNS
        places = {}
        for number, (label, curves) in enumerate(panels.items()):
            row, column = divmod(number, COLUMNS)
            axes = made.add_axes((0, 0, 1, 1), label=label)
            places[axes] = (LEFT + column * wide, (rows - row - 1) * tall + BELOW, wide - 0.1, TALL)
            _panel(axes, curves, looks)
            axes.set_title(short(label), fontsize=TEXT, pad=3)
            axes.tick_params(labelleft=column == 0)
            if column == 0:
                axes.set_ylabel("recovered share")
        drawn = [name for name in groups if any(each[name] for each in panels.values())]
        items = [Item(short(name), _line(name, looks[name]), 14.0) for name in drawn]
        assemble(made, rows * tall, places, title, items, [ABOUT])
    return made


def _panel(axes: Axes, curves: Mapping[str, Points], looks: Mapping[str, Style]) -> None:
    from matplotlib.ticker import NullLocator

    for number, (name, points) in enumerate(curves.items()):
        if points:
            budgets, shares = zip(*points, (points[-1][0] * BEYOND, points[-1][1]), strict=True)
            lifted = [share + 0.003 * (number % 5 - 2) for share in shares]
            line = _line(name, looks[name])
            order = 3 if strip_suffix(name) in WIDTHS else 2
            axes.step(budgets, lifted, where="post", zorder=order, markevery=[-2], **line)
    first = min((budget for points in curves.values() for budget, _ in points if budget > 0), default=1)
    end = max(points[-1][0] for points in curves.values() if points)
    decades = [10.0**power for power in range(-3, 10) if first <= 10.0**power <= end * BEYOND]
    axes.set_xscale("symlog", linthresh=first, linscale=0.4)
    axes.set_xticks([0.0, *(decades or [end])])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(format_tick)
    axes.axvline(end, color=GREY, linewidth=0.6, linestyle=":")
    axes.set(xlim=(0, end * BEYOND), ylim=(-0.03, 1.03))
    axes.grid(color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)


def _line(name: str, look: Style) -> dict[str, Any]:
    """Line style for matplotlib, with the method's marker at the limit."""
    marker = {"marker": look.marker, "markersize": 2.6, "markerfacecolor": look.face, "markeredgewidth": 0.5}
    return {"color": look.colour, "linestyle": look.dash, "linewidth": WIDTHS.get(strip_suffix(name), 0.9), **marker}
