"""Sums and distances over features some at a time: torch-fidelity would hold them all, or a distance for every pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearnbench.storage.lazy_arrays import Table, taken

FEW = 1000
"""Features read at once; a tile of distances between as many on each side takes 4 MB."""
SUBSET = 1000
"""Features of a subset of KID, as is usual: kernels are of its square."""


class Moments(NamedTuple):
    """Sums over features, in float64, added up image by image: there may be too many to be held at once."""

    n: int
    total: np.ndarray
    """(D,)."""
    products: np.ndarray
    """(D, D) of outer products."""

    @classmethod
    def of(cls, features: Table) -> Moments:
        """Over all rows."""
        sums: Any = (0, 0.0, 0.0)
        for some in features.split(FEW):
            x = some.double().numpy()
            sums = (sums[0] + len(x), sums[1] + x.sum(axis=0), sums[2] + x.T @ x)
        return cls(*sums)

    def less(self, other: Moments) -> Moments:
        """Without these rows."""
        return Moments(self.n - other.n, self.total - other.total, self.products - other.products)

    def statistics(self) -> dict[str, np.ndarray]:
        """Mean and unbiased covariance, as torch-fidelity takes them."""
        mean = self.total / self.n
        return {"mu": mean, "sigma": (self.products - self.n * np.outer(mean, mean)) / (self.n - 1)}


def frechet(one: Moments, other: Moments) -> float:
    """Of the two Gaussians with these moments; never below zero, where equal ones would come out by rounding."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return max(
        0.0, float(fid_statistics_to_metric(one.statistics(), other.statistics(), verbose=False)[KEY_METRIC_FID])
    )


def radii(features: Table, k: int) -> Tensor:
    """Distance (n,) of each feature to its k-th nearest other one, that is the (k + 1)-th with itself."""
    found = []
    for rows in features.split(FEW):
        least = torch.full((len(rows), k + 1), torch.inf)
        for columns in features.split(FEW):
            least = torch.cat([least, torch.cdist(rows, columns)], dim=1).topk(k + 1, largest=False).values
        found.append(least.amax(dim=1))
    return torch.cat(found)


def within(points: Table, features: Table, k: int) -> float:
    """Share of points that lie within the manifold of the features: no farther from one of them than its radius."""
    reach, hits = radii(features, k).split(FEW), 0
    for rows in points.split(FEW):
        inside = torch.zeros(len(rows), dtype=torch.bool)
        for columns, radius in zip(features.split(FEW), reach, strict=True):
            inside |= (torch.cdist(rows, columns) <= radius).any(dim=1)
        hits += int(inside.sum())
    return hits / len(points)


def squared_mmd(generated: Table, real: Table) -> list[float]:
    """KID by torch-fidelity on each of n // `SUBSET` disjoint subsets, subset i every so many-th image from i on."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    count, values = max(1, len(generated) // SUBSET), []
    for i in range(count):
        one, other = (taken(side, slice(i, None, count))[:] for side in (generated, real))
        result = kid_features_to_metric(one, other, kid_subsets=1, kid_subset_size=len(one), verbose=False)
        values.append(float(result[KEY_METRIC_KID_MEAN]))
    return values


def inception_score(features: Table, logits_from: Callable[[Tensor], Tensor]) -> float:
    """exp(mean of sum p log p - sum q log q), q the mean of p, of logits in float64; nan of no features."""
    if not len(features):
        return math.nan
    total, own = torch.zeros((), dtype=torch.float64), 0.0
    for some in features.split(FEW):
        log_p = logits_from(some).double().log_softmax(dim=1)
        p = log_p.exp()
        total, own = total + p.sum(dim=0), own + (p * log_p).sum().item()
    q = total / len(features)
    return math.exp(own / len(features) - torch.special.xlogy(q, q).sum().item())
