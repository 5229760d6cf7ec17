"""Nothing: the share of forget samples in which the judge sees nothing that it knows, such as noise; 1 - coherence."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class Nothing(Metric):
    """Forget samples that the judge refuses. Neither direction is better: compare with retrain."""

    title, axis, better, unit, scale = "nothing", "efficacy", None, "%", 100.0
    side = "forget"
    stored = "share"
    rank = 5

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval."""
        verdict = outcome.forget.verdict
        return Score.share(verdict.refused, verdict.missing)

    def known(self) -> Iterator[Known]:
        """Refused or not, whatever the digit is."""
        clear = [toy.shows(3)] * 300 + [toy.shows(4)] * 150  # several batches of the judge, all different
        yield Known("150 of 600 are refused", toy.outcome(clear + [toy.refuses(3)] * 150), 0.25)
        yield Known("nothing refused", toy.outcome([toy.shows(4)] * 3), 0.0)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Random weights draw nothing that a judge knows; the original draws what it is asked for."""
        return {"original": (0.0, 0.05), "destroy": (0.8, 1.0)}.get(control)
