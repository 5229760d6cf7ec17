"""Write figures to files for papers, or embed them in a page."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from unlearnbench.errors import UserError
from unlearnbench.plots.style import GRID, INK, settings
from unlearnbench.printable import printable
from unlearnbench.storage.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNDATED: dict[str, dict[str, Any]] = {
    ".pdf": {"CreationDate": None, "Creator": "unlearnbench", "Producer": None},
    ".svg": {"Date": None, "Creator": "unlearnbench"},
    ".png": {"Software": None},
}
"""Metadata of figures by suffix, without anything that varies between runs."""
DPI = 300
ON_PAGE = 200
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
FOREGROUND = re.compile(rf"#000000|\bblack\b|{INK}")
FAINT = "stroke: currentColor; stroke-opacity: 0.18"
"""Style of a grid on light and dark pages."""
REFERENCE = re.compile(r"url\(#([^)]+)\)")


def check_figure_path(path: Path) -> Path:
    """Return the path of a figure; raises `UserError` for an unknown suffix."""
    if path.suffix.lower() not in UNDATED:
        raise UserError(f"cannot write a figure to {path}: its name must end in .pdf, .svg or .png")
    return path


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically as .pdf with TrueType fonts, .svg with text as text, or .png at 300 dpi.

    The same figure gives the same bytes. Raises `UserError` for an unknown suffix, `OSError` where it cannot be
    written.
    """
    kind = check_figure_path(path).suffix.lower()
    _clean(figure)
    buffer = io.BytesIO()
    with settings():
        figure.savefig(buffer, format=kind[1:], dpi=DPI, metadata=UNDATED[kind])
    replace_file(path, buffer.getvalue())


def render_png(figure: Figure, source: str) -> bytes:
    """Render a figure as PNG with the hash of its source in the metadata."""
    _clean(figure)
    buffer = io.BytesIO()
    with settings():
        figure.savefig(buffer, format="png", dpi=ON_PAGE, metadata={**UNDATED[".png"], "Source": source})
    return buffer.getvalue()


def svg(figure: Figure, name: str) -> str:
    """Render a figure as an <svg> element that fills the width of its place in a page.

    It has a <title>, text as text, and the page's own colour where it was black. Ids are kept if something refers to
    them, or if they belong to table rows (`row-<i>`); all begin with `name-`, so that figures do not interfere.
    """
    _clean(figure)
    buffer = io.BytesIO()
    with settings():
        figure.savefig(buffer, format="svg", transparent=True, metadata={**UNDATED[".svg"], "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _bare(root)
    used = _references(root)
    for element in root.iter():
        _rename(element, name, used)
        _recolour(element)
    for length in ("width", "height"):
        del root.attrib[length]
    del root.attrib["version"]
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title", "fill": "currentColor"}
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt"}
    title = ElementTree.Element(f"{{{SVG}}}title", {"id": f"{name}-title"})
    title.text = printable(str(figure.get_label()))
    root.insert(0, title)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
    root.set("xmlns", SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _clean(figure: Figure) -> None:
    """Remove control and invisible characters from the texts of a figure."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        said = text.get_text()
        if (shown := printable(said, keep="\n")) != said:
            text.set_text(shown)


def _bare(root: ElementTree.Element) -> None:
    """Remove metadata, and the style sheet, which would apply to the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)


def _references(root: ElementTree.Element) -> set[str]:
    """The ids that an element refers to."""
    found: set[str] = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            found |= set(REFERENCE.findall(value))
            if key == f"{{{XLINK}}}href":
                found.add(value.removeprefix("#"))
    return found


def _rename(element: ElementTree.Element, name: str, used: set[str]) -> None:
    own = element.attrib.pop("id", None)
    for key, value in list(element.attrib.items()):
        element.set(key, REFERENCE.sub(rf"url(#{name}-\1)", value))
        if key == f"{{{XLINK}}}href":
            del element.attrib[key]
            element.set("href", f"#{name}-{value.removeprefix('#')}")
    if own is not None and (own in used or own.startswith("row-")):
        element.set("id", f"{name}-{own}")


def _recolour(element: ElementTree.Element) -> None:
    for key in ("style", "fill", "stroke"):
        if key in element.attrib:
            text = element.attrib[key].replace(f"stroke: {GRID}", FAINT)
            element.set(key, FOREGROUND.sub("currentColor", text))
