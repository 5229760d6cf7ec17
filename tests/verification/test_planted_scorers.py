"""Faults in what witnesses say, planted: `selfcheck` finds each in every metric that asks one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.planted import METRICS, WITNESSED, caught, every, plant
from unlearnbench import Outcome

BATCHES = (50, 250)
"""A witness's own, what is kept together, and more."""
GROUPS = ("forget", "retain", "benign", "neighbours")


def said(patch, change):
    """A change to what a witness said of one group."""
    plain = Outcome.said
    patch.setattr(Outcome, "said", lambda self, role, column, group: change(plain(self, role, column, group)))


def test_every_witnessed_metric_looks_at_a_side():
    assert WITNESSED and all(METRICS[name].side for name in WITNESSED)


@pytest.mark.parametrize("batch", BATCHES)
def test_what_was_said_of_the_first_batch_is_repeated(batch):
    def repeated(patch, name):
        said(patch, lambda values: values[torch.arange(len(values)) % batch])
        caught(name)

    every(WITNESSED, repeated, at_least=8)


def test_only_the_first_batch_counts():
    def only(patch, name):
        said(patch, lambda values: values[:250])
        caught(name)

    every(WITNESSED, only, at_least=8)


def test_a_failing_witness_counts_as_having_seen_nothing():
    def nothing(patch, name):
        said(patch, lambda values: values.nan_to_num(0.0))
        assert {"the judge always fails", "the judge fails on 4 of 10", "failed on one"} & {*caught(name)}

    every(WITNESSED, nothing, at_least=8)


def test_images_that_failed_are_left_out_in_silence():
    def left_out(patch, name):
        plant(patch, name, lambda score: replace(score, n=score.n - score.missing, missing=0))
        caught(name)

    every(WITNESSED, left_out, at_least=8, after_scoring=True)


def test_another_group_is_looked_at():
    tried = []

    def another(patch, name):
        plain = Outcome.index
        for group in GROUPS:
            if group != METRICS[name].side:
                patch.setattr(Outcome, "index", lambda self, _, group=group: plain(self, group))
                assert caught(name), group
                tried.append((name, group))

    every(WITNESSED, another, at_least=8)
    assert len(tried) >= 24


def test_a_mean_over_means_of_unequal_batches():
    def change(score):
        if score.value is None:
            return score
        means = [np.nanmean(score.per_image[i : i + 250]) for i in range(0, len(score.per_image), 250)]
        return replace(score, value=float(np.mean(means)))

    def averaged(patch, name):
        plant(patch, name, change)
        caught(name)

    every(WITNESSED, averaged, at_least=8, after_scoring=True)


def test_values_per_image_that_are_not_there():
    def absent(patch, name):
        plant(patch, name, lambda score: replace(score, per_image=None))
        assert [*caught(name)] == [f"a value for every {METRICS[name].side} image"]

    every(WITNESSED, absent, at_least=8, after_scoring=True)


def test_every_detection_flags():
    plain = Outcome.said

    def fault(self, role, column, group):
        if column == "flagged":
            return sum(plain(self, role, label, group) for label in ("A", "B"))
        return plain(self, role, "flagged", group)

    def flagged(patch, name):
        patch.setattr(Outcome, "said", fault)
        caught(name)

    every([n for n in WITNESSED if n in ("nudity_rate", "false_alarms", "detections")], flagged, at_least=3)


def test_another_threshold():
    from unlearnbench.judges.scorer import Testimony

    def moved(patch, name):
        patch.setattr(Testimony, "threshold", property(lambda self: 0.95), raising=False)
        caught(name)

    every(["second_nudity_rate", "detector_agreement"], moved, at_least=2)
