"""FID between retain samples and as many real retain images, in the judge's features."""

import numpy as np

from unlearnbench import Metric, Outcome, Score
from unlearnbench.statistics import block_jackknife


class FID(Metric):
    """Fréchet distance of two Gaussians (Heusel et al., NeurIPS 2017), computed by torch-fidelity.

    The interval is a delete-block jackknife over samples and reference together. Values depend on the extractor and on
    the counts: compare within one protocol only.
    """

    title, axis, better, digits = "FID", "utility", "lower", 3
    rank = 1

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Distance >= 0."""
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

        n = min(len(outcome.features), len(outcome.reference))
        if n < 2:
            return Score(None, n, reason="fewer than two images")

        def distance(kept: np.ndarray) -> float:
            generated, real = (fid_features_to_statistics(f[:n][kept]) for f in (outcome.features, outcome.reference))
            return float(fid_statistics_to_metric(generated, real, verbose=False)[KEY_METRIC_FID])

        return Score(distance(np.arange(n)), n, interval=block_jackknife(distance, n))
