"""Trained parameters: how many numbers of the model the method changed."""

from unlearnbench import Metric, Outcome, Score


class TrainedParameters(Metric):
    """Counted by comparing weights with the original's, so that masks and frozen parts count as untouched."""

    title, axis, better, unit, scale, digits = "trained", "cost", "lower", "M", 1e-6, 2
    stored = "count"

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Count."""
        return Score(outcome.cost["trained_parameters"], 1)
