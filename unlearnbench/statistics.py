"""Intervals that are right for the number they belong to (scipy); all at 95 %."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

LEVEL = 0.95
BLOCKS = 10
MANY = 5
"""Seeds from which on an interval speaks of other images too, and methods may be called not worse than the best."""
Interval = tuple[float, float]


def wilson(hits: int, n: int) -> Interval | None:
    """Wilson's score interval for a proportion (Wilson, 1927); None for n = 0."""
    if n == 0:
        return None
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


@cache
def _student(degrees: float) -> float:
    """The quantile of Student's t that an interval takes: asked for a thousand times, of few degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, degrees))


def t_interval(values: Sequence[float] | np.ndarray) -> Interval | None:
    """Student's interval for a mean: images within a run, or seed means across runs; None for fewer than two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return None
    half = _student(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    mean = float(values.mean())
    return mean - half, mean + half


def block_jackknife(statistic: Callable[[np.ndarray], float], n: int, blocks: int = BLOCKS) -> Interval | None:
    """Delete-block jackknife interval of a statistic that a bootstrap would bias (FID: duplicates).

    `statistic` takes the indices kept, out of range(n). Block b is every index that is b modulo `blocks`, so
    that blocks are shared by all methods. None where a block would leave fewer than two items.
    """
    if n < 2 * blocks:
        return None
    index = np.arange(n)
    values = np.array([statistic(index[index % blocks != block]) for block in range(blocks)])
    centre = statistic(index)
    half = float(_student(blocks - 1) * math.sqrt((blocks - 1) / blocks * ((values - values.mean()) ** 2).sum()))
    return centre - half, centre + half


def crossed(values: np.ndarray) -> Interval | None:
    """Interval for the mean over other seeds *and* other images, from values (S seeds, I shared images), no NaN.

    Two crossed random factors: Var = V_seeds + V_images - V_rest, each term a variance of means, with Satterthwaite's
    degrees of freedom, at least S - 1 (Satterthwaite, 1946; the variance is that of two-way clustering, Cameron et al.,
    JBES 2011). Resampling both factors instead covers 90 to 100 % at nominal 95 % (see results/coverage.md).
    """
    seeds, images = values.shape
    if seeds < 2 or images < 2:
        return None
    mean, by_seed, by_image = values.mean(), values.mean(axis=1), values.mean(axis=0)
    rest = values - by_seed[:, None] - by_image + mean
    free = (seeds - 1, images - 1, (seeds - 1) * (images - 1))
    parts = (
        by_seed.var(ddof=1) / seeds,
        by_image.var(ddof=1) / images,
        (rest**2).sum() / free[2] / (seeds * images),
    )
    variance = max(parts[0] + parts[1] - parts[2], min(parts[:2]))
    spread = sum(part**2 / degrees for part, degrees in zip(parts, free, strict=True))
    degrees = max(seeds - 1, variance**2 / spread) if spread else seeds - 1
    half = _student(degrees) * math.sqrt(variance)
    return float(mean) - half, float(mean) + half


def over_seeds(
    means: Sequence[float], matrix: np.ndarray | None = None, shares_of: int | None = None
) -> Interval | None:
    """The interval that a number of seeds allows, for two or more.

    Two to four seeds: Student's t on seed means, which speaks of other seeds with *these* images. From `MANY` on:
    `crossed` over `matrix` (seeds, images) where there are per-image values, which speaks of other images too. Shares
    of `shares_of` images that are equal in all runs: Wilson's interval of one run, since runs without spread do not
    prove certainty.
    """
    if shares_of and max(means) == min(means):
        return wilson(round(means[0] * shares_of), shares_of)
    return crossed(matrix) if matrix is not None and len(means) >= MANY else t_interval(means)


def within(interval: Interval | None, least: float | None, most: float | None) -> Interval | None:
    """The part of an interval where a value can be at all; None for no bound."""
    if interval is None:
        return None
    low, high = interval
    return low if least is None else max(least, low), high if most is None else min(most, high)


Estimated = tuple[float, Interval | None]
"""A value and its interval."""


def difference(a: Estimated, b: Estimated) -> Interval | None:
    """Interval for a - b from those of both (Newcombe's method 10, Statistics in Medicine, 1998, for proportions).

    It takes the two as independent; where they share noise, it is wider than it need be. None where either has none.
    """
    (p, first), (q, second) = a, b
    if first is None or second is None:
        return None
    low = math.hypot(p - first[0], second[1] - q)
    high = math.hypot(first[1] - p, q - second[0])
    return p - q - low, p - q + high


def paired_shares(a: np.ndarray, b: np.ndarray) -> Interval | None:
    """Interval for the share of hits in a less that in b, on the same images (n,), none missing; None for n = 0.

    Newcombe, Statistics in Medicine, 1998, 17:2635-2650, method 10: Wilson's intervals of both shares, squared and
    added with the correlation phi, whose numerator is drawn to 0 by n / 2 where it is positive.
    """
    n = len(a)
    first, second = wilson(int(a.sum()), n), wilson(int(b.sum()), n)
    if first is None or second is None:
        return None
    p, q = float(a.mean()), float(b.mean())
    both, only_a, only_b, neither = (int(cell.sum()) for cell in (a * b, a * (1 - b), (1 - a) * b, (1 - a) * (1 - b)))
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    excess = both * neither - only_a * only_b
    drawn = max(excess - n / 2, 0.0) if excess > 0 else float(excess)
    phi = drawn / math.sqrt(product) if product else 0.0

    def half(x: float, y: float) -> float:
        return math.sqrt(max(x**2 - 2 * phi * x * y + y**2, 0.0))

    return p - q - half(p - first[0], second[1] - q), p - q + half(first[1] - p, q - second[0])


def paired_images(a: np.ndarray, b: np.ndarray) -> Interval | None:
    """Interval for mean(a) - mean(b) of one run each, from values (I,) on the same images; NaN is missing.

    Hits (0 and 1): `paired_shares`; other values: Student's t on the differences.
    """
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    return paired_shares(a, b) if binary(a) and binary(b) else t_interval(a - b)


def binary(values: np.ndarray) -> bool:
    """Whether values are hits: 0, 1, or missing."""
    return bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())


