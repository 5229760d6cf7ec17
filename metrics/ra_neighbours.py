"""RA on neighbours: concepts most like the forgotten one, where damage shows first."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class RANeighbours(Metric):
    """RA on samples of the concept's neighbours: right in every domain asked for; a refused sample counts as wrong."""

    title, axis, better, unit, scale = "RA neighbours", "utility", "higher", "%", 100.0
    side = "neighbours"
    stored = "share"
    rank = 7
    everywhere = False

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval."""
        side = outcome.side(self.side)
        besides = (side.other < 0) | (side.besides.label == side.other)
        return Score.share((side.verdict.label == side.asked) & besides, side.verdict.missing)

    def known(self) -> Iterator[Known]:
        """The judge errs on digit, colour or both, or abstains on either; other retain samples do not matter."""
        right: list[toy.Asked] = [(d, toy.shows(d).of(1), 1) for d in (2, 5)]
        wrong: list[toy.Asked] = [(8, toy.shows(8).of(2), 1), (8, toy.shows(9).of(1), 1)]
        wrong += [(8, toy.refuses(8), 0), (8, toy.shows(8).of(0, faint=True), 0)]
        plain: list[toy.Asked] = [(5, toy.shows(5).of(2)), (5, toy.shows(6))]
        yield Known("errs on 5 of 8", self._case(right + wrong + plain), 3 / 8)
        yield Known("right on all of 600", self._case(right * 300, [(4, toy.shows(5))]), 1.0, quality="good")
        yield Known("errs on the last 200 of 600", self._case(sorted(right * 200) + wrong * 50), 4 / 6)
        yield Known("none is right", self._case(wrong, [(4, toy.shows(4))]), 0.0, quality="bad")

    def _case(self, images: list[toy.Asked], retain: list[toy.Asked] | None = None) -> Outcome:
        return toy.outcome(retain=retain or [], groups={self.side: images})

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Random weights retain nothing; a filter leaves retained concepts alone."""
        ranges = {"original": (0.9, 1.0), "retrain": (0.9, 1.0), "destroy": (0.0, 0.2)}
        return ranges.get(control, (original - 1e-6, original + 1e-6))
