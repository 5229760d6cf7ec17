"""Confidence intervals and tests, each suited to the kind of number it is for (scipy). All intervals are at 95 %."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import numpy as np

LEVEL = 0.95
BLOCKS = 10
MANY = 5
"""From this many seeds on, intervals also cover other images, and tables mark the best and what is not told from it."""
ROUNDING = 1e-9
"""Values within this relative difference count as equal, since 0.9 - 0.3 is not 0.7 - 0.1 in floating point."""
Interval = tuple[float, float]


@lru_cache(maxsize=10_000)
def wilson(hits: int, n: int) -> Interval | None:
    """Wilson's score interval for a proportion (Wilson, 1927). None for n = 0."""
    if n == 0:
        return None
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


@cache
def _student(degrees: float) -> float:
    """Return the quantile of Student's t for an interval, cached: tables ask for the same few a thousand times."""
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, degrees))


def t_interval(values: Sequence[float] | np.ndarray) -> Interval | None:
    """Student's t interval for a mean of images within a run, or of seed means across runs. None for fewer than two
    values.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return None
    half = _student(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    mean = float(values.mean())
    return mean - half, mean + half


def block_jackknife(statistic: Callable[[np.ndarray], float], n: int, blocks: int = BLOCKS) -> Interval | None:
    """Delete-block jackknife interval for a statistic such as FID, which a bootstrap would bias by its duplicates.

    `statistic` takes the indices that are kept, out of range(n). Block b holds every index that is b modulo `blocks`,
    so that all methods share the same blocks. None if a block would leave fewer than two items.
    """
    if n < 2 * blocks:
        return None
    index = np.arange(n)
    values = np.array([statistic(index[index % blocks != block]) for block in range(blocks)])
    centre = statistic(index)
    half = float(_student(blocks - 1) * math.sqrt((blocks - 1) / blocks * ((values - values.mean()) ** 2).sum()))
    return centre - half, centre + half


def crossed(values: np.ndarray) -> Interval | None:
    """Interval for the mean over other seeds *and* other images, from `values` (S seeds, I shared images) without NaN.

    Seeds and images are two crossed random factors: Var = V_seeds + V_images - V_rest, each term a variance of means,
    with Satterthwaite's degrees of freedom, at least S - 1 (Satterthwaite, 1946; the variance is that of two-way
    clustering, Cameron et al., JBES 2011). Resampling both factors instead covers 90 to 100 % at nominal 95 % (see
    results/coverage.md).
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
    means: Sequence[float], matrix: np.ndarray | None = None, shares_of: int | Sequence[int] | None = None
) -> Interval | None:
    """Return the interval that the number of seeds supports, for two seeds or more.

    For two to four seeds this is Student's t on the seed means, which covers other seeds with *these* images. From
    `MANY` seeds on it is `crossed` over `matrix` (seeds, images), if there are per-image values, which also covers
    other images.

    Shares of hits, of `shares_of` images in each run, get at least Wilson's interval for the hits of all runs together,
    for the same number of trials: on either side the wider end counts. A few seeds may agree by chance, and Student's t
    would then claim certainty although the hits were drawn one by one. If seeds really differ, t on their means is the
    wider one. This is Wilson's interval with an estimated design effect of the seeds that is never below 1 (Kish,
    Survey Sampling, 1965; Korn and Graubard, Survey Methodology, 1998, 24:193-201, truncate it likewise). Rows with as
    many runs and images are then ordered: seeds that agree never get a wider interval than others with as many hits in
    total, and no row gets a wider one for being perfect. If the interval covers other images, a share's interval
    reaches at least three divided by the number of images from either end, even if all seeds hit them all: the rule of
    three (Hanley and Lippman-Hand, JAMA, 1983). In simulations the intervals cover 93.7 to 99.8 % of what they claim
    (see results/coverage.md).
    """
    hits = None if shares_of is None else pooled_hits(means, shares_of)
    pooled = None if hits is None else wilson(*hits)
    if matrix is None or len(means) < MANY:
        return wider(t_interval(means), pooled)
    mean, least = float(np.mean(means)), 3 / max(1, matrix.shape[1])
    return wider(crossed(matrix), None if pooled is None else wider(pooled, (mean - least, mean + least)))


