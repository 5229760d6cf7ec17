"""Intervals against formulas, published values, scipy and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tests.studies.simulation import CLAIMED, World, coverage, drawn
from unlearnbench.statistics import (
    MANY,
    anchored,
    binary,
    block_jackknife,
    clip_interval,
    crossed,
    difference,
    equal,
    holm,
    mcnemar,
    over_pairs,
    over_seeds,
    over_targets,
    paired_images,
    paired_p,
    paired_shares,
    paired_t,
    pooled_hits,
    rank_intervals,
    ratio,
    share_of_ceiling,
    shares_at,
    simultaneous,
    t_at,
    t_interval,
    whole_percents,
    wider,
    wilson,
    wilson_at,
)


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


def test_crossed_is_the_analysis_of_variance_by_hand():
    values = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    # means 1/2; by seed 1/3, 2/3; by image 1, 1/2, 0; squared rest 1/36 (4 x) and 1/9 (2 x): 1/3 over 2 degrees
    v_seeds, v_images, v_rest = (1 / 18) / 2, (1 / 4) / 3, (1 / 3 / 2) / 6
    variance = v_seeds + v_images - v_rest
    degrees = variance**2 / (v_seeds**2 + v_images**2 / 2 + v_rest**2 / 2)
    half = stats.t.ppf(0.975, max(1, degrees)) * math.sqrt(variance)
    assert crossed(values) == pytest.approx((0.5 - half, 0.5 + half))


def test_crossed_is_never_narrower_for_correlated_images():
    rng = np.random.default_rng(0)
    shared = np.repeat(rng.integers(0, 2, size=(1, 200)), 8, axis=0).astype(float)
    low, high = crossed(shared)
    assert t_interval(shared.mean(axis=1)) == pytest.approx((shared.mean(),) * 2), "seed means know nothing of images"
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 199) * shared[0].std(ddof=1) / math.sqrt(200), rel=1e-6)


def test_crossed_of_one_seed_or_one_image_is_unknown():
    assert crossed(np.ones((1, 9))) is None
    assert crossed(np.ones((9, 1))) is None
    assert crossed(np.ones((3, 3))) == (1.0, 1.0)


def test_the_number_of_seeds_decides_the_rule():
    rng = np.random.default_rng(0)
    hits = (rng.random((MANY, 50)) < rng.random((1, 50))).astype(float)
    means = hits.mean(axis=1)
    assert over_seeds(means[:-1], hits[:-1], 50) == wider(t_interval(means[:-1]), wilson(int(hits[:-1].sum()), 200))
    least = (means.mean() - 3 / 50, means.mean() + 3 / 50)
    expected = wider(wider(crossed(hits), wilson(int(hits.sum()), 250)), least)
    assert over_seeds(means, hits, 50) == pytest.approx(expected) != t_interval(means)
    assert over_seeds(means, hits) == crossed(hits), "of values that are no hits, nothing is known but their spread"
    assert over_seeds(means) == t_interval(means), "without per-image values there is nothing to cross"


def test_intervals_stay_where_values_can_be():
    assert clip_interval((-0.1, 1.2), 0.0, 1.0) == (0.0, 1.0)
    assert clip_interval((-0.1, 1.2), 0.0, None) == (0.0, 1.2)
    assert clip_interval((-0.1, 1.2), None, None) == (-0.1, 1.2)
    assert clip_interval((0.2, 0.3), 0.0, 1.0) == (0.2, 0.3)
    assert clip_interval(None, 0.0, 1.0) is None


def test_shares_without_spread_do_not_prove_certainty():
    assert over_seeds([1.0] * 3, None, 250) == wilson(750, 750)
    assert over_seeds([1.0] * 3, None, [250, 200, 250]) == wilson(700, 700), "runs that miss images count fewer"
    assert over_seeds([0.5] * 7, None, 10) == wilson(35, 70)
    assert over_seeds([2.0] * 3) == (2.0, 2.0), "a number that is no share may be without spread"


@pytest.mark.parametrize("world", [w for w in CLAIMED if w.share == 0.8], ids=str)
def test_intervals_cover_what_they_claim(world):
    here, other = coverage(world, 750)
    assert (here if world.seeds < MANY else other) >= 0.93


@pytest.mark.parametrize("world", [w for w in CLAIMED if w.share == 0.8 and w.seed_sd], ids=str)
def test_intervals_that_cover_more_than_they_claim_are_hardly_wider_for_it(world):
    rng = np.random.default_rng(0)
    widths = []
    for _ in range(300):
        drawn_hits, _ = drawn(world, rng)
        means = drawn_hits.mean(axis=1)
        plain = t_interval(means) if world.seeds < MANY else crossed(drawn_hits)
        whole = over_seeds(means.tolist(), drawn_hits, drawn_hits.shape[1])
        widths.append([whole[1] - whole[0], plain[1] - plain[0]])
    mine, theirs = np.mean(widths, axis=0)
    assert theirs <= mine <= 1.15 * theirs


def test_three_seeds_do_not_cover_other_images_and_claim_nothing_of_them():
    assert coverage(World(3, 0.8, 0.0, 6.0), 800)[1] < 0.93


def rows_of_hits(n, seeds):
    """Hits of every run, in every way that matters: the order of runs does not."""
    return itertools.combinations_with_replacement(range(n + 1), seeds)


@pytest.mark.parametrize(("n", "seeds"), [(12, 2), (12, 3), (9, 4), (5, 6)])
def test_bounds_rise_with_the_hits_and_seeds_that_agree_are_never_the_less_sure(n, seeds):
    def interval(hits):
        return over_seeds([hit / n for hit in hits], None, n)

    found = {hits: interval(hits) for hits in rows_of_hits(n, seeds)}
    width = {hits: high - low for hits, (low, high) in found.items()}
    for hits, (low, high) in found.items():
        assert low <= sum(hits) / n / seeds <= high
        if max(hits) < n:
            better = found[tuple(hit + 1 for hit in hits)]
            assert better[0] > low and better[1] > high, hits
        for perfect in ((0,) * seeds, (n,) * seeds):
            assert width[perfect] <= width[hits] + 1e-12, "no row is less sure for being perfect"
        if len(set(hits)) > 1 and sum(hits) % seeds == 0:
            assert width[(sum(hits) // seeds,) * seeds] <= width[hits] + 1e-12, hits


def test_a_perfect_row_is_no_wider_than_one_that_misses_an_image_of_other_images_too():
    perfect = np.ones((MANY, 250))
    missed, never = perfect.copy(), perfect.copy()
    missed[0, 0], never[:, 0] = 0, 0
    widths = []
    for hits in (perfect, missed, never):
        low, high = clip_interval(over_seeds(hits.mean(axis=1).tolist(), hits, 250), 0, 1)
        widths.append(high - low)
    assert widths[0] == pytest.approx(3 / 250), "the rule of three"
    assert widths == sorted(widths)


def test_equal_up_to_rounding():
    assert equal([0.9 - 0.3, 0.7 - 0.1, 0.8 - 0.2])
    assert not equal([0.6, 0.6 + 1 / 4000])


def test_means_of_probabilities_are_no_hits():
    assert pooled_hits([0.5, 0.25], 4) == (3, 8)
    assert pooled_hits([0.5, 0.26], 4) is None
    assert over_seeds([0.5, 0.26, 0.3], None, 4) == t_interval([0.5, 0.26, 0.3])


@pytest.mark.slow  # minutes: every world of results/coverage.md
@pytest.mark.parametrize("world", CLAIMED, ids=str)
def test_intervals_cover_what_they_claim_everywhere(world):
    here, other = coverage(world, 4000)
    assert (here if world.seeds < MANY else other) >= 0.93


def hits(text):
    return np.array([math.nan if c == "-" else float(c) for c in text])


def test_mcnemar_counts_pairs_that_differ():
    a, b = hits("1" * 9 + "0" * 1 + "11000"), hits("0" * 9 + "1" * 1 + "11000")
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(1, 10).pvalue) == pytest.approx(22 / 1024)
    assert mcnemar(b, a) == mcnemar(a, b)
    assert mcnemar(hits("0110"), hits("0110")) == 1.0


def test_mcnemar_leaves_out_what_is_missing():
    assert mcnemar(hits("1-1"), hits("00-")) == mcnemar(hits("1"), hits("0")) == 1.0
    assert mcnemar(hits("--"), hits("01")) is None


def test_paired_t_is_scipys():
    a, b = [0.9, 0.8, 0.95], [0.7, 0.75, 0.9]
    assert paired_t(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_t([0.5], [0.4]) is None
    assert paired_t([0.5, 0.6], [0.5, 0.6]) == 1.0
    assert paired_t([1.0, 1.0], [0.5, 0.5]) is None, "a gap without spread says nothing of how much it varies"
    assert paired_t([0.9, 0.7, 0.8], [0.3, 0.1, 0.2]) is None, "nor does one that rounding alone makes vary"


def test_p_is_of_runs_where_they_vary_and_else_of_images():
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, 3, 40)) < np.array([0.8, 0.4])[:, None, None]).astype(float)
    varied = paired_p([0.9, 0.8, 0.95], [0.7, 0.75, 0.9], (a, b))
    assert varied == pytest.approx(stats.ttest_rel([0.9, 0.8, 0.95], [0.7, 0.75, 0.9]).pvalue)
    assert paired_p([0.9], [0.5], (a, b)) == mcnemar(a[0], b[0])
    assert paired_p([0.9, 0.7, 0.8], [0.3, 0.1, 0.2], (a, b)) == mcnemar(a[0], b[0]) > 0
    assert paired_p([0.9, 0.7], [0.3, 0.1], lambda: (a, b)) == mcnemar(a[0], b[0])
    soft = a + rng.normal(0, 0.1, a.shape)
    assert paired_p([0.9], [0.5], (soft, b)) == pytest.approx(stats.ttest_rel(soft[0], b[0]).pvalue)
    assert paired_p([0.9] * 3, [0.5] * 3) is paired_p([0.9], [0.5]) is paired_p([], []) is None
    assert paired_p([0.9, 0.8], [0.5, 0.5], lambda: pytest.fail("not needed")) is not None


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1, never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_anchored_is_linear_and_not_clipped():
    zero, one = (0.1, (0.05, 0.15)), (0.9, (0.85, 0.95))
    for value, expected in ((0.1, 0), (0.9, 1), (0.5, 0.5), (0.0, -0.125), (1.0, 1.125)):
        assert anchored(value, zero, one) == (pytest.approx(expected), None)
    assert anchored(0.7, one, zero)[0] == pytest.approx(0.25), "zero may lie above one"


@pytest.mark.parametrize(
    ("value", "zero", "one", "reason"),
    [
        (None, (0.1, (0.0, 0.2)), (0.9, (0.8, 1.0)), "no value"),
        (0.5, (None, None), (0.9, (0.8, 1.0)), "an anchor was not measured"),
        (0.5, (0.4, (0.2, 0.6)), (0.7, (0.5, 0.9)), "the anchors are not clear of each other"),
        (0.5, (0.7, (0.5, 0.9)), (0.4, (0.2, 0.6)), "the anchors are not clear of each other"),
        (0.5, (0.4, None), (0.9, (0.8, 1.0)), "the anchors are not clear of each other"),
    ],
)
def test_without_a_clear_gap_there_is_no_score(value, zero, one, reason):
    assert anchored(value, zero, one) == (None, reason)


def table(both, only_a, only_b, neither):
    """Hits of two methods on the same images, from the four counts of how they agree."""
    a = [1] * (both + only_a) + [0] * (only_b + neither)
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return np.array(a, dtype=float), np.array(b, dtype=float)


def newcombe_by_hand(both, only_a, only_b, neither):
    """Method 10 of Statistics in Medicine 17:2635-2650, by its terms."""
    n = both + only_a + only_b + neither
    p, q = (both + only_a) / n, (both + only_b) / n
    (l1, u1), (l2, u2) = wilson_by_hand(both + only_a, n), wilson_by_hand(both + only_b, n)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    numerator = both * neither - only_a * only_b
    phi = 0 if not margins else (max(numerator - n / 2, 0) if numerator > 0 else numerator) / math.sqrt(margins)
    low = math.sqrt((p - l1) ** 2 - 2 * phi * (p - l1) * (u2 - q) + (u2 - q) ** 2)
    high = math.sqrt((u1 - p) ** 2 - 2 * phi * (u1 - p) * (q - l2) + (q - l2) ** 2)
    return p - q - low, p - q + high


def test_paired_shares_give_the_interval_published_for_cavo_2012():
    # Fagerland, Lydersen & Laake, Statistical Analysis of Contingency Tables, chapter 8: Newcombe square-and-add
    a, b = table(59, 6, 16, 80)
    assert paired_shares(a, b) == pytest.approx((-0.1186, -0.0046), abs=6e-5)
    assert mcnemar(a, b) == pytest.approx(0.052479, abs=6e-7), "their exact conditional test of the same table"


TABLES = [(59, 6, 16, 80), (14, 5, 0, 22), (0, 5, 7, 0), (0, 0, 0, 9), (9, 0, 0, 0), (0, 9, 0, 0), (30, 1, 1, 30)]


@pytest.mark.parametrize("counts", TABLES)
def test_paired_shares_are_their_formula_symmetric_and_within_bounds(counts):
    a, b = table(*counts)
    low, high = paired_shares(a, b)
    assert (low, high) == pytest.approx(newcombe_by_hand(*counts), abs=1e-9)
    assert paired_shares(b, a) == pytest.approx((-high, -low))
    assert -1 <= low <= a.mean() - b.mean() <= high <= 1


def test_paired_shares_without_correlation_are_those_of_independent_runs():
    a, b = table(4, 4, 4, 4)
    independent = difference((0.5, wilson(8, 16)), (0.5, wilson(8, 16)))
    assert paired_shares(a, b) == pytest.approx(independent)
    low, high = paired_shares(*table(8, 0, 0, 8))
    assert high - low < independent[1] - independent[0], "shares that agree image by image are told apart better"


@pytest.mark.parametrize(("p", "q", "shared"), [(0.9, 0.8, 0.0), (0.9, 0.8, 0.7), (0.98, 0.95, 0.5), (0.5, 0.5, 0.9)])
def test_paired_shares_cover_the_true_difference_about_as_often_as_they_say(p, q, shared):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1500):
        same = rng.random(100) < shared
        first = rng.random(100)
        second = np.where(same, first, rng.random(100))
        low, high = paired_shares((first < p).astype(float), (second < q).astype(float))
        covered += low <= p - q <= high
    assert 0.935 <= covered / 1500 <= 0.99


def test_paired_images_leave_out_what_is_missing_and_take_other_values_by_t():
    assert paired_images(hits("11-01"), hits("1-001")) == paired_shares(hits("101"), hits("101"))
    a, b = np.array([0.1, 0.5, 0.9, math.nan]), np.array([0.0, 0.7, 0.2, 0.4])
    expected = stats.ttest_rel(a[:3], b[:3]).confidence_interval(0.95)
    assert paired_images(a, b) == pytest.approx((expected.low, expected.high))
    assert paired_images(hits("--"), hits("01")) is None


def test_hits_are_told_from_other_values():
    assert binary(hits("01-1"))
    assert not binary(np.array([0.0, 0.5]))


def test_paired_runs_get_the_interval_that_their_number_allows():
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, MANY, 60)) < np.array([0.8, 0.6])[:, None, None]).astype(float)
    means = a.mean(axis=1), b.mean(axis=1)

    def over(count, with_images=True):
        chosen = [values[:count] for values in means]
        return over_pairs(*chosen, (a[:count], b[:count]) if with_images else None)

    assert over(1) == paired_shares(a[0], b[0])
    assert over(1, with_images=False) is None, "nothing to be had from one difference"
    seeds = t_interval(means[0][:3] - means[1][:3])
    assert over(3, with_images=False) == pytest.approx(seeds)
    assert over(3) == pytest.approx(wider(seeds, paired_shares(a[:3].ravel(), b[:3].ravel())))
    assert over(MANY) == pytest.approx(wider(crossed(a - b), paired_shares(a.ravel(), b.ravel())))
    assert over(MANY, with_images=False) == pytest.approx(t_interval(means[0] - means[1]))
    lost = a.copy()
    lost[1, 5] = math.nan
    images = paired_images(lost.ravel(), b.ravel())
    assert over_pairs(*means, (lost, b)) == pytest.approx(wider(crossed(np.delete(a - b, 5, axis=1)), images))


def test_equal_differences_do_not_prove_certainty():
    a, b = np.ones((3, 40)), np.zeros((3, 40))
    assert over_pairs([1.0] * 3, [0.0] * 3, (a, b)) == paired_shares(a.ravel(), b.ravel())
    assert over_pairs([1.0] * 3, [0.0] * 3) is None
    assert over_pairs([], []) is None


# ---- many comparisons ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (81, 263)])
def test_wilson_at_95_percent_is_wilson_and_wider_at_higher_levels(hits, n):
    assert wilson_at(hits / n, n, 0.95) == pytest.approx(wilson(hits, n), abs=1e-9)
    low, high = wilson_at(hits / n, n, 0.999)
    assert low <= wilson(hits, n)[0] and high >= wilson(hits, n)[1] and high - low > np.ptp(wilson(hits, n))


def test_t_at_95_percent_is_the_t_interval():
    values = [0.2, 0.5, 0.4]
    assert t_at(values, 0.95) == pytest.approx(t_interval(values))
    assert t_at(values, 0.99) == pytest.approx(stats.t.interval(0.99, 2, np.mean(values), stats.sem(values)))
    assert t_at(values[:1], 0.95) is None


def test_so_many_intervals_hold_together():
    assert simultaneous(1) == simultaneous(0) == pytest.approx(0.95)
    assert simultaneous(10) == pytest.approx(0.995)


def test_shares_of_one_run_get_wilson_and_of_several_what_over_seeds_gives():
    assert shares_at([(0.9, 250)], 0.95) == pytest.approx(wilson(225, 250))
    assert shares_at([(0.9, 50), (0.5, 50), (0.7, 50)], 0.95) == pytest.approx(
        clip_interval(over_seeds([0.9, 0.5, 0.7], None, 50), 0, 1)
    )
    assert shares_at([], 0.95) is None


def test_runs_with_equal_hits_tell_no_more_of_other_targets_than_one():
    row = np.array([1.0] * 12 + [0.0] * 28)
    assert over_targets(np.stack([row] * 3), 0.95) == pytest.approx(wilson(12, 40), abs=1e-9)
    assert over_targets(np.zeros((3, 40)), 0.95) == pytest.approx(wilson(0, 40), abs=1e-9)
    apart = np.stack([np.roll(row, 13 * shift) for shift in range(3)])  # each target is hit by one run or none
    assert over_targets(apart, 0.95) == pytest.approx(wilson(36, 120), abs=1e-9)
    assert over_targets(np.full((2, 3), math.nan), 0.95) is None


def test_over_targets_covers_the_share_of_other_targets():
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        easy = rng.beta(0.5, 1.0, size=40)
        low, high = over_targets((rng.random((3, 40)) < easy).astype(float), 0.95)
        held.append(low <= 1 / 3 <= high)
    assert np.mean(held) >= 0.93


def test_a_ratio_of_symmetric_intervals_has_fiellers_interval():
    a, da, b, db = 0.6, 0.15, 0.8, 0.1
    fieller = np.roots([b**2 - db**2, -2 * a * b, a**2 - da**2])
    assert ratio((a, (a - da, a + da)), (b, (b - db, b + db))) == pytest.approx(sorted(fieller))


def test_a_ratio_of_nothing_or_by_what_may_be_nothing():
    low, high = ratio((0.0, (0.0, 0.2)), (0.5, (0.4, 0.6)))
    assert low == 0 and 0 < high < 0.6
    assert ratio((0.5, (0.4, 0.6)), (0.1, (0.0, 0.3)))[1] == math.inf
    assert ratio((0.5, (0.4, 0.6)), (0.0, (0.0, 0.3))) is None
    assert ratio((0.5, None), (0.5, (0.4, 0.6))) is None


def test_a_share_of_the_ceiling_covers_the_truth():
    rng, held = np.random.default_rng(0), []
    for _ in range(1000):
        own, floor = rng.binomial(60, 0.6), rng.binomial(60, 0.3)
        low, high = share_of_ceiling((own / 60, wilson(own, 60)), (floor / 60, wilson(floor, 60)))
        held.append(low <= (0.6 - 0.3) / 0.7 <= high)
    assert np.mean(held) >= 0.93
    low, high = share_of_ceiling((1.0, wilson(60, 60)), (0.3, wilson(18, 60)))
    assert 0.8 < low < high == 1.0


def test_ranks_are_those_that_intervals_leave_open():
    spans = [(0.0, 0.1), (0.05, 0.2), (0.15, 0.3), None, (0.9, 1.0)]
    assert rank_intervals(spans) == [(1, 3), (1, 4), (2, 4), None, (4, 5)]


def test_intervals_of_ranks_hold_the_true_ranks_of_all_together():
    truth, rng, held = np.array([0.2, 0.2, 0.5, 0.55, 0.9]), np.random.default_rng(0), []
    for _ in range(300):
        shares = rng.binomial(100, truth) / 100
        found = rank_intervals([wilson_at(share, 100, simultaneous(5)) for share in shares])
        least, most = (truth[:, None] > truth).sum(axis=1) + 1, (truth[:, None] >= truth).sum(axis=1)
        held.append(all(low <= a and high >= b for (low, high), a, b in zip(found, least, most, strict=True)))
    assert np.mean(held) >= 0.95


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.004, 0.994, 0.002), [0, 100, 0]),
        ((1 / 3, 1 / 3, 1 / 3), [34, 33, 33]),
        ((0.005, 0.99, 0.005), [1, 99, 0]),
        ((0.29, 0.57, 0.14), [29, 57, 14]),
        ((0.0, 1.0, 0.0), [0, 100, 0]),
    ],
)
def test_whole_percents_add_up_to_a_hundred(shares, expected):
    assert whole_percents(shares) == expected
