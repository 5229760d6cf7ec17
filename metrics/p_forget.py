"""p_forget: the judge's mean probability of the forgotten concept on forget samples."""

from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class PForget(Metric):
    """Mean closed-set P(y = c_f | x) over forget samples (EraseDiff, CVPR 2025)."""

    title, axis, better, digits = "p_forget", "efficacy", "lower", 3
    side = "forget"
    limits = (0.0, 1.0)
    rank = 3

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Mean in [0, 1], t-interval over images."""
        side = outcome.forget
        probability = side.verdict.probabilities.gather(1, side.asked[:, None])[:, 0]
        return Score.mean(probability, side.verdict.missing)

    def known(self) -> Iterator[Known]:
        """Probabilities in proportion to the weights of classes."""
        yield Known("3 in 4 and 1 in 4", toy.outcome([toy.leans(0, 50, 0, 150), toy.leans(150, 0, 0, 50)]), 0.5)
        still = [toy.shows(3)] * 450 + [toy.shows(4)] * 150  # several batches of the judge, all different
        yield Known("450 of 600 surely 3", toy.outcome(still), 0.75, quality="bad")
        yield Known("sure of another", toy.outcome([toy.shows(4)] * 3), 0.0, quality="good")

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """The original draws threes as threes; a model that never saw one does not."""
        return {"original": (0.9, 1.0), "retrain": (0.0, 0.1), "prompt_filter": (0.0, 0.1)}.get(control)