def pooled_hits(means: Sequence[float], shares_of: int | Sequence[int]) -> tuple[int, int] | None:
    """Hits and images of all runs together. None if the means are not shares of that many images.

    Means of probabilities are not shares, although they are between 0 and 1. If they are all equal, they count as hits.
    """
    counts = [shares_of] * len(means) if isinstance(shares_of, int) else list(shares_of)
    hits = [mean * n for mean, n in zip(means, counts, strict=True)]
    whole = all(abs(found - round(found)) <= 1e-6 * max(1, n) for found, n in zip(hits, counts, strict=True))
    if not whole and not equal(means):
        return None
    return (sum(map(round, hits)), sum(counts)) if sum(counts) else None


def equal(values: Sequence[float] | np.ndarray) -> bool:
    """Whether values are equal up to rounding."""
    values = np.asarray(values, dtype=float)
    return bool(np.ptp(values) <= ROUNDING * max(1.0, float(np.abs(values).max())))


def wider(a: Interval | None, b: Interval | None) -> Interval | None:
    """The smallest interval that contains both; the other one if one is unknown."""
    if a is None or b is None:
        return a or b
    return min(a[0], b[0]), max(a[1], b[1])


def clip_interval(interval: Interval | None, least: float | None, most: float | None) -> Interval | None:
    """Clip an interval to the range of possible values. A bound of None does not clip."""
    if interval is None:
        return None
    low, high = interval
    return low if least is None else max(least, low), high if most is None else min(most, high)


Estimated = tuple[float, Interval | None]
"""A value and its interval."""


def difference(a: Estimated, b: Estimated) -> Interval | None:
    """Interval for a - b from the intervals of both (Newcombe's method 10, Statistics in Medicine, 1998, for
    proportions).

    The two are treated as independent; if they share noise, the interval is wider than necessary. None if either
    interval is missing.
    """
    (p, first), (q, second) = a, b
    if first is None or second is None:
        return None
    low = math.hypot(p - first[0], second[1] - q)
    high = math.hypot(first[1] - p, q - second[0])
    return p - q - low, p - q + high


