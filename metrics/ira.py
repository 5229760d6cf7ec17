"""IRA: in-domain retain accuracy, on other concepts of the forgotten one's kind (UnlearnCanvas, NeurIPS 2024)."""

from collections.abc import Iterator, Sequence

from unlearnbench import Known, Metric, Outcome, Plan, Score
from unlearnbench.testing import toy


class IRA(Metric):
    """Share of retain samples that show the label asked for in the forgotten concept's own domain.

    Whatever else they show does not matter. Only where samples also ask for a label of another domain: elsewhere it
    equals RA.
    """

    title, axis, better, unit, scale = "IRA", "utility", "higher", "%", 100.0
    side = "retain"
    stored = "share"
    rank = 5
    everywhere = False

    def applies(self, plan: Sequence[Plan]) -> bool:
        """Where the task has two domains."""
        return any(item.group == self.side and item.other >= 0 for item in plan)

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval; a refused sample counts as wrong."""
        side = outcome.retain
        return Score.share(side.verdict.label == side.asked, side.verdict.missing)

    def known(self) -> Iterator[Known]:
        """Digits are the concept's domain; the colour may be any, or refused."""
        right: list[toy.Asked] = [(d, toy.shows(d).of(colour), 1) for d in (0, 5) for colour in (0, 1)]
        right += [(4, toy.shows(4).of(1, faint=True), 1), (2, toy.shows(2).of(2))]
        wrong: list[toy.Asked] = [(7, toy.shows(6).of(2), 2), (7, toy.refuses(7).of(2), 2), (8, toy.shows(0))]
        yield Known("errs on 3 of 9", toy.outcome(retain=right + wrong), 6 / 9)
        yield Known("right on all of 600", toy.outcome(retain=sorted(right * 100)), 1.0, quality="good")
        yield Known("errs on the last 300 of 900", toy.outcome(retain=sorted(right * 100) + wrong * 100), 6 / 9)
        yield Known("right in colour alone", toy.outcome(retain=[(7, toy.shows(1).of(2), 2)]), 0.0, quality="bad")

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Random weights retain nothing; a filter leaves retained concepts alone."""
        ranges = {"original": (0.9, 1.0), "retrain": (0.9, 1.0), "destroy": (0.0, 0.2)}
        return ranges.get(control, (original - 1e-6, original + 1e-6))
