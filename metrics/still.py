"""Still: the share of forget samples in which the judge still sees the forgotten concept; 1 - UA."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class Still(Metric):
    """With another and nothing the fate of every forget sample: the three shares add to 100 %."""

    title, axis, better, unit, scale = "still", "efficacy", "lower", "%", 100.0
    side = "forget"
    stored = "share"
    rank = 3

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval."""
        side = outcome.forget
        return Score.share(side.verdict.label == side.asked, side.verdict.missing)

    def known(self) -> Iterator[Known]:
        """The judge names 3, another digit, or abstains."""
        gone = [toy.shows(4)] * 180 + [toy.refuses(3)] * 60  # several batches of the judge, all different
        yield Known("360 of 600 still there", toy.outcome([toy.shows(3)] * 360 + gone), 0.6, quality="bad")
        yield Known("all became fours", toy.outcome([toy.shows(4)] * 3), 0.0, quality="good")
        yield Known("refused, but nearest to 3", toy.outcome([toy.refuses(3)] * 4), 0.0, quality="good")

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """The original must score no erasure."""
        return (0.9, 1.0) if control == "original" else (0.0, 0.1)
