"""Format tables as markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.errors import UserError
from unlearnbench.leaderboard.rows import Board
from unlearnbench.leaderboard.short import short_sheets
from unlearnbench.leaderboard.tables import Sheet, tables
from unlearnbench.metric import Metric
from unlearnbench.printable import cleaned, printable

if TYPE_CHECKING:
    import pandas as pd

OPEN, CLOSE = "\x02", "\x03"
"""Marks around bold text until LaTeX special characters are escaped."""
NEEDS = (
    r"% needs \usepackage{booktabs,graphicx}; by itself: pdflatex "
    r"'\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{FILE}\end{document}'"
)
ROWS = 40
"""Rows of a table that fit on a page."""
TEXTWIDTH = 84
"""Characters of 8 pt that fit into an article's column."""


def as_markdown(sheets: Iterable[Sheet]) -> str:
    """Format as GitHub tables; the text of a cell cannot end its cell, line or table."""
    parts = []
    for sheet in sheets:
        blank = [""] * (len(sheet.heads) - 1)
        rows = [sheet.heads, ["---"] + ["---:"] * len(blank)]
        for name, section in sheet.sections:
            rows += [*([[f"*{name}*", *blank]] if name else []), *section]
        lines = ["| " + " | ".join(map(markdown_text, cells)) + " |" for cells in rows]
        note = "".join(f"\n{printable(line)}\n" for line in sheet.note.splitlines())
        parts.append(f"### {printable(sheet.title)}\n\n" + "\n".join(lines) + "\n" + note)
    return "\n".join(parts)


def markdown_text(text: str) -> str:
    """Escape text for a table cell or a line, so that it makes no cell, tag or line of its own."""
    return " ".join(printable(text).replace("|", "\\|").replace("<", "&lt;").split())


def as_latex(sheets: Iterable[Sheet], left: int = 1) -> str:
    """Format as booktabs tables with a caption that says what was measured, by which judge, on which hardware.

    The first `left` columns are left-aligned. Tables that are wider than the text are scaled down; tables that are
    taller than a page are split.
    """
    return f"{NEEDS}\n" + "\n".join(_latex(part, left) for sheet in sheets for part in _pages(sheet))


def _pages(sheet: Sheet) -> list[Sheet]:
    """Split a table into tables of at most one page."""
    every = [(name, row) for name, rows in sheet.sections for row in rows]
    parts = [every[start : start + ROWS] for start in range(0, len(every), ROWS)]
    made = []
    for number, part in enumerate(parts, 1):
        sections: dict[str, list[list[str]]] = {}
        for name, row in part:
            sections.setdefault(name, []).append(row)
        caption = (sheet.caption or f"{sheet.title}.") if number == 1 else f"{sheet.title}, continued."
        note = sheet.note if number == len(parts) else ""
        made.append(sheet._replace(sections=list(sections.items()), caption=caption, note=note))
    return made


def _latex(sheet: Sheet, left: int) -> str:
    count = len(sheet.heads)
    body = []
    for name, section in sheet.sections:
        title = [rf"\multicolumn{{{count}}}{{l}}{{\emph{{{_escape(name)}}}}} \\"] if name else []
        body += [r"\midrule", *title, *(" & ".join(map(_escape, cells)) + r" \\" for cells in section)]
    note = rf"\par\smallskip{{\raggedright\scriptsize {_escape(_sentence(sheet.note))}\par}}"
    lines = [
        r"\begin{table}[tbp]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_escape(sheet.caption)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{'l' * left}{'r' * (count - left)}}}",
        r"\toprule",
        " & ".join(map(_escape, sheet.heads)) + r" \\",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        *([note] if sheet.note else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    text = "; ".join(text.splitlines())
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".") if text else ""


LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "_": r"\_",
        "%": r"\%",
        "&": r"\&",
        "#": r"\#",
        "$": r"\$",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": "$<$",
        ">": "$>$",
        "|": "$|$",
        "±": r"$\pm$",
        "·": r"$\cdot$",
        "×": r"$\times$",
        "≥": r"$\geq$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "†": r"$\dagger$",
        "\n": " ",
        "—": "---",
        "–": "--",
        "…": r"\dots{}",
        "[": "{[}",  # after a line's end a bracket would be read as its height
        OPEN: r"\textbf{",
        CLOSE: "}",
    }
)


def _escape(text: str) -> str:
    """Escape text for LaTeX; characters that common fonts lack become their code point."""
    known = printable(text, keep=OPEN + CLOSE).translate(LATEX)
    return "".join(c if " " <= c < "\x7f" or "¡" <= c <= "ÿ" else f"U+{ord(c):04X}" for c in known)


def starry(text: str) -> str:
    """Set text in bold in markdown."""
    return f"**{text}**"


def formatted(
    board: Board,
    metrics: Mapping[str, Metric],
    columns: Sequence[str] | None,
    kind: str,
    intervals: bool = False,
    results: Path | None = None,
) -> str:
    """The board as text in one format.

    CSV and JSON have everything about these columns, intervals included. Without columns, they have all, and markdown
    and LaTeX have the short tables, whose notes name the folder `results`.
    """
    if kind in ("markdown", "latex"):
        bold = starry if kind == "markdown" else lambda text: OPEN + text + CLOSE
        if columns is None:
            sheets = short_sheets(board, metrics, bold, intervals, results=results)
        else:
            sheets = tables(board, metrics, columns, bold, kind == "markdown", intervals)
        return as_markdown(sheets) if kind == "markdown" else as_latex(sheets)
    return as_data(board.wide(metrics=columns, attacks=()), kind)


def as_csv(result: pd.DataFrame) -> str:
    """Format rows as CSV, each on one line."""
    words = result.select_dtypes(["object", "string"])
    return result.assign(**{str(name): words[name].map(cleaned) for name in words}).to_csv(index=False)


def as_data(result: pd.DataFrame, kind: str) -> str:
    """Format rows as CSV, or as JSON with null for unknown values."""
    if kind == "csv":
        return as_csv(result)
    if kind == "json":
        values = cleaned(json.loads(result.to_json(orient="records")))
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    raise no_format(kind)


def format_sheets(sheets: Sequence[Sheet], kind: str, result: pd.DataFrame, left: int = 1) -> str:
    """Format finished tables; CSV and JSON come from the rows that the tables were made from."""
    if kind == "markdown":
        return as_markdown(sheets)
    return as_latex(sheets, left) if kind == "latex" else as_data(result, kind)


def no_format(kind: str) -> UserError:
    """The error for an unknown format."""
    return UserError(f"unknown format {kind!r}: known: terminal, markdown, csv, latex, json")