def over_pairs(
    a: Sequence[float], b: Sequence[float], images: tuple[np.ndarray, np.ndarray] | None = None
) -> Interval | None:
    """Interval for the mean of a - b over runs that are paired by seed, one or more.

    `images`: values of both, (S runs, I shared images), NaN where missing. One run, or runs whose differences are all
    equal: `paired_images` of the first, None without images; more: `over_seeds` on the differences.
    """
    gaps = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if len(gaps) < 2 or np.ptp(gaps) == 0:
        return None if images is None or not len(gaps) else paired_images(images[0][0], images[1][0])
    if images is None:
        return over_seeds(list(gaps))
    apart = images[0] - images[1]
    return over_seeds(list(gaps), apart[:, ~np.isnan(apart).any(axis=0)])


def mcnemar(a: np.ndarray, b: np.ndarray) -> float | None:
    """Exact two-sided p of McNemar's test (1947) for two methods' hits on the same images; None without a pair.

    Pairs with a missing value on either side do not count.
    """
    both = ~(np.isnan(a) | np.isnan(b))
    if not both.any():
        return None
    from scipy.stats import binomtest

    only_a, only_b = int((a[both] > b[both]).sum()), int((a[both] < b[both]).sum())
    return 1.0 if only_a + only_b == 0 else float(binomtest(only_a, only_a + only_b).pvalue)


def paired_t(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test over seeds; None for fewer than two, 1 or 0 where differences do not vary."""
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if len(difference) < 2:
        return None
    if np.ptp(difference) == 0:
        return 1.0 if difference[0] == 0 else 0.0
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(difference, 0).pvalue)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (1979) of the p values there are, in their order."""
    known = sorted((value, index) for index, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    highest = 0.0
    for rank, (value, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        adjusted[index] = highest
    return adjusted


def anchored(
    value: float | None, zero: tuple[float | None, Interval | None], one: tuple[float | None, Interval | None]
) -> tuple[float | None, str | None]:
    """Where a value lies between two anchors (0 and 1), never clipped; without a clear gap between them, the reason.

    Anchors are means with their intervals, which must not touch.
    """
    if value is None or zero[0] is None or one[0] is None:
        return None, "no value" if value is None else "an anchor was not measured"
    low, high = sorted([zero, one], key=lambda anchor: anchor[0] or 0.0)
    if low[1] is None or high[1] is None or low[1][1] >= high[1][0]:
        return None, "the anchors are not clear of each other"
    return (value - zero[0]) / (one[0] - zero[0]), None
