"""The style that all figures share: sizes for print, fonts, and a colour and marker for each method."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from unlearnbench.leaderboard.rows import CONTROLS
from unlearnbench.records.identity import strip_suffix

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
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a3ffc")
"""Okabe and Ito, without black, which controls use. A violet takes the place of yellow, which is invisible on white; it
is no closer to the others than these are to each other, for colour-blind readers too."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", "h", ">")
DASHES = ("-", (0, (4, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (2, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)),
          (0, (1, 3)), (0, (6, 1, 2, 1)), (0, (2, 3)), (0, (10, 1, 1, 1)))  # fmt: skip
Dash = str | tuple[int, tuple[float, ...]]
SETTINGS_OF_PAPERS = ("", "@published", "@tuned")
"""What follows a method's name in a label, in the order of `FACES`: default settings come first."""
FACES = ("", "00", "59")
"""Opacity of a marker's face as two hexadecimal digits, by settings: full for the defaults, none, a third."""


class Style(NamedTuple):
    """The colour and marker of a method, and the dash and face that tell its settings apart."""

    colour: str
    marker: str
    dash: Dash = "-"
    control: bool = False
    """Controls are hollow."""
    opacity: str = ""
    """Of the face, as two hexadecimal digits; empty for full."""

    @property
    def face(self) -> str:
        """The colour inside a marker."""
        return "none" if self.control else f"{self.colour}{self.opacity}"


OF_CONTROLS = {
    "original": Style("#000000", "o", (0, (4, 1.2)), True),
    "retrain": Style("#000000", "s", "-", True),
    "destroy": Style(GREY, "X", (0, (1, 1)), True),
    "prompt_filter": Style(GREY, "D", (0, (5, 1, 1, 1)), True),
}


def control_of(label: str) -> str | None:
    """The control that a label belongs to, whatever its settings; None for a method."""
    name = method_of(label)
    return name if name in CONTROLS else None


def method_of(label: str) -> str:
    """The name of the method in a label such as `esd@tuned+lr=0.1 (engine 2)`."""
    return re.split("[@+ ]", label, maxsplit=1)[0]


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """Map labels to styles: a colour and a marker for each method by alphabetical order; controls have their own.

    A method's settings share its colour and marker. Their faces differ (full for the defaults, hollow for published
    and pale for tuned ones). Dashes of lines tell apart settings, and methods of one colour. Combinations of colour and
    marker are unique for up to 77 methods.
    """
    names = dict.fromkeys(labels)
    made = {name: OF_CONTROLS[control] for name in names if (control := control_of(name))}
    families: dict[str, list[str]] = {}
    for name in sorted(set(names) - set(made)):
        families.setdefault(method_of(name), []).append(name)
    for place, (method, own) in enumerate(sorted(families.items())):
        known = [method + words for words in SETTINGS_OF_PAPERS]
        given = list(dict.fromkeys([*known, *map(strip_suffix, own)]))
        lines = list(dict.fromkeys([*known, *own]))
        for name in own:
            face = FACES[given.index(strip_suffix(name)) % len(FACES)]
            dash = DASHES[(len(FACES) * lines.index(name) + place // len(PALETTE)) % len(DASHES)]
            made[name] = Style(PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)], dash, opacity=face)
    return made


def fill(style: Style) -> dict[str, Any]:
    """Colours of a marker or bar."""
    return {"facecolor": style.face, "edgecolor": style.colour}


def outline(marker: str) -> str:
    """A marker's outline as the path of an SVG, within -0.5 and 0.5."""
    from matplotlib.markers import MarkerStyle

    shape = MarkerStyle(marker)
    path = shape.get_path().transformed(shape.get_transform())
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    drawn = []
    for ends, code in path.iter_segments(simplify=False):
        upright = [f"{-value if i % 2 else value:.3g}" for i, value in enumerate(ends)]
        drawn.append(letters[int(code)] + ("" if code == 79 else " ".join(upright)))
    return "".join(drawn)


@contextmanager
def settings() -> Iterator[None]:
    """Use these figures' matplotlib settings, whatever the user's own are, until the context ends."""
    from matplotlib import style

    with style.context(["default", SETTINGS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters that the font lacks are boxes, as anywhere
        yield
