"""Precision: the share of retain samples that lie within the real data's manifold."""

from collections.abc import Iterator

from torch import Tensor

from unlearnbench import FeatureMetric, Known, toy
from unlearnbench.statistics import Interval, wilson


class Precision(FeatureMetric):
    """Improved precision (Kynkäänniemi et al., NeurIPS 2019) with the protocol's k, by torch-fidelity.

    Falls for an over-dispersed model, not for a collapsed one; recall does the opposite.
    """

    title, axis, better, unit, scale = "precision", "utility", "higher", "%", 100.0
    stored = "share"
    rank = 3

    def least(self, k: int) -> int:
        """One more than the neighbours."""
        return k + 1

    def between(self, generated: Tensor, real: Tensor, k: int) -> float:
        """Proportion in [0, 1]."""
        from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, prc_features_to_metric

        result = prc_features_to_metric(generated, real, prc_neighborhood=k, verbose=False)
        return float(result[KEY_METRIC_PRECISION])

    def interval(self, value: float, n: int, kept: object) -> Interval | None:
        """Wilson's, given the reference."""
        return wilson(round(value * n), n)

    def known(self) -> Iterator[Known]:
        """See `toy.manifolds`: which case falls tells the order of arguments."""
        return toy.manifolds(collapsed=1.0, spread=0.2)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Nothing is left of random weights; a filter touches nothing."""
        if control == "prompt_filter":
            return original - 1e-6, original + 1e-6
        return (0.0, 0.2) if control == "destroy" else (0.5, 1.0)
