"""CLIP score: do retain samples show what the prompt asks for?"""

import math
from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class ClipScore(Metric):
    """100 x the cosine of retain samples and their prompts (Hessel et al., EMNLP 2021), by OpenAI's ViT-B/32."""

    title, axis, better, digits = "CLIP score", "utility", "higher", 2
    side, witness, rank, everywhere, limits = "retain", "clip_b32", 12, False, (-100.0, 100.0)

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Mean over images with a t-interval."""
        scores = outcome.said("clip_b32", "score", "retain")
        return Score.mean(scores, scores.isnan())

    def known(self) -> Iterator[Known]:
        """The mean over images that are not missing."""
        some = [30.0] * 420 + [20.0] * 180  # several batches, all different
        yield Known("of 600", toy.scored("clip_b32", some, "retain"), 27.0)
        yield Known("of three", toy.scored("clip_b32", [30.0, 32.0, 34.0], "retain"), 32.0, quality="good")
        yield Known("unlike", toy.scored("clip_b32", [10.0, 12.0], "retain"), 11.0, quality="bad")
        yield Known("failed on one", toy.scored("clip_b32", [30.0, math.nan, 32.0], "retain"), 31.0, missing=1)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Random weights draw nothing of what the prompt asks for; a filter leaves other prompts alone."""
        return {"destroy": (-100.0, original), "prompt_filter": (original - 1e-6, original + 1e-6)}.get(control)
