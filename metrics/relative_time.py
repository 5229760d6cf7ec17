"""Relative time: seconds to sample an image, divided by the original model's."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class RelativeTime(Metric):
    """Both models take some of the sampler's steps in turn; above 1 for methods that guide or wrap at inference."""

    title, axis, better, unit, scale, digits = "time/image", "cost", "lower", "x", 1.0, 2
    rank = 2

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Ratio."""
        cost = outcome.cost
        ratio = cost["relative_time"]
        return Score(ratio, 1, reason=None if ratio is not None else cost.get("relative_time_reason") or "not measured")

    def known(self) -> Iterator[Known]:
        """What was measured while unlearning."""
        yield Known("little", toy.outcome(cost={"relative_time": 2.0}), 2.0, quality="good")
        yield Known("much", toy.outcome(cost={"relative_time": 8.0}), 8.0, quality="bad")
        yield Known("not measured", toy.outcome(cost={"relative_time": None}), None)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Sampling takes as long as the original's; the filter embeds twice."""
        return (0.5, 2.0)
