"""KID between retain samples and as many real retain images, in the judge's features."""

import math
from collections.abc import Iterator

from torch import Tensor

from unlearnbench import FeatureMetric, Known, toy


class KID(FeatureMetric):
    """Squared MMD with the cubic polynomial kernel, unbiased (Binkowski et al., ICLR 2018), by torch-fidelity.

    One subset of all images instead of many random ones: no further randomness. Where both sides hold fixed counts of
    each concept, as here, the estimate lies below zero for equal distributions, by about their spread / n.
    """

    title, axis, better, digits = "KID", "utility", "lower", 4
    rank = 2

    def between(self, generated: Tensor, real: Tensor, k: int) -> float:
        """Estimate of the squared distance."""
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

        n = len(generated)
        result = kid_features_to_metric(generated, real, kid_subsets=1, kid_subset_size=n, verbose=False)
        return float(result[KEY_METRIC_KID_MEAN])

    def known(self) -> Iterator[Known]:
        """k(x, y) = (x.y / 10 + 1)^3: 1331 at (10, 0, ...) with itself, 1 with the origin."""
        here, origin = toy.points([10], [10]), toy.points([0], [0])
        yield Known("identical", toy.outcome(retain=here, reference=here), -1e-6, 1e-6, "good")
        yield Known("disjoint", toy.outcome(retain=here, reference=origin), 1331 + 1 - 2 - 1e-3, 1330 + 1e-3, "bad")

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Random weights are far from real images; a filter touches nothing."""
        if control == "prompt_filter":
            return original - 1e-6, original + 1e-6
        return (0.1, math.inf) if control == "destroy" else (-0.05, 0.05)
