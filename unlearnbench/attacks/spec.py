"""Which attack: its name, variant and budget, and the label that stands for them in records, tables and commands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from unlearnbench.attacks.base import STANDARD

BUDGET = "+budget="


class AttackSpec(NamedTuple):
    """An attack as it is asked for: `name`, `name@variant`, `name+budget=3` or `name@variant+budget=3`."""

    name: str
    variant: str = ""
    budget: int | None = None
    """What the user allows to spend on a target; None: the attack's own schedule."""

    @classmethod
    def parse(cls, label: str) -> AttackSpec:
        """The attack of a label. A budget that is no whole number is left out, so that `label` differs then."""
        words, _, budget = label.partition(BUDGET)
        name, _, variant = words.partition("@")
        return cls(name, variant, int(budget) if budget.isascii() and budget.isdecimal() else None)

    @property
    def base(self) -> str:
        """Name and variant, without a budget: as `--attacks` takes it."""
        return f"{self.name}@{self.variant}" if self.variant else self.name

    @property
    def label(self) -> str:
        """As records and tables name it."""
        return self.base if self.budget is None else f"{self.base}{BUDGET}{self.budget}"


def standard_first(labels: Iterable[str]) -> list[str]:
    """Labels, each once: those of the standard ensemble in its order, then the others by name."""
    given = set(labels)
    return [*(label for label in STANDARD if label in given), *sorted(given - set(STANDARD))]
