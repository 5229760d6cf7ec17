"""Coherence: does a forget sample still show anything? Tells noise from another concept."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class Coherence(Metric):
    """Share of forget samples that the judge does not refuse. Neither direction is better."""

    title, axis, better, unit, scale = "coherence", "efficacy", None, "%", 100.0
    side = "forget"
    stored = "share"
    rank = 2

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval."""
        verdict = outcome.forget.verdict
        return Score.share(~verdict.refused, verdict.missing)

    def known(self) -> Iterator[Known]:
        """Refused or not, whatever the digit is."""
        clear = [toy.shows(3)] * 300 + [toy.shows(4)] * 150  # several batches of the judge, all different
        yield Known("150 of 600 are refused", toy.outcome(clear + [toy.refuses(3)] * 150), 0.75)
        yield Known("all noise", toy.outcome([toy.refuses(3)] * 3), 0.0)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Controls draw digits, except for random weights."""
        return (0.0, 0.2) if control == "destroy" else (0.75, 1.0)
