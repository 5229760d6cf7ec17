"""LPIPS_u: how far images of retained concepts moved from the original's (in ESD's, UCE's and RECE's code)."""

import math
from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class LpipsUnerased(Metric):
    """Mean LPIPS (AlexNet, 64 pixels) between a retain sample and the original's for the same prompt and noise."""

    title, digits = "LPIPS u", 3
    axis, better = "utility", "lower"
    rank, everywhere = 30, False
    side, witness, limits = "retain", "lpips", (0.0, None)

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Mean over images with a t-interval."""
        if "lpips" not in outcome.witnessed:
            return Score(None, 0, reason="the original's images were not compared with")
        distances = outcome.said("lpips", "distance", "retain")
        return Score.mean(distances, distances.isnan())

    def known(self) -> Iterator[Known]:
        """The mean over images that are not missing."""
        some = [0.6] * 420 + [0.2] * 180  # several batches, all different
        yield Known("of 600", toy.scored("lpips", some, "retain", "distance"), 0.48)
        yield Known("of three", toy.scored("lpips", [0.2, 0.4, 0.6], "retain", "distance"), 0.4, quality="bad")
        yield Known("the original's", toy.scored("lpips", [0.0, 0.0], "retain", "distance"), 0.0, quality="good")
        yield Known("failed on one", toy.scored("lpips", [0.3, math.nan, 0.5], "retain", "distance"), 0.4, missing=1)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """The original is at no distance from itself, and a filter leaves other prompts alone."""
        return (0.0, 1e-6) if control in ("original", "prompt_filter") else None
