"""CLIP score of forget samples: is what was erased still drawn as prompts ask for it? (MACE's CLIP_e, CVPR 2024)."""

import math
from collections.abc import Iterator

from unlearnbench import Known, Metric, Outcome, Score
from unlearnbench.testing import toy


class ClipE(Metric):
    """100 x the cosine of forget samples and their prompts, by OpenAI's ViT-B/32; `clip_score` has retain samples.

    Low for noise, too: read it with CLIP score and LPIPS u.
    """

    title, digits = "CLIP e", 2
    axis, better = "efficacy", "lower"
    rank, everywhere = 31, False
    side, witness, limits = "forget", "clip_erased", (-100.0, 100.0)

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Mean over images with a t-interval."""
        if "clip_erased" not in outcome.witnessed:
            return Score(None, 0, reason="CLIP saw no forget samples")
        scores = outcome.said("clip_erased", "score", "forget")
        return Score.mean(scores, scores.isnan())

    def known(self) -> Iterator[Known]:
        """The mean over images that are not missing."""
        some = [30.0] * 420 + [20.0] * 180  # several batches, all different
        yield Known("of 600", toy.scored("clip_erased", some, "forget"), 27.0)
        yield Known("of three", toy.scored("clip_erased", [30.0, 32.0, 34.0], "forget"), 32.0, quality="bad")
        yield Known("unlike", toy.scored("clip_erased", [10.0, 12.0], "forget"), 11.0, quality="good")
        yield Known("failed on one", toy.scored("clip_erased", [30.0, math.nan, 20.0], "forget"), 25.0, missing=1)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Random weights draw nothing of what the prompt asks for."""
        return (-100.0, original) if control == "destroy" else None
