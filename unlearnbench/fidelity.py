"""How faithful each method is to its paper and the paper's code: a table that the tests of the methods make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).parent / "fidelity.json"
NOT_COMPARED = "not compared"


class Fidelity(NamedTuple):
    """One method or attack against its paper and the paper's code."""

    paper: str
    """Authors, venue, year and, if there is one, the repository with its commit."""
    presets: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]
    """Preset -> task or pattern of tasks -> setting -> its `value`, `source` and `note`."""
    differences: tuple[Mapping[str, Any], ...]
    """`preset`, `what` was compared, `measured` (largest relative difference; None: not compared), `held_by` (the test)
    and `note`."""
    defects: tuple[str, ...]
    """Known bugs of the paper's code."""
    departs: str
    """How "default" differs from both."""

    def tasks(self, preset: str) -> str:
        """The tasks that a preset exists for, in words."""
        return ", ".join(self.presets.get(preset, {})) or "none"

    def measured(self, preset: str) -> str:
        """What was compared under a preset, each with its largest relative difference."""
        return "; ".join(
            f"{one['what']} {NOT_COMPARED if one['measured'] is None else in_digits(one['measured'])}"
            for one in self.differences
            if one["preset"] == preset
        )

    def notes(self) -> Iterator[str]:
        """Why something differs or was not compared, what `released` reproduces, how "default" departs."""
        for one in self.differences:
            if one["note"]:
                yield f"{one['preset']}, {one['what']}: {one['note']}"
        yield from (f"bug of the code: {text}" for text in self.defects)
        if self.departs:
            yield f"default: {self.departs}"


def in_digits(value: float) -> str:
    """A relative difference in two digits; equality to the last bit in a word."""
    if value == 0:
        return "exact"
    return f"{value:.2g}" if value >= 0.01 else f"{value:.1e}".replace("e-0", "e-")


@cache
def fidelity_table() -> dict[str, Fidelity]:
    """Read the table: method or attack -> what its tests declare."""
    found = json.loads(TABLE.read_text(encoding="utf-8"))
    return {
        name: Fidelity(one["paper"], one["presets"], tuple(one["differences"]), tuple(one["defects"]), one["departs"])
        for name, one in found.items()
    }
