"""Statistics and distances of features in blocks: torch-fidelity would hold all features or pairs in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearnbench.storage.lazy_arrays import Table, taken

FEW = 1000
"""Features per block; a block of distances between as many features on each side takes 4 MB."""
SUBSET = 1000
"""Features per KID subset, as is usual; kernels grow with its square."""


class Moments(NamedTuple):
    """Sums over features in float64, accumulated block by block."""

    n: int
    total: np.ndarray
    """Sum of features (D,)."""
    products: np.ndarray
    """Sum of outer products (D, D)."""

    @classmethod
    def of(cls, features: Table) -> Moments:
        """Compute the sums over all rows."""
        sums: Any = (0, 0.0, 0.0)
        for some in features.split(FEW):
            x = some.double().numpy()
            sums = (sums[0] + len(x), sums[1] + x.sum(axis=0), sums[2] + x.T @ x)
        return cls(*sums)

    def less(self, other: Moments) -> Moments:
        """Return the sums without these rows."""
        return Moments(self.n - other.n, self.total - other.total, self.products - other.products)

    def statistics(self) -> dict[str, np.ndarray]:
        """Return the mean (D,) and unbiased covariance (D, D), as torch-fidelity computes them."""
        mean = self.total / self.n
        return {"mu": mean, "sigma": (self.products - self.n * np.outer(mean, mean)) / (self.n - 1)}


def frechet(one: Moments, other: Moments) -> float:
    """Frechet distance of the two Gaussians with these moments; clipped at 0, since rounding could make it negative."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return max(
        0.0, float(fid_statistics_to_metric(one.statistics(), other.statistics(), verbose=False)[KEY_METRIC_FID])
    )


def radii(features: Table, k: int) -> Tensor:
    """Distance (n,) of each feature to its k-th nearest other feature, the (k + 1)-th if itself is counted."""
    found = []
    for rows in features.split(FEW):
        least = torch.full((len(rows), k + 1), torch.inf)
        for columns in features.split(FEW):
            least = torch.cat([least, torch.cdist(rows, columns)], dim=1).topk(k + 1, largest=False).values
        found.append(least.amax(dim=1))
    return torch.cat(found)


def share_within_radii(points: Table, features: Table, k: int) -> float:
    """Share of points in the manifold of the features: within the radius of at least one feature."""
    reach, hits = radii(features, k).split(FEW), 0
    for rows in points.split(FEW):
        inside = torch.zeros(len(rows), dtype=torch.bool)
        for columns, radius in zip(features.split(FEW), reach, strict=True):
            inside |= (torch.cdist(rows, columns) <= radius).any(dim=1)
        hits += int(inside.sum())
    return hits / len(points)


def squared_mmd(generated: Table, real: Table) -> list[float]:
    """KID by torch-fidelity on n // `SUBSET` disjoint subsets, each of every so many-th image."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    count, values = max(1, len(generated) // SUBSET), []
    for i in range(count):
        one, other = (taken(side, slice(i, None, count))[:] for side in (generated, real))
        result = kid_features_to_metric(one, other, kid_subsets=1, kid_subset_size=len(one), verbose=False)
        values.append(float(result[KEY_METRIC_KID_MEAN]))
    return values


def inception_score(features: Table, logits_from: Callable[[Tensor], Tensor]) -> float:
    """exp(mean of sum p log p - sum q log q), q the mean of p, from logits in float64; nan without features."""
    if not len(features):
        return math.nan
    total, own = torch.zeros((), dtype=torch.float64), 0.0
    for some in features.split(FEW):
        log_p = logits_from(some).double().log_softmax(dim=1)
        p = log_p.exp()
        total, own = total + p.sum(dim=0), own + (p * log_p).sum().item()
    q = total / len(features)
    return math.exp(own / len(features) - torch.special.xlogy(q, q).sum().item())
