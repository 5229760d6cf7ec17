"""Prepare time: wall-clock seconds of masks, Fisher information and other preparation."""

from unlearnbench import Metric, Outcome, Score


class PrepareTime(Metric):
    """Measured after a device synchronise; needed once for a model and a concept."""

    title, axis, better, unit, scale, digits = "prepare time", "cost", "lower", "s", 1.0, 1
    rank = 1

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Seconds."""
        return Score(outcome.cost["prepare_time"], 1)
