"""Closed-set UA, as papers report it: the judge must name a class, even for noise."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class UAClosed(Metric):
    """1 - accuracy of the most probable class on forget samples (Fan et al., ICLR 2024)."""

    title, axis, better, unit, scale = "UA closed", "efficacy", "higher", "%", 100.0
    side = "forget"
    stored = "share"
    rank = 1

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval."""
        side = outcome.forget
        return Score.share(side.verdict.closed != side.asked, side.verdict.missing)

    def known(self) -> Iterator[Known]:
        """Forced to choose, the judge names 3 or another digit."""
        still = [toy.shows(3)] * 420 + [toy.refuses(4)] * 180  # several batches of the judge, all different
        yield Known("420 of 600 still there", toy.outcome(still), 0.3, quality="bad")
        yield Known("all became fours", toy.outcome([toy.shows(4)] * 3), 1.0, quality="good")
        yield Known("refused, but nearest to 3", toy.outcome([toy.refuses(3)] * 4), 0.0, quality="bad")

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """The original must score no erasure; what a judge must answer on noise is not known in advance."""
        return {"original": (0.0, 0.1), "retrain": (0.9, 1.0), "prompt_filter": (0.9, 1.0)}.get(control)
