"""Coherence: does a forget sample still look like anything? Tells "gone to noise" from "became something else"."""

from unlearnbench import Metric, Outcome, Score


class Coherence(Metric):
    """Share of forget samples that the judge does not refuse. Neither direction is better."""

    title, axis, better, unit, scale = "coherence", "efficacy", None, "%", 100.0
    stored = "share"
    rank = 2

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval."""
        verdict = outcome.forget.verdict
        return Score.share(~verdict.refused, verdict.missing)
