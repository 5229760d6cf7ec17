"""Trained parameters: how many numbers of the model the method changed."""

import math
from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class TrainedParameters(Metric):
    """Counted by comparing the weights with the original's, so that masked and frozen weights do not count."""

    title, axis, better, unit, scale, digits = "trained", "cost", "lower", "M", 1e-6, 2
    stored = "count"

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Count."""
        return Score(outcome.cost["trained_parameters"], 1)

    def known(self) -> Iterator[Known]:
        """What was measured while unlearning."""
        yield Known("little", toy.outcome(cost={"trained_parameters": 2.0}), 2.0, quality="good")
        yield Known("much", toy.outcome(cost={"trained_parameters": 8.0}), 8.0, quality="bad")

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Controls that leave the weights alone change none."""
        return (0.0, 0.0) if control in ("original", "prompt_filter") else (1.0, math.inf)
