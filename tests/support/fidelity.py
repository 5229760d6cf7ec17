"""What a test of a method declares about the paper's code: constants read from it, and how far our numbers are off.

Every `tests/methods/test_NAME.py` has one `FIDELITY`. `tests/methods/test_fidelity.py` holds the presets to it, and
`python -m tests.studies.fidelity` makes the table of `unlearnbench list fidelity` from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Repository:
    """A reference repository at one commit, such as `Repository("OPTML-Group/Unlearn-Saliency", "a6e89fd")`."""

    name: str
    """Owner and name on GitHub."""
    commit: str
    """At least seven digits of the commit that was read."""

    def at(self, file: str, line: int) -> str:
        """Where something is said, as `owner/name@commit file:line`."""
        return f"{self.name}@{self.commit} {file}:{line}"


@dataclass(frozen=True)
class Constant:
    """One setting of a preset and where it was read."""

    preset: str
    """"published" or "released"."""
    task: str
    """The task or pattern of tasks, exactly as the preset has it."""
    field: str
    """The setting, a field of the method."""
    value: Any
    """What the preset must say, in our units."""
    source: str
    """`Repository.at(...)`, or the paper's section, table or equation ("paper, table 7"), or "default: …" with the
    reason where neither says it."""
    note: str = ""
    """How the value follows from the source, if it is not the same number ("7.5 in their notation is 8.5 here")."""


@dataclass(frozen=True)
class Difference:
    """How far our number is from the reference's, for one preset."""

    preset: str
    """"published" or "released"."""
    what: str
    """What was compared: "update", "mask", "edit", "sampling", "loss", "strings", …"""
    measured: float | None
    """Largest relative difference between ours and the reference repository's own function on equal inputs; 0.0 is
    equal to the last bit; None: not compared, and `note` says why not."""
    held_by: str
    """The test that holds our side by an independent computation: a function's name in the same file."""
    note: str = ""
    """What was run beside ours, or what differs and why; one sentence."""


@dataclass(frozen=True)
class Fidelity:
    """One method against its paper and the paper's code."""

    method: str
    paper: str
    """Authors, venue, year; and the repository's commit if there is one."""
    constants: tuple[Constant, ...] = ()
    differences: tuple[Difference, ...] = ()
    defects: tuple[str, ...] = ()
    """Known bugs of the paper's code, each in one sentence, with file and line: `released` reproduces them."""
    departs: str = ""
    """How our "default" differs from both, and why, in one or two sentences."""
