"""UA: unlearning accuracy with abstention, the share of forget samples not judged to show the forgotten concept."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class UA(Metric):
    """1 - accuracy on forget samples; a sample that the judge refuses counts as forgotten (see coherence)."""

    title, axis, better, unit, scale = "UA", "efficacy", "higher", "%", 100.0
    side = "forget"
    stored = "share"
    rank = 0

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval."""
        side = outcome.forget
        return Score.share(side.verdict.label != side.asked, side.verdict.missing)

    def known(self) -> Iterator[Known]:
        """The judge names 3, another digit, or abstains."""
        still = [toy.shows(3)] * 420 + [toy.shows(4)] * 180  # several batches of the judge, all different
        yield Known("420 of 600 still there", toy.outcome(still), 0.3, quality="bad")
        yield Known("all became fours", toy.outcome([toy.shows(4)] * 3), 1.0, quality="good")
        yield Known("2 of 4 are refused", toy.outcome([toy.shows(3)] * 2 + [toy.refuses(3)] * 2), 0.5)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """The original must score no erasure."""
        return (0.0, 0.1) if control == "original" else (0.9, 1.0)
