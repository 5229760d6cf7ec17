"""A threshold of abstention that keeps what people still recognise, from corrupted calibration images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from unlearnbench.hashing import seed_of
from unlearnbench.judges.corruptions import CORRUPTIONS, SEVERITIES, corrupted

REFUSED_SHARE: Final = 0.005
"""The threshold is at least the interpolated quantile of scores that leaves this share of calibration images above it.
"""
CLEAR: Final = 0.9
"""Share of right closed-set answers from which on people still see the concept, as far as a judge can tell."""
CALIBRATED_SHARE: Final = 0.02
"""Share of equally corrupted calibration images that a judge may refuse; below the card's 5 %, since calibration images
are few."""

Scored = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From uint8 images (N, 3, H, W) to the most probable label and the score of abstention, both (N, D) for D domains."""


def corrupted_thresholds(scored: Scored, images: Tensor, labels: Tensor, draws: int = 1) -> Tensor:
    """The lowest thresholds (D,) that refuse at most `CALIBRATED_SHARE` wherever a judge still answers right.

    Args:
        scored: The judge's labels and scores.
        images: Real images uint8 (N, 3, H, W) that it was not trained on.
        labels: Their right labels, (N, D) for D domains.
        draws: How often each kind of corruption is drawn for each image.

    Images are corrupted by each kind at each severity. In a domain, those count of which at least `CLEAR` are named
    right. Of the images as they are, at most `REFUSED_SHARE` are refused.
    """
    shown, asked = images.repeat(draws, 1, 1, 1), labels.repeat(draws, 1)
    thresholds = scored(images)[1].quantile(1 - REFUSED_SHARE, dim=0)
    for kind in CORRUPTIONS:
        for severity in SEVERITIES:
            generator = torch.Generator().manual_seed(seed_of("calibration", kind, severity) >> 1)
            found, scores = scored(corrupted(shown, kind, severity, generator))
            clear = (found == asked).float().mean(dim=0) >= CLEAR
            needed = scores.quantile(1 - CALIBRATED_SHARE, dim=0)
            thresholds = torch.where(clear, torch.maximum(thresholds, needed), thresholds)
    return thresholds