def paired_shares(a: np.ndarray, b: np.ndarray) -> Interval | None:
    """Interval for the difference of two shares of hits on the same images (n,), none missing. None for n = 0.

    Newcombe, Statistics in Medicine, 1998, 17:2635-2650, method 10: Wilson's intervals of both shares, squared and
    added with the correlation phi, whose numerator is moved towards 0 by n / 2 if it is positive.
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
    """Interval for mean(a) - mean(b) of one run each, from values (I,) on the same images. NaN means missing.

    Hits (0 and 1) get `paired_shares`, other values Student's t on the differences.
    """
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    return paired_shares(a, b) if binary(a) and binary(b) else t_interval(a - b)


def binary(values: np.ndarray) -> bool:
    """Whether all values are hits: 0, 1 or missing (NaN)."""
    return bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())


def over_pairs(
    a: Sequence[float], b: Sequence[float], images: tuple[np.ndarray, np.ndarray] | None = None
) -> Interval | None:
    """Return the interval for the mean of a - b over runs that are paired by seed, one or more.

    `images` are the values of both, (S runs, I shared images), NaN where missing. One run gets `paired_images`, or None
    without images. More get `over_seeds` on the differences; hits get at least `paired_shares` of all runs' images
    together, as `over_seeds` has at least Wilson's interval. Differences that are all equal say nothing about other
    seeds: then the images of all runs are used alone, and the result is None without them.
    """
    gaps = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    pooled = None if images is None or not len(gaps) else paired_images(images[0].ravel(), images[1].ravel())
    if len(gaps) < 2 or equal(gaps):
        return pooled
    if images is None:
        return over_seeds(list(gaps))
    apart = images[0] - images[1]
    spread = over_seeds(list(gaps), apart[:, ~np.isnan(apart).any(axis=0)])
    return wider(spread, pooled) if binary(images[0]) and binary(images[1]) else spread


Matrices = tuple[np.ndarray, np.ndarray]
"""The values of both sides."""


def paired_p(
    a: Sequence[float], b: Sequence[float], images: Matrices | Callable[[], Matrices | None] | None = None
) -> float | None:
    """Return the two-sided p of a - b over runs that are paired by seed. Every table takes its p from here.

    `images` are the values of both, (S runs, I shared images), NaN where missing, or a function that reads them when
    needed; those of the first run are enough. If the differences vary over runs, this is the paired t-test over runs.
    One run, or differences that are all equal, say nothing about their variation: then it is a test within the first
    run, exact McNemar for hits and the paired t-test over images for other values, or None without images.
    """
    gaps = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if len(gaps) > 1 and not equal(gaps):
        return paired_t(a, b)
    images = images() if callable(images) and len(gaps) else images
    if images is None or callable(images):
        return None
    first, second = images[0][0], images[1][0]
    known = ~(np.isnan(first) | np.isnan(second))
    first, second = first[known], second[known]
    return mcnemar(first, second) if binary(first) and binary(second) else paired_t(first, second)


def mcnemar(a: np.ndarray, b: np.ndarray) -> float | None:
    """Exact two-sided p of McNemar's test (1947) for two methods' hits on the same images. None without a pair.

    Pairs with a missing value do not count.
    """
    both = ~(np.isnan(a) | np.isnan(b))
    if not both.any():
        return None
    from scipy.stats import binomtest

    only_a, only_b = int((a[both] > b[both]).sum()), int((a[both] < b[both]).sum())
    return 1.0 if only_a + only_b == 0 else float(binomtest(only_a, only_a + only_b).pvalue)


def paired_t(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float | None:
    """Two-sided p of the paired t-test.

    None for fewer than two pairs, or if differences do not vary; differences that are all 0 give 1.
    """
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if len(difference) < 2:
        return None
    if equal(difference):
        return 1.0 if abs(difference).max() <= ROUNDING else None
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(difference, 0).pvalue)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Adjust p values by Holm's step-down method (1979). The order stays; missing values are ignored."""
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
    """Return the position of a value between two anchors (0 and 1), never clipped, or why there is none.

    Anchors are means with their intervals, which must not overlap.
    """
    if value is None or zero[0] is None or one[0] is None:
        return None, "no value" if value is None else "an anchor was not measured"
    low, high = sorted([zero, one], key=lambda anchor: anchor[0] or 0.0)
    if low[1] is None or high[1] is None or low[1][1] >= high[1][0]:
        return None, "the anchors are not clear of each other"
    return (value - zero[0]) / (one[0] - zero[0]), None


# ---- many comparisons ----------------------------------------------------------------------------------------------


def simultaneous(comparisons: int) -> float:
    """The level of each of so many intervals that all of them together hold with 95 % (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(1, comparisons)


def wilson_at(share: float, trials: float, level: float) -> Interval:
    """`wilson` at any level, for a number of trials that need not be whole, such as an effective one."""
    from scipy.stats import norm

    z2 = float(norm.ppf((1 + level) / 2)) ** 2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def t_at(values: Sequence[float], level: float) -> Interval | None:
    """`t_interval` at any level."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * sd / math.sqrt(len(values))
    return mean - half, mean + half


