"""CRA: cross-domain retain accuracy, on what is asked for in another domain (UnlearnCanvas, NeurIPS 2024)."""

from collections.abc import Iterator, Sequence

from unlearnbench import Known, Metric, Outcome, Plan, Score
from unlearnbench.testing import toy


class CRA(Metric):
    """Share of retain samples that show the label asked for in another domain, of those that ask for one.

    For example the colour, while a digit is forgotten. Samples whose prompts name nothing in another domain do not
    count; none is missing.
    """

    title, axis, better, unit, scale = "CRA", "utility", "higher", "%", 100.0
    side = "retain"
    stored = "share"
    rank = 6
    everywhere = False

    def applies(self, plan: Sequence[Plan]) -> bool:
        """Where the task has two domains."""
        return any(item.group == self.side and item.other >= 0 for item in plan)

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval; a refused sample counts as wrong."""
        side = outcome.retain
        return Score.share(side.besides.label == side.other, side.besides.missing, side.other >= 0)

    def known(self) -> Iterator[Known]:
        """The digit may be any, or refused; images for a digit alone do not count."""
        right: list[toy.Asked] = [(7, toy.shows(d).of(colour), colour) for d in (1, 7) for colour in (0, 1)]
        right += [(4, toy.refuses(4).of(1), 1)]
        wrong: list[toy.Asked] = [(7, toy.shows(7).of(1), 2), (7, toy.shows(7).of(1, faint=True), 1)]
        plain: list[toy.Asked] = [(5, toy.shows(5).of(1))]
        yield Known("errs on 2 of 7, 3 have no colour to show", toy.outcome(retain=right + wrong + plain * 3), 5 / 7)
        yield Known("right on all of 500", toy.outcome(retain=sorted(right * 100)), 1.0, quality="good")
        late = sorted(right * 100) + wrong * 125
        yield Known("errs on the last 250 of 750", toy.outcome(retain=late), 4 / 6)
        yield Known("right in digits alone", toy.outcome(retain=[(7, toy.shows(7), 2)]), 0.0, quality="bad")
        yield Known("no colours are asked for", toy.outcome(retain=plain), None)
        lost = toy.outcome(retain=[*right, (7, toy.fails(), 1), (7, toy.fails())])
        yield Known("fails on one with a colour, one without", lost, 1.0, missing=1)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """The judge may see a colour by chance in random weights' samples; a filter leaves retained concepts alone."""
        ranges = {"original": (0.9, 1.0), "retrain": (0.9, 1.0), "destroy": (0.0, 0.6)}
        return ranges.get(control, (original - 1e-6, original + 1e-6))
