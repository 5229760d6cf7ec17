"""p_forget: the judge's mean probability of the forgotten concept on forget samples."""

from unlearnbench import Metric, Outcome, Score


class PForget(Metric):
    """Mean closed-set P(y = c_f | x) over forget samples (EraseDiff, CVPR 2025)."""

    title, axis, better, digits = "p_forget", "efficacy", "lower", 3
    rank = 3

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Mean in [0, 1], t-interval over images."""
        side = outcome.forget
        probability = side.verdict.probabilities.gather(1, side.asked[:, None])[:, 0]
        return Score.mean(probability, side.verdict.missing)
