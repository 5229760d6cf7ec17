"""The picture of a board under attack: recovered share against budget, a panel an attack, a line a method."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearnbench.record import Record, replace_file
from unlearnbench.robustness import GOLD, curve, found, labels

COLUMNS = 4
BEYOND = 1.8
"""How far curves go on past the limit, so that what the last look found can be seen."""
STYLES = {GOLD: ("black", "-", 2.5), "original": ("black", "--", 1.5)}
"""Colour, line and width of the floor and of the model that forgot nothing."""


def write_curves(path: Path, title: str, groups: Mapping[str, Sequence[Record]]) -> bool:
    """PNG of every attack that has a value on these methods; False where there is none.

    Curves step up where targets are recovered; those that are not by the limit are censored there, and the curve goes
    on flat. The scale is logarithmic above the first step. Lines that coincide are apart by a hair.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    every = labels(record for records in groups.values() for record in records)
    drawn = {label: {name: curve(found(records, label)) for name, records in groups.items()} for label in every}
    panels = {label: lines for label, lines in drawn.items() if any(lines.values())}
    if not panels:
        return False
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 3.1 * rows + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).flatten()
    colours = _colours([name for name in groups if name not in STYLES])
    handles = {}
    for axis, (label, lines) in zip(axes, panels.items(), strict=False):
        for number, (name, points) in enumerate(lines.items()):
            if points:
                colour, style, width = STYLES.get(name) or (*colours[name], 1.3)
                budgets, shares = zip(*points, (points[-1][0] * BEYOND, points[-1][1]), strict=True)
                lifted = [share + 0.003 * (number % 5 - 2) for share in shares]
                (handles[name],) = axis.step(
                    budgets, lifted, where="post", color=colour, ls=style, lw=width, zorder=3 if name in STYLES else 2
                )
        first = min((b for points in lines.values() for b, _ in points if b > 0), default=1)
        axis.set_xscale("symlog", linthresh=first, linscale=0.4)
        end = max(points[-1][0] for points in lines.values() if points)
        axis.axvline(end, color="grey", lw=0.6, ls=":")
        axis.set_xlim(0, end * BEYOND)
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.25)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    about = "budget: what was spent on a target, up to the dotted line; black: retrain, the floor, and the original"
    figure.suptitle(f"{title}\n{about}", fontsize=11)
    figure.supylabel("recovered share of targets", fontsize=10)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncol=9, fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    replace_file(path, buffer.getvalue())
    return True


def _colours(names: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """A colour a method, as far apart as there are; then the same ones dotted."""
    from matplotlib import colormaps

    pairs, more = colormaps["tab20"].colors, colormaps["Dark2"].colors  # type: ignore[attr-defined]
    some = [*pairs[::2], *more, *pairs[1::2]]
    return {name: (some[i % len(some)], ("-", ":", "-.")[i // len(some) % 3]) for i, name in enumerate(names)}
