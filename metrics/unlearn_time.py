"""Unlearn time: wall-clock seconds of unlearning alone."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class UnlearnTime(Metric):
    """Measured after a device synchronise; excludes loading, preparing, sampling and scoring."""

    title, axis, better, unit, scale, digits = "unlearn time", "cost", "lower", "s", 1.0, 1
    rank = 0

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Seconds."""
        return Score(outcome.cost["unlearn_time"], 1)

    def known(self) -> Iterator[Known]:
        """What was measured while unlearning."""
        yield Known("little", toy.outcome(cost={"unlearn_time": 2.0}), 2.0, quality="good")
        yield Known("much", toy.outcome(cost={"unlearn_time": 8.0}), 8.0, quality="bad")
