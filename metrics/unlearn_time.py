"""Unlearn time: wall-clock seconds of unlearning alone."""

from unlearnbench import Metric, Outcome, Score


class UnlearnTime(Metric):
    """Measured after a device synchronise; without loading, preparing, sampling or scoring."""

    title, axis, better, unit, scale, digits = "unlearn time", "cost", "lower", "s", 1.0, 1
    rank = 0

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Seconds."""
        return Score(outcome.cost["unlearn_time"], 1)
