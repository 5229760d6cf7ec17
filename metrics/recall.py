"""Recall: the share of real retain images that lie within the manifold of the retain samples."""

from collections.abc import Iterator

from unlearnbench import FeatureMetric, Known, Table
from unlearnbench.feature_distances import share_within_radii
from unlearnbench.statistics import Interval, wilson
from unlearnbench.testing import toy


class Recall(FeatureMetric):
    """Improved recall (Kynkäänniemi et al., NeurIPS 2019) with the protocol's k.

    Drops for a collapsed model, not for an over-dispersed one; precision does the opposite.
    """

    title, axis, better, unit, scale = "recall", "utility", "higher", "%", 100.0
    stored = "share"
    rank = 4

    def least(self, k: int) -> int:
        """One more than the number of neighbours."""
        return k + 1

    def between(self, generated: Table, real: Table, k: int) -> float:
        """Proportion in [0, 1]."""
        return share_within_radii(real, generated, k)

    def interval(self, value: float, generated: Table, real: Table, k: int) -> Interval | None:
        """Wilson's interval, given the samples."""
        return wilson(round(value * len(real)), len(real))

    def known(self) -> Iterator[Known]:
        """See `toy.manifolds`: which case drops shows the order of the arguments."""
        return toy.manifolds(collapsed=0.2, spread=1.0)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Nothing is left of random weights; a filter leaves retained concepts alone."""
        if control == "prompt_filter":
            return original - 1e-6, original + 1e-6
        return (0.0, 0.2) if control == "destroy" else (0.5, 1.0)
