"""Sums and tiles of features beside torch-fidelity, which holds all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from unlearnbench import feature_distances, registry, taken
from unlearnbench.feature_distances import Moments, frechet, inception_score, share_within_radii, squared_mmd
from unlearnbench.statistics import block_jackknife, t_interval
from unlearnbench.storage.lazy_arrays import ArrayPart, Rows

METRICS = registry.load_metrics()


def made(n, seed, shift=0.0, d=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) + shift


def in_parts(x, size=17):
    return Rows([ArrayPart(len(part), lambda part=part: part) for part in x.split(size)])


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(feature_distances, "FEW", 13)
    monkeypatch.setattr(feature_distances, "SUBSET", 20)


SIDES = [(made(60, 0), made(60, 1, 0.5)), (made(41, 2), made(60, 2)), (made(30, 3), made(30, 3))]
FORMS = [lambda x: x, in_parts]


@pytest.mark.parametrize("form", FORMS, ids=["tensor", "rows"])
@pytest.mark.parametrize(("generated", "real"), SIDES)
def test_distances_are_torch_fidelitys(generated, real, form):
    one, other = form(generated), form(real)
    a, b = fid_features_to_statistics(generated), fid_features_to_statistics(real)
    for name, value in Moments.of(one).statistics().items():
        np.testing.assert_allclose(value, a[name], rtol=1e-6, atol=1e-6)
    expected = fid_statistics_to_metric(a, b, verbose=False)["frechet_inception_distance"]
    assert frechet(Moments.of(one), Moments.of(other)) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    manifold = prc_features_to_metric(generated, real, prc_neighborhood=3, prc_batch_size=1000, verbose=False)
    assert share_within_radii(one, other, 3) == pytest.approx(manifold["precision"], abs=1e-6)
    assert share_within_radii(other, one, 3) == pytest.approx(manifold["recall"], abs=1e-6)
    score = isc_features_to_metric(generated, splits=1, shuffle=False)["inception_score_mean"]
    assert inception_score(one, lambda x: x) == pytest.approx(score, rel=1e-9)


@pytest.mark.parametrize("form", FORMS, ids=["tensor", "rows"])
def test_kid_is_of_disjoint_subsets_that_hold_every_so_many_th_image(form):
    generated, real = SIDES[0]
    values = squared_mmd(form(generated), form(real))
    assert len(values) == 3
    for i, value in enumerate(values):
        one, other = generated[i::3], real[i::3]
        expected = kid_features_to_metric(one, other, kid_subsets=1, kid_subset_size=20, verbose=False)
        assert value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    assert len(squared_mmd(generated[:39], real[:39])) == 1


def test_kids_interval_is_over_subsets_where_there_are_many(monkeypatch):
    kid, (generated, real) = METRICS["kid"], SIDES[0]
    few = kid.interval(0, generated, real, 3)
    assert few == block_jackknife(lambda kept: kid.between(generated[kept], real[kept], 3), 60)
    monkeypatch.setattr(feature_distances, "SUBSET", 6)
    assert kid.interval(0, generated, real, 3) == t_interval(squared_mmd(generated, real)) != few


@pytest.mark.parametrize("form", FORMS, ids=["tensor", "rows"])
def test_fids_jackknife_takes_a_blocks_moments_off_those_of_all(form):
    fid, (generated, real) = METRICS["fid"], SIDES[0]
    value = fid.between(generated, real, 3)
    expected = block_jackknife(lambda kept: fid.between(generated[kept], real[kept], 3), 60)
    assert fid.interval(value, form(generated), form(real), 3) == pytest.approx(expected, rel=1e-9)
    assert fid.interval(value, form(generated[:19]), form(real[:19]), 3) is None


def test_moments_without_some_rows_are_those_of_the_others():
    x, some = made(50, 4), np.arange(3, 50, 7)
    rest = Moments.of(x).less(Moments.of(taken(x, some))).statistics()
    for name, value in Moments.of(x[np.setdiff1d(np.arange(50), some)]).statistics().items():
        np.testing.assert_allclose(rest[name], value, rtol=1e-9, atol=1e-9)


def test_an_inception_score_of_nothing_is_no_number():
    assert np.isnan(inception_score(torch.zeros(0, 3), lambda x: x))
