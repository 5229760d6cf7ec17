"""Precision: the share of retain samples that lie within the real data's manifold."""

from unlearnbench import Metric, Outcome, Score
from unlearnbench.statistics import wilson


class Precision(Metric):
    """Improved precision (Kynkäänniemi et al., NeurIPS 2019) with the protocol's k, by torch-fidelity.

    Falls for an over-dispersed model, not for a collapsed one; recall does the opposite.
    """

    title, axis, better, unit, scale = "precision", "utility", "higher", "%", 100.0
    stored = "share"
    rank = 3

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Proportion in [0, 1], Wilson interval given the reference."""
        from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, prc_features_to_metric

        n, k = min(len(outcome.features), len(outcome.reference)), outcome.task.protocol.k
        if n <= k:
            return Score(None, n, reason=f"k={k} neighbours need more than {n} images")
        result = prc_features_to_metric(outcome.features[:n], outcome.reference[:n], prc_neighborhood=k, verbose=False)
        value = float(result[KEY_METRIC_PRECISION])
        return Score(value, n, interval=wilson(round(value * n), n))
