"""Wrong values and judges that fail, planted: `selfcheck` finds each, in every metric that it touches."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.planted import (
    ALONE,
    FEATURES,
    JUDGED,
    METRICS,
    SIDED,
    UNKNOWN,
    WITNESSED,
    caught,
    every,
    judged,
    of_changed,
    passes,
    plant,
    some,
)
from unlearnbench import Outcome, Score, judges
from unlearnbench.judges import Verdict, torch_fidelity
from unlearnbench.testing import toy

SOME_FAIL = "the judge fails on 4 of 10"


def test_the_groups_cover_every_metric():
    assert {*JUDGED, *WITNESSED} == {name for name, metric in METRICS.items() if metric.axis != "cost"}
    assert not {*SIDED} & {*FEATURES} and {*FEATURES, *ALONE} <= {*UNKNOWN}


def test_a_metric_that_misses_a_fault_is_named_beside_those_that_notice_it():
    def attempt(patch, name):
        if name != "fid":
            plant(patch, name, lambda score: None)
        caught(name)

    every(["ua", "ra"], attempt, at_least=2, after_scoring=True)
    with pytest.raises(AssertionError, match=r"missed in\nfid:.*not noticed") as error:
        every(["ua", "fid", "ra"], attempt, at_least=3, after_scoring=True)
    assert "ua:" not in str(error.value) and "ra:" not in str(error.value)
    with pytest.raises(AssertionError, match="2 of at least 3"):
        every(["ua", "ra"], attempt, at_least=3)


# ---- values --------------------------------------------------------------------------------------------------------

VALUES = {
    "negated": lambda value: -value,
    "its complement": lambda value: 1 - value,
    "in percent": lambda value: 100 * value,
    "a hundredth": lambda value: value / 100,
    "one percent off": lambda value: 1.01 * value,
    "not a number": lambda value: value * math.nan,
    "infinite": lambda value: value + math.inf,
    "constant": lambda value: value * 0,
}


@pytest.mark.parametrize("fault", VALUES)
def test_a_wrong_value(fault):
    def change(score):
        images = None if score.per_image is None else VALUES[fault](score.per_image)
        return score if score.value is None else replace(score, value=VALUES[fault](score.value), per_image=images)

    def wrong(patch, name):
        plant(patch, name, change)
        wanted = {finding.expected for case, finding in caught(name).items() if not case.startswith("better is")}
        assert any(char.isdigit() for expected in wanted for char in expected), "no number was expected"

    every(METRICS, wrong, at_least=32, after_scoring=True)


def test_better_turned_round_or_left_out():
    def turned_round(patch, name):
        metric = METRICS[name]
        for better in {"higher": ["lower", None], "lower": ["higher", None], None: ["higher", "lower"]}[metric.better]:
            patch.setattr(type(metric), "better", better)
            assert [*caught(name)] == [f"better is {better}"]

    every(METRICS, turned_round, at_least=32, after_scoring=True)


def test_a_metric_that_raises():
    def change(score):
        raise RuntimeError("planted")

    def raising(patch, name):
        plant(patch, name, change)
        assert "RuntimeError: planted" in {finding.found for finding in caught(name).values()}

    every(METRICS, raising, at_least=32, after_scoring=True)


def test_a_bare_number_in_place_of_a_score():
    def bare(patch, name):
        plant(patch, name, lambda score: score.value)
        assert any("no Score" in finding.found for finding in caught(name).values())

    every(METRICS, bare, at_least=32, after_scoring=True)


@pytest.mark.parametrize("change", [{"value": 0.0}, {"value": math.nan}, {"reason": None}], ids=str)
def test_no_value_shown_as_one_or_without_a_reason(change):
    def shown(patch, name):
        plant(patch, name, lambda score: replace(score, **change) if score.value is None else score)
        assert {"no value, with a reason"} <= {finding.expected for finding in caught(name).values()}

    every(UNKNOWN, shown, at_least=19, after_scoring=True)


def test_not_a_number_for_one_image():
    def one_image(patch, name):
        plant(patch, name, lambda score: replace(score, value=math.nan) if score.n == 1 else score)
        assert "one image" in caught(name)

    every(JUDGED, one_image, at_least=18, after_scoring=True)


def test_a_case_that_cannot_be_made():
    def known(self):
        raise RuntimeError("planted")
        yield

    def broken(patch, name):
        patch.setattr(type(METRICS[name]), "known", known)
        assert caught(name)["every case can be tried"].found == "RuntimeError: planted"

    every(METRICS, broken, at_least=32, after_scoring=True)


PER_IMAGE = {
    "none": lambda images: None,
    "the first left out": lambda images: images[1:],
    "halved": lambda images: images * 0.5,
    "each twice, so that the mean is right": lambda images: np.concatenate([images, images]),
}


@pytest.mark.parametrize("fault", PER_IMAGE)
def test_values_per_image_that_do_not_make_up_the_value(fault):
    def change(score):
        return score if score.per_image is None else replace(score, per_image=PER_IMAGE[fault](score.per_image))

    def wrong(patch, name):
        plant(patch, name, change)
        assert [*caught(name)] == [f"a value for every {METRICS[name].side} image"]

    every(SIDED, wrong, at_least=12, after_scoring=True)


# ---- a judge that fails --------------------------------------------------------------------------------------------


def called(digit, refused):
    """Failures become this verdict on the digit, of the second colour."""

    def change(verdict):
        lost = verdict.missing
        row = torch.eye(verdict.probabilities.shape[1])[[digit, toy.CLASSES + 1]].sum(dim=0)
        given = verdict.refused | (lost & refused)[:, None]
        return Verdict(torch.where(lost[:, None], row, verdict.probabilities), given)

    return change


FAILURES = {
    "refused": called(3, True),
    "another digit": called(4, False),
    "the forgotten digit": called(3, False),
    "what was asked for": called(0, False),
}


@pytest.mark.parametrize("fault", FAILURES)
def test_a_failing_judge_counts_as_a_verdict(fault):
    def counted(patch, name):
        judged(patch, FAILURES[fault])
        assert "4 missing" in caught(name)[SOME_FAIL].expected

    every(SIDED, counted, at_least=12)


def test_verdicts_that_failed_are_dropped():
    def dropped(patch, name):
        judged(patch, lambda verdict: Verdict(*(column[~verdict.missing] for column in verdict)))
        assert "every case can be tried" in caught(name), "what is left no longer fits the plan"

    every(SIDED, dropped, at_least=12)


def test_images_that_failed_are_left_out_in_silence():
    def left_out(patch, name):
        plain = Outcome.side

        def side(self, group):
            whole = plain(self, group)
            return some(whole, ~whole.verdict.missing)

        patch.setattr(Outcome, "side", side)
        assert "4 missing" in caught(name)[SOME_FAIL].expected

    every(SIDED, left_out, at_least=12, reading=True)


def test_features_that_failed_become_zeros():
    def extract(judge, images, batch=250):
        rows = [torch.zeros(0, 10)]
        for one in images.split(1):
            try:
                rows.append(judge.features(one))
            except RuntimeError:
                rows.append(torch.zeros(1, 10))
        return torch.cat(rows)

    def zeros(patch, name):
        patch.setattr(torch_fidelity, "extract", extract)
        assert caught(name)[SOME_FAIL].expected == "no value, with a reason"

    every([*FEATURES, *ALONE], zeros, at_least=6)


def test_features_that_failed_are_left_out_in_silence():
    def change(made, seen, reference, real):
        asked = torch.tensor([plan.group == "retain" for plan in made.plan], dtype=torch.bool)
        kept = made.samples[asked & ~made.verdict.missing]
        return {"features": kept[:, 0, 2].float() - 128}

    def left_out(patch, name):
        of_changed(patch, change)
        assert caught(name)[SOME_FAIL].expected == "no value, with a reason"

    every([*FEATURES, *ALONE], left_out, at_least=6)


def test_a_failing_judge_stops_everything():
    def judge_all(judge, images, batch=250):
        return judge(images), None

    def stopped(patch, name):
        patch.setattr(judges, "judge_all", judge_all)
        assert caught(name)["every case can be tried"].found == "RuntimeError: this image cannot be judged"

    every(JUDGED, stopped, at_least=18)


# ---- two domains ---------------------------------------------------------------------------------------------------


def test_an_abstention_in_one_domain_counts_in_the_other():
    def spread(verdict):
        return verdict._replace(refused=verdict.refused.any(dim=1, keepdim=True).expand(-1, 2))

    def abstaining(patch, name):
        judged(patch, spread)
        if name == "ra_neighbours":  # an image must be right in both domains there: it does not matter in which
            assert passes(name)
        else:
            assert {*caught(name)} & {"right on all of 600", "right on all of 500"}

    every(["ira", "cra", "ra_neighbours"], abstaining, at_least=3)


def test_the_two_domains_swapped():
    def swapped(patch, name):
        plain = Outcome.side

        def side(self, group):
            whole = plain(self, group)
            return whole._replace(asked=whole.other, verdict=whole.besides, other=whole.asked, besides=whole.verdict)

        patch.setattr(Outcome, "side", side)
        assert {*caught(name)} & {"right in colour alone", "right in digits alone"}

    every(["ira", "cra"], swapped, at_least=2, reading=True)


def test_images_that_name_no_colour_count_as_wrong():
    def wrong(patch, name):
        plain = Outcome.side

        def side(self, group):
            whole = plain(self, group)
            asked = whole.asked.where(whole.other >= 0, 0)
            return whole._replace(asked=asked, other=whole.other.clamp(min=toy.CLASSES))

        patch.setattr(Outcome, "side", side)
        caught(name)

    every(["ira", "ra_neighbours"], wrong, at_least=2, reading=True)


UNCOUNTED = {
    "as wrong": lambda plain, hits, missing, counted: plain(hits, missing),
    "as right": lambda plain, hits, missing, counted: plain(hits | ~counted, missing),
    "as missing": lambda plain, hits, missing, counted: plain(hits, missing | ~counted),
}


@pytest.mark.parametrize("fault", UNCOUNTED)
def test_images_that_name_no_colour_count_after_all(fault, monkeypatch):
    plain = Score.share
    monkeypatch.setattr(
        Score, "share", lambda hits, missing, counted=None: UNCOUNTED[fault](plain, hits, missing, counted)
    )
    assert "errs on 2 of 7, 3 have no colour to show" in caught("cra")
