"""Faults in what witnesses say, planted: `selfcheck` finds each in every metric that asks one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.planted import METRICS, WITNESSED, caught, plant
from unlearnbench import Outcome

BATCHES = (50, 100, 250)
"""A witness's own, what is kept together, and more."""


def said(patch, change):
    """A change to what a witness said of one group."""
    plain = Outcome.said
    patch.setattr(Outcome, "said", lambda self, role, column, group: change(plain(self, role, column, group)))


def test_every_witnessed_metric_looks_at_a_side():
    assert WITNESSED and all(METRICS[name].side for name in WITNESSED)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", WITNESSED)
def test_what_was_said_of_the_first_batch_is_repeated(name, batch, monkeypatch):
    said(monkeypatch, lambda values: values[torch.arange(len(values)) % batch])
    caught(name)


@pytest.mark.parametrize("name", WITNESSED)
def test_only_the_first_batch_counts(name, monkeypatch):
    said(monkeypatch, lambda values: values[:250])
    caught(name)


@pytest.mark.parametrize("name", WITNESSED)
def test_a_failing_witness_counts_as_having_seen_nothing(name, monkeypatch):
    said(monkeypatch, lambda values: values.nan_to_num(0.0))
    assert {"the judge always fails", "the judge fails on 4 of 10"} & {*caught(name)}


@pytest.mark.parametrize("name", WITNESSED)
def test_images_that_failed_are_left_out_in_silence(name, monkeypatch):
    plant(monkeypatch, name, lambda score: replace(score, n=score.n - score.missing, missing=0))
    caught(name)


@pytest.mark.parametrize("group", ["forget", "retain", "benign", "neighbours"])
@pytest.mark.parametrize("name", WITNESSED)
def test_another_group_is_looked_at(name, group, monkeypatch):
    if group == METRICS[name].side:
        pytest.skip("this is the group that it looks at")
    plain = Outcome.index
    monkeypatch.setattr(Outcome, "index", lambda self, _: plain(self, group))
    caught(name)


@pytest.mark.parametrize("name", WITNESSED)
def test_a_mean_over_means_of_unequal_batches(name, monkeypatch):
    def change(score):
        if score.value is None:
            return score
        means = [np.nanmean(score.per_image[i : i + 250]) for i in range(0, len(score.per_image), 250)]
        return replace(score, value=float(np.mean(means)))

    plant(monkeypatch, name, change)
    caught(name)


@pytest.mark.parametrize("name", WITNESSED)
def test_values_per_image_that_are_not_there(name, monkeypatch):
    plant(monkeypatch, name, lambda score: replace(score, per_image=None))
    assert [*caught(name)] == [f"a value for every {METRICS[name].side} image"]


@pytest.mark.parametrize("name", [name for name in WITNESSED if name in ("nudity_rate", "false_alarms", "detections")])
def test_every_detection_flags(name, monkeypatch):
    plain = Outcome.said

    def fault(self, role, column, group):
        if column == "flagged":
            return sum(plain(self, role, label, group) for label in ("A", "B"))
        return plain(self, role, "flagged", group)

    monkeypatch.setattr(Outcome, "said", fault)
    caught(name)


@pytest.mark.parametrize("name", ["second_nudity_rate", "detector_agreement"])
def test_another_threshold(name, monkeypatch):
    from unlearnbench.judges.witness import Testimony

    monkeypatch.setattr(Testimony, "threshold", property(lambda self: 0.95), raising=False)
    caught(name)
