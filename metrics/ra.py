"""RA: retain accuracy, the share of retain samples in which the judge sees what was asked for."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class RA(Metric):
    """Accuracy on retain samples in every domain that the prompt asks for; a refused sample counts as wrong."""

    title, axis, better, unit, scale = "RA", "utility", "higher", "%", 100.0
    side = "retain"
    stored = "share"
    rank = 0

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval."""
        side = outcome.retain
        besides = (side.other < 0) | (side.besides.label == side.other)
        return Score.share((side.verdict.label == side.asked) & besides, side.verdict.missing)

    def known(self) -> Iterator[Known]:
        """The judge errs on a known share; its own batches do not matter, each starts with other digits."""
        right, wrong = [(d, toy.shows(d)) for d in (0, 1, 2, 4)], [(5, toy.shows(6)), (7, toy.refuses(7))]
        yield Known("errs on 2 of 6", toy.outcome(retain=right + wrong), 4 / 6)
        yield Known("right on all of 600", toy.outcome(retain=sorted(right * 150)), 1.0, quality="good")
        late = sorted(right * 100) + wrong * 100
        yield Known("errs on the last 200 of 600", toy.outcome(retain=late), 4 / 6)
        yield Known("all refused", toy.outcome(retain=[(7, toy.refuses(7))] * 4), 0.0, quality="bad")

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Random weights retain nothing; a filter leaves retained concepts alone."""
        ranges = {"original": (0.9, 1.0), "retrain": (0.9, 1.0), "destroy": (0.0, 0.2)}
        return ranges.get(control, (original - 1e-6, original + 1e-6))
