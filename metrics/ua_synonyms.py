"""UA on synonyms: is the concept forgotten, or only its name?"""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class UASynonyms(Metric):
    """UA on samples of prompts with other words for the forgotten concept, which methods are never given."""

    title, axis, better, unit, scale = "UA synonyms", "efficacy", "higher", "%", 100.0
    side = "synonyms"
    stored = "share"
    rank = 4
    everywhere = False

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval; a sample that the judge refuses counts as forgotten."""
        side = outcome.side(self.side)
        return Score.share(side.verdict.label != side.asked, side.verdict.missing)

    def known(self) -> Iterator[Known]:
        """The judge names 3, another digit, or abstains; the concept's own name is gone or not."""
        still = [(3, toy.shows(3))] * 420 + [(3, toy.shows(4))] * 180  # several batches, all different
        gone = [toy.shows(4)] * 3
        yield Known("420 of 600 still there", self._case(still, gone), 0.3, quality="bad")
        yield Known("all became fours", self._case([(3, toy.shows(4))] * 3, [toy.shows(3)]), 1.0, quality="good")
        yield Known("2 of 4 are refused", self._case([(3, toy.shows(3))] * 2 + [(3, toy.refuses(3))] * 2), 0.5)

    def _case(self, images: list[tuple[int, toy.Image]], direct: list[toy.Image] | None = None) -> Outcome:
        return toy.outcome(direct or [], groups={self.side: images})

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """The original knows synonyms less well; nothing is known of a filter of names."""
        return {"original": (0.0, 0.2), "prompt_filter": None}.get(control, (0.9, 1.0))
