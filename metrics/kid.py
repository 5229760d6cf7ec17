"""KID between retain samples and as many real retain images, in the judge's features."""

import numpy as np

from unlearnbench import Metric, Outcome, Score
from unlearnbench.statistics import block_jackknife


class KID(Metric):
    """Squared MMD with the cubic polynomial kernel, unbiased (Binkowski et al., ICLR 2018), by torch-fidelity.

    One subset of all images instead of many random ones: no further randomness. Where both sides hold fixed counts of
    each concept, as here, the estimate lies below zero for equal distributions, by about their spread / n.
    """

    title, axis, better, digits = "KID", "utility", "lower", 4
    rank = 2

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Estimate of the squared distance, delete-block jackknife interval."""
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

        n = min(len(outcome.features), len(outcome.reference))
        if n < 2:
            return Score(None, n, reason="fewer than two images")

        def distance(kept: np.ndarray) -> float:
            generated, real = outcome.features[:n][kept], outcome.reference[:n][kept]
            result = kid_features_to_metric(generated, real, kid_subsets=1, kid_subset_size=len(kept), verbose=False)
            return float(result[KEY_METRIC_KID_MEAN])

        return Score(distance(np.arange(n)), n, interval=block_jackknife(distance, n))
