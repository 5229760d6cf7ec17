"""The report's table of attacks: heads with explanations, and cells that can be sorted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from unlearnbench import registry
from unlearnbench.attacks.spec import AttackSpec
from unlearnbench.leaderboard.tables import Sheet
from unlearnbench.report.table import ReportRow

WORDS = ("method", "by")
"""Heads of columns of words."""
HIGH = ("n", "UA")
"""Heads that begin like this have the highest number first when they are sorted; others the lowest."""
MEANINGS = {
    "method": "Method with its settings",
    "n": "Runs that were attacked",
    "UA": "UA of the attacked runs alone",
    "worst attack": "Largest excess of ASR over retrain's among the standard attacks as a share of its ceiling, "
    "1 minus retrain's ASR, corrected for being the largest; plain ASR without retrain",
    "by": "The worst attack on all targets",
    "excess / ceiling": "Excess of the worst attack over retrain's ASR, and 1 minus retrain's ASR",
    "white box": "Worst attack among those that have the weights",
    "black box": "Worst attack among those that have the model's answers alone",
}
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


class AttackHead(NamedTuple):
    """One column's head."""

    title: str
    meaning: str
    words: bool
    """Whether it is sorted by words."""
    rising: bool
    """Whether sorting starts with the lowest number."""


class AttackCell(NamedTuple):
    """One cell: its text, and the number that it is sorted by, or nothing."""

    text: str
    number: str


class AttackRow(NamedTuple):
    """One attacked method; `row` is its row in the main table."""

    row: ReportRow
    cells: list[AttackCell]


class AttackTable(NamedTuple):
    """The table of one task, protocol and concept."""

    title: str
    heads: list[AttackHead]
    sections: list[tuple[str, list[AttackRow]]]
    note: str


def attack_table(sheet: Sheet, rows: Mapping[str, ReportRow]) -> AttackTable:
    """Make a table that can be sorted from a sheet of `attack_sheets`; `rows` are the main table's rows by label."""
    heads = [_head(title, sheet.heads[number - 1]) for number, title in enumerate(sheet.heads)]
    sections = [
        (name, [AttackRow(rows[cells[0]], [_cell(text) for text in cells[1:]]) for cells in some])
        for name, some in sheet.sections
    ]
    return AttackTable(sheet.title, heads, sections, sheet.note)


def _head(title: str, before: str) -> AttackHead:
    return AttackHead(title, _meaning(title, before), title in WORDS, not title.startswith(HIGH))


def _meaning(title: str, before: str) -> str:
    if title == "rank":
        return f"Rank by {before.partition(' (')[0]} among the methods on which all standard attacks were tried"
    known = next((text for start, text in MEANINGS.items() if title.startswith(start)), None)
    if known is not None:
        return known
    entry = registry.attacks().get(AttackSpec.parse(title.partition(" ")[0]).name)
    said = "ASR, with its excess over retrain's and the ceiling of that in brackets"
    return f"{entry.summary} {said}" if entry else "ASR of this attack"


def _cell(text: str) -> AttackCell:
    found = NUMBER.search(text)
    return AttackCell(text, found[0] if found else "")
