"""RA: retain accuracy, the share of retain samples that the judge calls what was asked for."""

from unlearnbench import Metric, Outcome, Score


class RA(Metric):
    """Accuracy on retain samples; a sample that the judge refuses counts as wrong."""

    title, axis, better, unit, scale = "RA", "utility", "higher", "%", 100.0
    stored = "share"
    rank = 0

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval."""
        side = outcome.retain
        return Score.share(side.verdict.label == side.asked, side.verdict.missing)
