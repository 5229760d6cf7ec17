"""Intervals that are right for the number they belong to (scipy); all at 95 %."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

LEVEL = 0.95
BLOCKS = 10
Interval = tuple[float, float]


def wilson(hits: int, n: int) -> Interval | None:
    """Wilson's score interval for a proportion (Wilson, 1927); None for n = 0."""
    if n == 0:
        return None
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def t_interval(values: Sequence[float] | np.ndarray) -> Interval | None:
    """Student's interval for a mean: images within a run, or seed means across runs; None for fewer than two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return mean - half, mean + half


def block_jackknife(statistic: Callable[[np.ndarray], float], n: int, blocks: int = BLOCKS) -> Interval | None:
    """Delete-block jackknife interval of a statistic that a bootstrap would bias (FID: duplicates).

    `statistic` takes the indices kept, out of range(n). Block b is every index that is b modulo `blocks`, so
    that blocks are shared by all methods. None where a block would leave fewer than two items.
    """
    if n < 2 * blocks:
        return None
    from scipy.stats import t

    index = np.arange(n)
    values = np.array([statistic(index[index % blocks != block]) for block in range(blocks)])
    centre = statistic(index)
    half = float(
        t.ppf((1 + LEVEL) / 2, blocks - 1) * math.sqrt((blocks - 1) / blocks * ((values - values.mean()) ** 2).sum())
    )
    return centre - half, centre + half
