"""Relative time: seconds to sample an image relative to the original model's."""

from unlearnbench import Metric, Outcome, Score


class RelativeTime(Metric):
    """Both are timed in turn in the same process; above 1 for methods that guide or wrap at inference."""

    title, axis, better, unit, scale, digits = "time/image", "cost", "lower", "x", 1.0, 2
    rank = 2

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Ratio."""
        return Score(outcome.cost["relative_time"], 1)
