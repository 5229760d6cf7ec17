"""FID between retain samples and as many real retain images, in the judge's features."""

import math
from collections.abc import Iterator

import numpy as np

from unlearnbench import FeatureMetric, Known, Table, taken
from unlearnbench.feature_distances import Moments, frechet
from unlearnbench.statistics import Interval, block_jackknife
from unlearnbench.testing import toy


class FID(FeatureMetric):
    """Fréchet distance of two Gaussians (Heusel et al., NeurIPS 2017), computed by torch-fidelity.

    The interval is a delete-block jackknife over samples and reference together. Values depend on the feature extractor
    and on the numbers of images: compare within one protocol only.
    """

    title, axis, better, digits = "FID", "utility", "lower", 3
    rank = 1
    limits = (0.0, None)

    def between(self, generated: Table, real: Table, k: int) -> float:
        """Distance >= 0."""
        return frechet(Moments.of(generated), Moments.of(real))

    def interval(self, value: float, generated: Table, real: Table, k: int) -> Interval | None:
        """The moments without a block are those of all images minus the block's, which is faster than computing them
        again.
        """
        n, sides = len(generated), (generated, real)
        whole = [Moments.of(side) for side in sides]

        def statistic(kept: np.ndarray) -> float:
            left = np.setdiff1d(np.arange(n), kept)
            rest = [all.less(Moments.of(taken(side, left))) for all, side in zip(whole, sides, strict=True)]
            return frechet(*rest) if len(left) else value

        return block_jackknife(statistic, n)

    def known(self) -> Iterator[Known]:
        """20 points +-s on 10 axes: covariance 2 s^2 / 19 on each, so FID from s = 19 is 20 / 19 (s - 19)^2."""
        real = toy.cross(19)
        yield Known("identical", toy.outcome(retain=real, reference=real), 0.0, 1e-6, "good")
        yield Known("shifted by 5", toy.outcome(retain=toy.cross(19, shift=5), reference=real), 25 - 1e-3, 25 + 1e-3)
        for name, size in (("over-dispersed", 38), ("collapsed", 0)):
            yield Known(name, toy.outcome(retain=toy.cross(size), reference=real), 380 - 0.1, 380 + 0.1, "bad")

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Near the floor for an unharmed model, far from it for random weights."""
        if control == "prompt_filter":
            return original - 1e-6, original + 1e-6
        return (10 * original, math.inf) if control == "destroy" else (-1e-6, 5 * original)
