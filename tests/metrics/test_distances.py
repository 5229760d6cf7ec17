"""FID, KID, precision and recall against closed forms, kernels written out and sets laid out by hand."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from tests.support.tiny_outcome import outcome
from unlearnbench import registry
from unlearnbench.statistics import block_jackknife, wilson
from unlearnbench.tasks.digits_class import DigitsClass, splits, to_uint8

METRICS = registry.load_metrics()
DISTANCES = ("fid", "kid", "precision", "recall")


def measure(name, generated, real, k=3):
    features, reference = (torch.as_tensor(np.asarray(side), dtype=torch.float32) for side in (generated, real))
    return METRICS[name].measure(outcome(features=features, reference=reference, k=k))


def cloud(n, d=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def exactly(n, mean, covariance, seed=0):
    """Points whose own mean and covariance are these."""
    x = cloud(n, len(mean), seed)
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


# ---- FID -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 1.0, 5.0])
def test_fid_of_two_gaussians_in_closed_form(shift):
    a, b = cloud(4, 4, 1), cloud(4, 4, 2)
    one, other = a @ a.T + np.eye(4), b @ b.T + np.eye(4)
    root = sqrtm(sqrtm(one) @ other @ sqrtm(one)).real
    expected = 4 * shift**2 + np.trace(one + other - 2 * root)
    score = measure("fid", exactly(300, np.full(4, shift), one), exactly(300, np.zeros(4), other, seed=3))
    assert score.value == pytest.approx(expected, rel=1e-4)
    assert score.n == 300 and score.missing == 0


def test_fid_of_samples_comes_near_the_distance_of_what_they_are_drawn_from():
    a, b = 2 * cloud(20_000, 3, 1) + [1.0, 0.0, 0.0], cloud(20_000, 3, 2)
    assert measure("fid", a, b).value == pytest.approx(1 + 3 * (2 - 1) ** 2, rel=0.03)


def test_fid_is_symmetric_and_grows_with_distance():
    a, b = cloud(100, seed=1), cloud(100, seed=2)
    assert measure("fid", a, b + 1).value == pytest.approx(measure("fid", b + 1, a).value, rel=1e-4)
    values = [measure("fid", a, b + shift).value for shift in (0, 0.5, 1, 2)]
    assert values == sorted(values) and values[0] < 0.5


def test_fids_interval_is_the_jackknife_over_both_sides_together():
    a, b = cloud(200, seed=1), cloud(200, seed=2) + 0.5

    def by_hand(kept):
        x, y = a[kept], b[kept]
        one, other = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
        gap = x.mean(axis=0) - y.mean(axis=0)
        return float(gap @ gap + np.trace(one + other - 2 * sqrtm(one @ other).real))

    score = measure("fid", a, b)
    assert score.interval == pytest.approx(block_jackknife(by_hand, 200), rel=1e-3)
    assert score.interval[0] < score.value < score.interval[1]
    assert measure("fid", a[:19], b[:19]).interval is None


# ---- KID -----------------------------------------------------------------------------------------------------------


def test_kid_is_the_unbiased_estimate_with_the_cubic_kernel():
    x, y = cloud(30, 5, 1), cloud(30, 5, 2) * 1.5 + 0.4
    inner = {name: (a @ b.T / 5 + 1) ** 3 for name, a, b in (("xx", x, x), ("yy", y, y), ("xy", x, y))}
    own = sum((inner[side].sum() - np.trace(inner[side])) / (30 * 29) for side in ("xx", "yy"))
    assert measure("kid", x, y).value == pytest.approx(own - 2 * inner["xy"].mean(), rel=1e-4)


def test_kid_of_one_distribution_is_near_zero_on_either_side():
    values = [measure("kid", cloud(100, seed=seed), cloud(100, seed=seed + 100)).value for seed in range(30)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 4 * np.std(values) / len(values) ** 0.5


def test_kid_sees_a_shift_and_its_interval_holds_the_value():
    score = measure("kid", cloud(200, seed=1), cloud(200, seed=2) + 1)
    assert 0 < score.interval[0] < score.value < score.interval[1]


# ---- precision and recall ------------------------------------------------------------------------------------------


def line(*places):
    return [[place, 0.0] for place in places]


def test_precision_and_recall_on_a_line_by_hand():
    """Radii to the third neighbour: real 3, 2, 2, 2, 3; generated 20, 19, 18, 20, 30 for 0, 1, 2, 20, 30."""
    real, generated = line(0, 1, 2, 3, 4), line(0, 1, 2, 20, 30)
    precision, recall = (measure(name, generated, real) for name in ("precision", "recall"))
    assert precision.value == pytest.approx(3 / 5) and precision.interval == wilson(3, 5)
    assert recall.value == 1 and recall.interval == wilson(5, 5)
    assert measure("precision", real, generated).value == 1
    assert measure("recall", real, generated).value == pytest.approx(3 / 5)


def test_the_protocols_k_is_used():
    real, generated = line(0, 1, 2, 3, 4), line(5.5, 5.5, 8, 8, 8)
    assert [measure("precision", generated, real, k=k).value for k in (1, 2, 3)] == pytest.approx([0, 0.4, 0.4])
    assert measure("precision", generated, real, k=4).value == pytest.approx(1)


def test_a_collapsed_model_loses_recall_and_an_over_dispersed_one_precision():
    real = cloud(200, 2, 1)
    collapsed, dispersed = 0.01 * cloud(200, 2, 2), 10 * cloud(200, 2, 3)
    assert measure("precision", collapsed, real).value > 0.95
    assert measure("recall", collapsed, real).value < 0.05
    assert measure("precision", dispersed, real).value < 0.3
    assert measure("recall", dispersed, real).value > 0.5


# ---- all of them ---------------------------------------------------------------------------------------------------


def test_identical_sets():
    real = cloud(100)
    assert measure("fid", real, real).value == pytest.approx(0, abs=1e-4)
    assert measure("kid", real, real).value <= 0
    assert measure("precision", real, real).value == measure("recall", real, real).value == 1


def test_disjoint_sets():
    real = cloud(100)
    assert measure("fid", real + 100, real).value == pytest.approx(4 * 100**2, rel=1e-3)
    assert measure("kid", real + 100, real).value > 100
    assert measure("precision", real + 100, real).value == measure("recall", real + 100, real).value == 0


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize(("generated", "real"), [(0, 0), (1, 1), (0, 50), (50, 0), (1, 50), (50, 1)])
def test_too_few_images_are_unknown_with_a_reason(name, generated, real):
    score = measure(name, cloud(generated), cloud(real))
    assert score.value is None and score.interval is None
    assert score.n == min(generated, real)
    least = 2 if name in ("fid", "kid") else 4
    assert score.reason == f"{score.n} images with features on a side, at least {least} are needed"


@pytest.mark.parametrize(("n", "known"), [(2, False), (3, False), (4, True)])
def test_neighbours_need_more_images_than_k(n, known):
    for name in ("precision", "recall"):
        assert (measure(name, cloud(n), cloud(n)).value is not None) == known


@pytest.mark.parametrize("name", DISTANCES)
def test_sides_are_compared_at_equal_counts(name):
    few, many = cloud(40, seed=1), cloud(90, seed=2)
    assert measure(name, few, many).value == measure(name, few, many[:40]).value
    assert measure(name, many, few).value == measure(name, many[:40], few).value
    assert measure(name, few, many).n == 40


def test_real_digits_beside_real_digits_noise_and_one_digit_only():
    task = DigitsClass("3")
    judge, real = task.judge(), task.judge().features(torch.cat(list(task.reference())))
    x0, y = splits()["floor"]
    fair = to_uint8(torch.cat([x0[y == digit] for digit in range(10) if digit != 3]))
    noise = torch.randint(0, 256, fair.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    single = to_uint8(x0[y == 4]).repeat(9, 1, 1, 1)
    found = {
        kind: {name: measure(name, judge.features(images), real).value for name in DISTANCES}
        for kind, images in (("fair", fair), ("noise", noise), ("single", single))
    }
    for worse in ("noise", "single"):
        assert found["fair"]["fid"] < found[worse]["fid"] / 5
        assert found["fair"]["kid"] < found[worse]["kid"] / 5
    assert found["fair"]["precision"] > 0.8 and found["fair"]["recall"] > 0.8
    assert found["noise"]["precision"] < 0.2
    assert found["single"]["precision"] > 0.8 and found["single"]["recall"] < 0.2
