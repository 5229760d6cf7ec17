"""What all figures share: sizes for print, fonts, and a colour and marker for each method that hold in every figure."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from unlearnbench.leaderboard.rows import CONTROLS

SMALL, TEXT, TITLE = 6.0, 7.0, 8.0
"""Sizes of letters in points."""
GREY, GRID, INK = "#7a7a7a", "#dddddd", "#333333"
"""Of controls and frames, of grids, of the line of the best."""
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
"""Okabe and Ito's, without black, which is the controls', and yellow, which is not seen on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", "h", ">")
DASHES = ("-", (0, (4, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (2, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)),
          (0, (1, 3)), (0, (6, 1, 2, 1)), (0, (2, 3)), (0, (10, 1, 1, 1)))  # fmt: skip
Dash = str | tuple[int, tuple[float, ...]]


class Style(NamedTuple):
    """How one method is drawn."""

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
    """The control that a row's label is of, whatever its settings; None for a method."""
    name = re.split("[@+ ]", label, maxsplit=1)[0]
    return name if name in CONTROLS else None


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each of a table's methods, by its place in the alphabet among them; controls have their own.

    Colours and markers pair up differently until there are more methods than pairs, 66.
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
    """Matplotlib's settings for these figures, whatever the user's own are, until the context ends."""
    from matplotlib import style

    with style.context(["default", SETTINGS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters that the font lacks are boxes, as anywhere
        yield
