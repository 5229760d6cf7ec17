"""The style that all figures share: sizes for print, fonts, and a colour and marker for each method."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from unlearnbench.leaderboard.rows import CONTROLS

SMALL, TEXT, TITLE = 6.0, 7.0, 8.0
"""Font sizes in points."""
GREY, GRID, INK = "#7a7a7a", "#dddddd", "#333333"
"""Colours of controls and frames, of grids, and of the line through the best."""
SETTINGS: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": TEXT,
    "axes.titlesize": TITLE,
    "axes.labelsize": TEXT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "axes.labelpad": 2.0,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,  # a $ in a method's name is a $
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "unlearnbench",
}
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito, without black, which controls use, and yellow, which is invisible on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", "h", ">")
DASHES = ("-", (0, (4, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (2, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)),
          (0, (1, 3)), (0, (6, 1, 2, 1)), (0, (2, 3)), (0, (10, 1, 1, 1)))  # fmt: skip
Dash = str | tuple[int, tuple[float, ...]]


class Style(NamedTuple):
    """The colour, marker and dash of one method."""

    colour: str
    marker: str
    dash: Dash = "-"
    control: bool = False
    """Controls are hollow."""


OF_CONTROLS = {
    "original": Style("#000000", "o", (0, (4, 1.2)), True),
    "retrain": Style("#000000", "s", "-", True),
    "destroy": Style(GREY, "X", (0, (1, 1)), True),
    "prompt_filter": Style(GREY, "D", (0, (5, 1, 1, 1)), True),
}


def control_of(label: str) -> str | None:
    """The control that a label belongs to, whatever its settings; None for a method."""
    name = re.split("[@+ ]", label, maxsplit=1)[0]
    return name if name in CONTROLS else None


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """Map labels to styles by alphabetical order; controls have their own.

    Combinations of colour and marker are unique for up to 66 methods.
    """
    names = dict.fromkeys(labels)
    made = {name: OF_CONTROLS[control] for name in names if (control := control_of(name))}
    for place, name in enumerate(sorted(set(names) - set(made))):
        dash = DASHES[place // len(PALETTE) % len(DASHES)]
        made[name] = Style(PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)], dash)
    return made


def fill(style: Style) -> dict[str, Any]:
    """Colours of a marker or bar."""
    return {"facecolor": "none" if style.control else style.colour, "edgecolor": style.colour}


@contextmanager
def settings() -> Iterator[None]:
    """Use these figures' matplotlib settings, whatever the user's own are, until the context ends."""
    from matplotlib import style

    with style.context(["default", SETTINGS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters that the font lacks are boxes, as anywhere
        yield
