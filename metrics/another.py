"""Another: the share of forget samples in which the judge sees something else that it knows."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class Another(Metric):
    """Forget samples that became another concept. Neither direction is better; see still and nothing."""

    title, axis, better, unit, scale = "another", "efficacy", None, "%", 100.0
    side = "forget"
    stored = "share"
    rank = 4

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval."""
        side = outcome.forget
        named = ~side.verdict.refused & (side.verdict.closed != side.asked)
        return Score.share(named, side.verdict.missing)

    def known(self) -> Iterator[Known]:
        """The judge names 3, another digit, or abstains."""
        others = [toy.shows(3)] * 300 + [toy.refuses(4)] * 150  # several batches of the judge, all different
        yield Known("150 of 600 became fours", toy.outcome(others + [toy.shows(4)] * 150), 0.25)
        yield Known("all refused, nearest to 4", toy.outcome([toy.refuses(4)] * 3), 0.0)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """The original draws what it is asked for, random weights draw nothing that a judge knows."""
        return {"original": (0.0, 0.1), "destroy": (0.0, 0.2)}.get(control)
