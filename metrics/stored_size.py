"""Stored size: bytes of the tensors that differ from the original's."""

import math
from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class StoredSize(Metric):
    """What must be stored besides the original to have the unlearned model."""

    title, axis, better, unit, scale, digits = "stored", "cost", "lower", "MB", 1e-6, 2
    stored = "bytes"

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Bytes."""
        return Score(outcome.cost["stored_size"], 1)

    def known(self) -> Iterator[Known]:
        """What was measured while unlearning."""
        yield Known("little", toy.outcome(cost={"stored_size": 2.0}), 2.0, quality="good")
        yield Known("much", toy.outcome(cost={"stored_size": 8.0}), 8.0, quality="bad")

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Controls that leave the weights alone store nothing."""
        return (0.0, 0.0) if control in ("original", "prompt_filter") else (1.0, math.inf)
