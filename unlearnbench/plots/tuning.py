"""Plot tuning: the best objective so far against the number of trials, one line per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unlearnbench.plots.style import GRID, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from unlearnbench.records.tuning import Tuning

WIDTH, HEIGHT = 6.8, 3.2
"""Inches: as wide as two columns of a paper."""
ENTRIES = 24
"""Entries in one column of the legend."""


def best_so_far(found: Sequence[Tuning], title: str) -> Figure:
    """Plot the highest objective with the first seed after each trial, from the first value on.

    A ring marks the chosen trial at its own objective with that seed; the choice was by the mean over all seeds.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from unlearnbench.plots.style import settings

    with settings():
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        figure.set_label(f"best objective so far against trials: {title}")
        axes = figure.subplots()
        looks = styles(one.method for one in found)
        for one in found:
            look = looks[one.method]
            values = [math.nan if value is None else value for value in one.best_so_far()]
            numbers = range(1, len(values) + 1)
            axes.plot(
                numbers, values, drawstyle="steps-post", color=look.colour, ls=look.dash, lw=1.0, label=one.method
            )
            if one.chosen is not None and (value := one.first(one.trials[one.chosen])) is not None:
                axes.plot(one.chosen + 1, value, look.marker, mfc="none", mec=look.colour, ms=4)
        axes.set(title=title, xlabel="trials", ylabel="best objective so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=GRID, lw=0.4)
        axes.set_axisbelow(True)
        columns = -(-len(found) // ENTRIES)
        figure.legend(loc="outside right upper", frameon=False, ncols=columns, handlelength=3.0)
    return figure
