"""KID between retain samples and as many real retain images, in the judge's features."""

import math
from collections.abc import Iterator

import numpy as np

from unlearnbench import FeatureMetric, Known, Table
from unlearnbench.feature_distances import squared_mmd
from unlearnbench.statistics import BLOCKS, Interval, t_interval
from unlearnbench.testing import toy


class KID(FeatureMetric):
    """Squared MMD with the cubic polynomial kernel, unbiased (Binkowski et al., ICLR 2018), by torch-fidelity.

    The mean over disjoint subsets of at least 1,000 images. Each subset takes every m-th image, so that all hold the
    same concepts; fewer than 2,000 images form one subset. Random subsets overlap and would add randomness. Where both
    sides hold fixed numbers of images of each concept, as here, the estimate for equal distributions lies below zero,
    by about their spread / n. The interval is a t-interval over ten subsets or more, otherwise a delete-block
    jackknife.
    """

    title, axis, better, digits = "KID", "utility", "lower", 4
    rank = 2

    def between(self, generated: Table, real: Table, k: int) -> float:
        """Estimate of the squared distance; may be negative."""
        return float(np.mean(squared_mmd(generated, real)))

    def interval(self, value: float, generated: Table, real: Table, k: int) -> Interval | None:
        """Over subsets where there are ten or more."""
        values = squared_mmd(generated, real)
        return t_interval(values) if len(values) >= BLOCKS else super().interval(value, generated, real, k)

    def known(self) -> Iterator[Known]:
        """k(x, y) = (x.y / 10 + 1)^3: 1331 at (10, 0, ...) with itself, 1 with the origin."""
        here, origin = toy.points([10], [10]), toy.points([0], [0])
        yield Known("identical", toy.outcome(retain=here, reference=here), -1e-6, 1e-6, "good")
        yield Known("disjoint", toy.outcome(retain=here, reference=origin), 1331 + 1 - 2 - 1e-3, 1330 + 1e-3, "bad")

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Random weights are far from real images; a filter leaves retained concepts alone."""
        if control == "prompt_filter":
            return original - 1e-6, original + 1e-6
        return (0.1, math.inf) if control == "destroy" else (-0.05, 0.05)