def shares_at(runs: Sequence[tuple[float, int]], level: float) -> Interval | None:
    """The interval of `over_seeds` for the mean share of hits of one run or more, at any level.

    `runs` are shares and numbers of trials. None without trials.
    """
    shares, trials = [share for share, _ in runs], sum(count for _, count in runs)
    if not trials:
        return None
    return clip_interval(wider(t_at(shares, level), wilson_at(sum(shares) / len(shares), trials, level)), 0.0, 1.0)


def over_targets(hits: np.ndarray, level: float) -> Interval | None:
    """Interval for the share of hits over other targets, from `hits` (R runs, T shared targets), NaN where missing.

    It is Wilson's for the effective number of trials: all trials, divided by the design effect of the targets (Kish,
    Survey Sampling, 1965), between the number of targets and that of trials. A target that one run hits is often hit by
    the others too, so that three runs tell less than three times as many targets would. Hits that are all equal show no
    variance to estimate this from, and then count as one run's. None if nothing is known.
    """
    known = ~np.isnan(hits)
    columns = known.any(axis=0)
    if not columns.any():
        return None
    targets, trials = int(columns.sum()), int(known.sum())
    share = float(np.nanmean(hits))
    by_target = np.nanmean(hits[:, columns], axis=0)
    variance = float(by_target.var(ddof=1)) / targets if targets > 1 else 0.0
    certain = targets if share in (0.0, 1.0) else trials
    effective = share * (1 - share) / variance if variance > 0 else certain
    return wilson_at(share, min(max(effective, targets), trials), level)


def ratio(a: Estimated, b: Estimated) -> Interval | None:
    """Interval for a / b of two independent estimates, neither below 0, from the intervals of both; it may end in inf.

    MOVER-R (Donner and Zou, Statistical Methods in Medical Research, 2012), the counterpart for ratios of Newcombe's
    `difference`. None if either interval is missing, or b is 0.
    """
    (p, first), (q, second) = a, b
    if first is None or second is None or q <= 0:
        return None

    def root(x: float, y: float) -> float:
        return p * q + math.sqrt(max((p * q) ** 2 - x * y, 0.0))

    least = first[0] * (2 * p - first[0])
    low = least / root(least, second[1] * (2 * q - second[1])) if least > 0 else 0.0
    most, divisor = first[1] * (2 * p - first[1]), second[0] * (2 * q - second[0])
    return low, root(most, divisor) / divisor if divisor > 0 else math.inf


def share_of_ceiling(a: Estimated, floor: Estimated) -> Interval | None:
    """Interval for (a - floor) / (1 - floor) of two shares: 1 minus the `ratio` of what both leave up to 1."""

    def rest(one: Estimated) -> Estimated:
        return 1 - one[0], None if one[1] is None else (1 - one[1][1], 1 - one[1][0])

    found = ratio(rest(a), rest(floor))
    return None if found is None else (1 - found[1], 1 - found[0])


def rank_intervals(intervals: Sequence[Interval | None]) -> list[tuple[int, int] | None]:
    """First and last rank that each of some values may have, the lowest value being the first.

    A value is surely better than another if its interval ends below the other's. If the intervals hold together with
    95 %, so do all ranks (Klein, Wright and Wieczorek, Journal of the Royal Statistical Society C, 2020). A value
    without an interval is not surely better or worse than any, and has no ranks.
    """
    found: list[tuple[int, int] | None] = []
    for own in intervals:
        if own is None:
            found.append(None)
            continue
        better = sum(other is not None and other[1] < own[0] for other in intervals)
        worse = sum(other is not None and other[0] > own[1] for other in intervals)
        found.append((1 + better, len(intervals) - worse))
    return found


def whole_percents(shares: Sequence[float]) -> list[int]:
    """Shares of one whole as whole percents that add up as they do: what is left goes to the largest remainders."""
    exact = [100 * share for share in shares]
    found = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: found[i] - exact[i])
    for i in by_remainder[: round(sum(exact)) - sum(found)]:
        found[i] += 1
    return found
