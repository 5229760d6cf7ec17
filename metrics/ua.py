"""UA: unlearning accuracy with abstention, the share of forget samples not judged to show the forgotten concept."""

from unlearnbench import Metric, Outcome, Score


class UA(Metric):
    """1 - accuracy on forget samples; a sample that the judge refuses counts as forgotten (see coherence)."""

    title, axis, better, unit, scale = "UA", "efficacy", "higher", "%", 100.0
    stored = "share"
    rank = 0

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval."""
        side = outcome.forget
        return Score.share(side.verdict.label != side.asked, side.verdict.missing)
