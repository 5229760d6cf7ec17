"""Recall: the share of real retain images that lie within the manifold of the retain samples."""

from unlearnbench import Metric, Outcome, Score
from unlearnbench.statistics import wilson


class Recall(Metric):
    """Improved recall (Kynkäänniemi et al., NeurIPS 2019) with the protocol's k, by torch-fidelity.

    Falls for a collapsed model, not for an over-dispersed one; precision does the opposite.
    """

    title, axis, better, unit, scale = "recall", "utility", "higher", "%", 100.0
    stored = "share"
    rank = 4

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval given the samples."""
        from torch_fidelity.metric_prc import KEY_METRIC_RECALL, prc_features_to_metric

        n, k = min(len(outcome.features), len(outcome.reference)), outcome.task.protocol.k
        if n <= k:
            return Score(None, n, reason=f"k={k} neighbours need more than {n} images")
        result = prc_features_to_metric(outcome.features[:n], outcome.reference[:n], prc_neighborhood=k, verbose=False)
        value = float(result[KEY_METRIC_RECALL])
        return Score(value, n, interval=wilson(round(value * n), n))
