"""Closed-set UA, as papers report it: the judge must name a class, even of noise."""

from unlearnbench import Metric, Outcome, Score


class UAClosed(Metric):
    """1 - accuracy of the most probable class on forget samples (Fan et al., ICLR 2024)."""

    title, axis, better, unit, scale = "UA closed", "efficacy", "higher", "%", 100.0
    stored = "share"
    rank = 1

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval."""
        side = outcome.forget
        return Score.share(side.verdict.closed != side.asked, side.verdict.missing)
