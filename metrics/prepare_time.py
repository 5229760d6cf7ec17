"""Prepare time: wall-clock seconds of masks, Fisher information and other preparation."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class PrepareTime(Metric):
    """Measured after a device synchronise; needed once for each model and concept."""

    title, axis, better, unit, scale, digits = "prepare time", "cost", "lower", "s", 1.0, 1
    rank = 1

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Seconds."""
        return Score(outcome.cost["prepare_time"], 1)

    def known(self) -> Iterator[Known]:
        """What was measured while unlearning."""
        yield Known("little", toy.outcome(cost={"prepare_time": 2.0}), 2.0, quality="good")
        yield Known("much", toy.outcome(cost={"prepare_time": 8.0}), 8.0, quality="bad")
