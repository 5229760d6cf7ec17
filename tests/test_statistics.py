"""Intervals against formulas, published values, scipy and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from unlearnbench.statistics import block_jackknife, t_interval, wilson


def wilson_by_hand(hits, n, z=1.959963984540054):
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 10), (10, 10), (5, 10), (249, 250), (81, 263), (1, 450)])
def test_wilson_is_its_formula(hits, n):
    assert wilson(hits, n) == pytest.approx(wilson_by_hand(hits, n), abs=1e-9)


@pytest.mark.parametrize(
    ("hits", "n", "published"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_gives_the_values_of_newcombe_1998_table_1(hits, n, published):
    assert wilson(hits, n) == pytest.approx(published, abs=6e-5)


def test_wilson_stays_within_bounds_and_holds_the_share():
    for n in (1, 2, 7, 250):
        for hits in range(n + 1):
            low, high = wilson(hits, n)
            assert -1e-12 <= low <= hits / n + 1e-12 and hits / n - 1e-12 <= high <= 1 + 1e-12 and low < high


def test_wilson_of_nothing_is_unknown():
    assert wilson(0, 0) is None


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_t_interval_is_scipys(n):
    values = np.random.default_rng(n).normal(3, 2, n)
    expected = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert t_interval(values) == pytest.approx(expected, rel=1e-9)
    assert t_interval(values.tolist()) == t_interval(values)


def test_t_interval_by_hand():
    half = 4.302652729749462 * 1 / math.sqrt(3)  # t(0.975, 2); the deviation of 1, 2, 3 is 1
    assert t_interval([1, 2, 3]) == pytest.approx((2 - half, 2 + half))
    assert t_interval([5.0, 5.0]) == (5.0, 5.0)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_t_interval_of_fewer_than_two_is_unknown(values):
    assert t_interval(values) is None


@pytest.mark.parametrize(("n", "blocks"), [(100, 10), (450, 10), (60, 5)])
def test_jackknife_of_a_mean_is_the_t_interval_of_block_means(n, blocks):
    values = np.random.default_rng(0).normal(size=n)
    found = block_jackknife(lambda kept: float(values[kept].mean()), n, blocks)
    means = np.array([values[np.arange(n) % blocks == block].mean() for block in range(blocks)])
    assert found == pytest.approx(t_interval(means), rel=1e-9)
    assert sum(found) / 2 == pytest.approx(values.mean())


def test_jackknife_leaves_out_every_index_once_and_interleaved():
    kept = []
    block_jackknife(lambda index: kept.append(index.tolist()) or 0.0, 23)
    left_out = [sorted(set(range(23)) - set(index)) for index in kept]
    blocks = [[b, b + 10, b + 20] if b < 3 else [b, b + 10] for b in range(10)]
    assert sorted(left_out) == sorted([*blocks, []])  # and once with nothing left out


def test_jackknife_of_a_constant_has_no_width():
    assert block_jackknife(lambda kept: 4.0, 50) == (4.0, 4.0)


@pytest.mark.parametrize(
    ("statistic", "truth"),
    [(np.mean, 0.0), (lambda x: x.var(ddof=1), 1.0), (lambda x: np.exp(x.mean()), 1.0)],
    ids=["mean", "variance", "exponential"],
)
def test_jackknife_covers_the_truth_about_as_often_as_it_says(statistic, truth):
    samples = np.random.default_rng(1).normal(size=(500, 200))
    intervals = [block_jackknife(lambda kept, x=x: float(statistic(x[kept])), len(x)) for x in samples]
    assert 0.92 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.98


@pytest.mark.parametrize(("n", "blocks"), [(0, 10), (1, 10), (19, 10), (9, 5)])
def test_jackknife_of_too_few_is_unknown_and_asks_for_nothing(n, blocks):
    assert block_jackknife(lambda kept: pytest.fail("asked"), n, blocks) is None
    assert block_jackknife(lambda kept: 1.0, 2 * blocks, blocks) is not None
