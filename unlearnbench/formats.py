"""Tables as markdown, LaTeX, csv or JSON, and the page of a results folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from unlearnbench.errors import UserError
from unlearnbench.leaderboard import Sheet, tables
from unlearnbench.metric import Metric

if TYPE_CHECKING:
    import pandas as pd

OPEN, CLOSE = "\x02", "\x03"
"""Around bold text until LaTeX's own characters are escaped."""
NEEDS = (
    r"% needs \usepackage{booktabs,graphicx}; by itself: pdflatex "
    r"'\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{FILE}\end{document}'"
)
TEXTWIDTH = 84
"""Characters of 8 pt that an article's column has room for."""


def as_markdown(sheets: Iterable[Sheet]) -> str:
    """GitHub's tables."""
    parts = []
    for sheet in sheets:
        blank = [""] * (len(sheet.heads) - 1)
        rows = [sheet.heads, ["---"] + ["---:"] * len(blank)]
        for name, section in sheet.sections:
            rows += [[f"*{name}*", *blank], *section]
        lines = ["| " + " | ".join(cells) + " |" for cells in rows]
        parts.append(f"### {sheet.title}\n\n" + "\n".join(lines) + "\n" + (f"\n{sheet.note}\n" if sheet.note else ""))
    return "\n".join(parts)


def as_latex(sheets: Iterable[Sheet], left: int = 1) -> str:
    """booktabs tables with a caption that says what was measured, by what, on what.

    The first `left` columns are words. Tables that are wider than a column of text are scaled down to it.
    """
    parts = []
    for sheet in sheets:
        count = len(sheet.heads)
        body = []
        for name, section in sheet.sections:
            title = [rf"\multicolumn{{{count}}}{{l}}{{\emph{{{_escape(name)}}}}} \\"] if name else []
            body += [r"\midrule", *title, *(" & ".join(map(_escape, cells)) + r" \\" for cells in section)]
        wide = width(sheet) > TEXTWIDTH
        caption = " ".join(text for text in (sheet.caption or f"{sheet.title}.", _sentence(sheet.note)) if text)
        parts += [
            r"\begin{table}[tbp]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_escape(caption)}}}",
            *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
            rf"\begin{{tabular}}{{{'l' * left}{'r' * (count - left)}}}",
            r"\toprule",
            " & ".join(map(_escape, sheet.heads)) + r" \\",
            *body,
            r"\bottomrule",
            r"\end{tabular}" + ("}" if wide else ""),
            r"\end{table}",
            "",
        ]
    return f"{NEEDS}\n" + "\n".join(parts)


def width(sheet: Sheet) -> int:
    """Characters of its widest row, cell by cell."""
    rows = [row for _, section in sheet.sections for row in section]
    return sum(max(map(len, cells)) + 1 for cells in zip(sheet.heads, *rows, strict=True))


def _sentence(text: str) -> str:
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
        "×": r"$\times$",
        "≥": r"$\geq$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "†": r"$\dagger$",
        "\n": " ",
        "—": "---",
        "…": r"\dots{}",
        "[": "{[}",  # after a line's end a bracket would be read as its height
        OPEN: r"\textbf{",
        CLOSE: "}",
    }
)


def _escape(text: str) -> str:
    """As LaTeX's text; a character that its usual fonts lack is named by its number."""
    known = text.translate(LATEX)
    return "".join(c if " " <= c < "\x7f" or "¡" <= c <= "ÿ" else f"U+{ord(c):04X}" for c in known)


def as_json(result: pd.DataFrame) -> str:
    """Rows as JSON; numbers are numbers, unknown is null."""
    return json.dumps(json.loads(result.to_json(orient="records")), indent=1, ensure_ascii=False) + "\n"


def formatted(
    result: pd.DataFrame, metrics: Mapping[str, Metric], columns: Sequence[str], kind: str, intervals: bool = False
) -> str:
    """The board as text of one kind; csv and json have every column of the board."""
    if kind == "markdown":
        return as_markdown(tables(result, metrics, columns, lambda text: f"**{text}**", intervals=intervals))
    if kind == "latex":
        return as_latex(tables(result, metrics, columns, lambda text: OPEN + text + CLOSE, False, intervals))
    if kind == "csv":
        return result.to_csv(index=False)
    if kind == "json":
        return as_json(result)
    raise no_format(kind)


def written(sheets: Sequence[Sheet], kind: str, result: pd.DataFrame, left: int = 1) -> str:
    """Tables that are ready made, as text of one kind; csv and json are of the rows that they were made from."""
    if kind == "markdown":
        return as_markdown(sheets)
    if kind == "latex":
        return as_latex(sheets, left)
    return formatted(result, {}, (), kind)


def no_format(kind: str) -> UserError:
    """What to say of a format that is none."""
    return UserError(f"unknown format {kind!r}: known: terminal, markdown, csv, latex, json")
