"""Precision: the share of retain samples that lie within the real data's manifold."""

from collections.abc import Iterator

from unlearnbench import FeatureMetric, Known, Table
from unlearnbench.feature_distances import share_within_radii
from unlearnbench.statistics import Interval, wilson
from unlearnbench.testing import toy


class Precision(FeatureMetric):
    """Improved precision (Kynkäänniemi et al., NeurIPS 2019) with the protocol's k.

    Drops for an over-dispersed model, not for a collapsed one; recall does the opposite.
    """

    title, axis, better, unit, scale = "precision", "utility", "higher", "%", 100.0
    stored = "share"
    rank = 3

    def least(self, k: int) -> int:
        """One more than the number of neighbours."""
        return k + 1

    def between(self, generated: Table, real: Table, k: int) -> float:
        """Proportion in [0, 1]."""
        return share_within_radii(generated, real, k)

    def interval(self, value: float, generated: Table, real: Table, k: int) -> Interval | None:
        """Wilson's interval, given the reference."""
        return wilson(round(value * len(generated)), len(generated))

    def known(self) -> Iterator[Known]:
        """See `toy.manifolds`: which case drops shows the order of the arguments."""
        return toy.manifolds(collapsed=1.0, spread=0.2)

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Nothing is left of random weights; a filter leaves retained concepts alone."""
        if control == "prompt_filter":
            return original - 1e-6, original + 1e-6
        return (0.0, 0.2) if control == "destroy" else (0.5, 1.0)
