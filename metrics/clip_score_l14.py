"""CLIP score by the larger model."""

import math
from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class ClipScoreL14(Metric):
    """As `clip_score`, by OpenAI's ViT-L/14: the text encoder of Stable Diffusion 1.x is this model's own."""

    title, axis, better, digits = "CLIP score L/14", "utility", "higher", 2
    side, witness, rank, everywhere, limits = "retain", "clip_l14", 13, False, (-100.0, 100.0)

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Mean over images with a t-interval."""
        scores = outcome.said("clip_l14", "score", "retain")
        return Score.mean(scores, scores.isnan())

    def known(self) -> Iterator[Known]:
        """The mean over images that are not missing."""
        some = [30.0] * 420 + [20.0] * 180  # several batches, all different
        yield Known("of 600", toy.scored("clip_l14", some, "retain"), 27.0)
        yield Known("of three", toy.scored("clip_l14", [30.0, 32.0, 34.0], "retain"), 32.0, quality="good")
        yield Known("unlike", toy.scored("clip_l14", [10.0, 12.0], "retain"), 11.0, quality="bad")
        yield Known("failed on one", toy.scored("clip_l14", [30.0, math.nan, 32.0], "retain"), 31.0, missing=1)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Random weights draw nothing of what the prompt asks for; a filter leaves other prompts alone."""
        return {"destroy": (-100.0, original), "prompt_filter": (original - 1e-6, original + 1e-6)}.get(control)
