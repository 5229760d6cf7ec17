"""FID between retain samples and as many real retain images, in the judge's features."""

import math
from collections.abc import Iterator

from torch import Tensor

from unlearnbench import FeatureMetric, Known, toy


class FID(FeatureMetric):
    """Fréchet distance of two Gaussians (Heusel et al., NeurIPS 2017), computed by torch-fidelity.

    The interval is a delete-block jackknife over samples and reference together. Values depend on the extractor and on
    the counts: compare within one protocol only.
    """

    title, axis, better, digits = "FID", "utility", "lower", 3
    rank = 1
    limits = (0.0, None)

    def between(self, generated: Tensor, real: Tensor, k: int) -> float:
        """Distance >= 0."""
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

        one, other = fid_features_to_statistics(generated), fid_features_to_statistics(real)
        return max(0.0, float(fid_statistics_to_metric(one, other, verbose=False)[KEY_METRIC_FID]))  # -1e-14 for equals

    def known(self) -> Iterator[Known]:
        """20 points +-s on 10 axes: covariance 2 s^2 / 19 on each, so FID from s = 19 is 20 / 19 (s - 19)^2."""
        real = toy.cross(19)
        yield Known("identical", toy.outcome(retain=real, reference=real), 0.0, 1e-6, "good")
        yield Known("shifted by 5", toy.outcome(retain=toy.cross(19, shift=5), reference=real), 25 - 1e-3, 25 + 1e-3)
        for name, size in (("over-dispersed", 38), ("collapsed", 0)):
            yield Known(name, toy.outcome(retain=toy.cross(size), reference=real), 380 - 0.1, 380 + 0.1, "bad")

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Near the floor for what was never harmed, far from it for random weights."""
        if control == "prompt_filter":
            return original - 1e-6, original + 1e-6
        return (10 * original, math.inf) if control == "destroy" else (-1e-6, 5 * original)
