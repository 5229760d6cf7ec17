"""Wrong values and judges that fail, planted: `selfcheck` finds each, in every metric that it touches."""

import math
from dataclasses import replace

import pytest
import torch

from tests.planted import (
    ALONE,
    FEATURES,
    JUDGED,
    METRICS,
    SIDED,
    UNKNOWN,
    WITNESSED,
    caught,
    judged,
    of_changed,
    passes,
    plant,
    some,
)
from unlearnbench import Outcome, Score, judges, toy
from unlearnbench.judges import Verdict, fidelity

SOME_FAIL = "the judge fails on 4 of 10"


def test_the_groups_cover_every_metric():
    assert {*JUDGED, *WITNESSED} == {name for name, metric in METRICS.items() if metric.axis != "cost"}
    assert not {*SIDED} & {*FEATURES} and {*FEATURES, *ALONE} <= {*UNKNOWN}


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
@pytest.mark.parametrize("name", METRICS)
def test_a_wrong_value(name, fault, monkeypatch):
    def change(score):
        images = None if score.per_image is None else VALUES[fault](score.per_image)
        return score if score.value is None else replace(score, value=VALUES[fault](score.value), per_image=images)

    plant(monkeypatch, name, change)
    wanted = {finding.expected for case, finding in caught(name).items() if not case.startswith("better is")}
    assert any(char.isdigit() for expected in wanted for char in expected), "no number was expected"


@pytest.mark.parametrize("name", METRICS)
def test_better_turned_round_or_left_out(name, monkeypatch):
    metric = METRICS[name]
    turned = {"higher": ["lower", None], "lower": ["higher", None], None: ["higher", "lower"]}[metric.better]
    for better in turned:
        monkeypatch.setattr(type(metric), "better", better)
        assert [*caught(name)] == [f"better is {better}"]


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_that_raises(name, monkeypatch):
    def change(score):
        raise RuntimeError("planted")

    plant(monkeypatch, name, change)
    assert "RuntimeError: planted" in {finding.found for finding in caught(name).values()}


@pytest.mark.parametrize("name", METRICS)
def test_a_bare_number_in_place_of_a_score(name, monkeypatch):
    plant(monkeypatch, name, lambda score: score.value)
    assert any("which is no Score" in finding.found for finding in caught(name).values())


@pytest.mark.parametrize("change", [{"value": 0.0}, {"value": math.nan}, {"reason": None}], ids=str)
@pytest.mark.parametrize("name", UNKNOWN)
def test_no_value_shown_as_one_or_without_a_reason(name, change, monkeypatch):
    plant(monkeypatch, name, lambda score: replace(score, **change) if score.value is None else score)
    assert {"no value, with a reason"} <= {finding.expected for finding in caught(name).values()}


@pytest.mark.parametrize("name", JUDGED)
def test_not_a_number_for_one_image(name, monkeypatch):
    plant(monkeypatch, name, lambda score: replace(score, value=math.nan) if score.n == 1 else score)
    assert "one image" in caught(name)


@pytest.mark.parametrize("name", METRICS)
def test_a_case_that_cannot_be_made(name, monkeypatch):
    def known(self):
        raise RuntimeError("planted")
        yield

    monkeypatch.setattr(type(METRICS[name]), "known", known)
    assert caught(name)["every case can be tried"].found == "RuntimeError: planted"


@pytest.mark.parametrize("change", [lambda images: None, lambda images: images[1:], lambda images: images * 0.5])
@pytest.mark.parametrize("name", SIDED)
def test_values_per_image_that_do_not_make_up_the_value(name, change, monkeypatch):
    plant(
        monkeypatch,
        name,
        lambda score: score if score.per_image is None else replace(score, per_image=change(score.per_image)),
    )
    assert [*caught(name)] == [f"a value for every {METRICS[name].side} image"]


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
@pytest.mark.parametrize("name", SIDED)
def test_a_failing_judge_counts_as_a_verdict(name, fault, monkeypatch):
    judged(monkeypatch, FAILURES[fault])
    assert "4 missing" in caught(name)[SOME_FAIL].expected


@pytest.mark.parametrize("name", SIDED)
def test_verdicts_that_failed_are_dropped(name, monkeypatch):
    judged(monkeypatch, lambda verdict: Verdict(*(column[~verdict.missing] for column in verdict)))
    assert "every case can be tried" in caught(name), "what is left no longer fits the plan"


@pytest.mark.parametrize("name", SIDED)
def test_images_that_failed_are_left_out_in_silence(name, monkeypatch):
    plain = Outcome.side

    def side(self, group):
        whole = plain(self, group)
        return some(whole, ~whole.verdict.missing)

    monkeypatch.setattr(Outcome, "side", side)
    assert "4 missing" in caught(name)[SOME_FAIL].expected


@pytest.mark.parametrize("name", [*FEATURES, *ALONE])
def test_features_that_failed_become_zeros(name, monkeypatch):
    def extract(judge, images, batch=250):
        rows = [torch.zeros(0, 10)]
        for one in images.split(1):
            try:
                rows.append(judge.features(one))
            except RuntimeError:
                rows.append(torch.zeros(1, 10))
        return torch.cat(rows)

    monkeypatch.setattr(fidelity, "extract", extract)
    assert caught(name)[SOME_FAIL].expected == "no value, with a reason"


@pytest.mark.parametrize("name", [*FEATURES, *ALONE])
def test_features_that_failed_are_left_out_in_silence(name, monkeypatch):
    def change(made, seen, reference, real):
        asked = torch.tensor([plan.group == "retain" for plan in made.plan], dtype=torch.bool)
        kept = made.samples[asked & ~made.verdict.missing]
        return {"features": kept[:, 0, 2].float() - 128}

    of_changed(monkeypatch, change)
    assert caught(name)[SOME_FAIL].expected == "no value, with a reason"


@pytest.mark.parametrize("name", JUDGED)
def test_a_failing_judge_stops_everything(name, monkeypatch):
    def judge_all(judge, images, batch=250):
        return judge(images), None

    monkeypatch.setattr(judges, "judge_all", judge_all)
    assert caught(name)["every case can be tried"].found == "RuntimeError: this image cannot be judged"


# ---- two domains ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ira", "cra", "ra_neighbours"])
def test_an_abstention_in_one_domain_counts_in_the_other(name, monkeypatch):
    judged(
        monkeypatch, lambda verdict: verdict._replace(refused=verdict.refused.any(dim=1, keepdim=True).expand(-1, 2))
    )
    if name == "ra_neighbours":  # an image must be right in both domains there, so that it does not matter in which
        assert passes(name)
    else:
        assert {*caught(name)} & {"right on all of 600", "right on all of 500"}


@pytest.mark.parametrize("name", ["ira", "cra"])
def test_the_two_domains_swapped(name, monkeypatch):
    plain = Outcome.side

    def side(self, group):
        whole = plain(self, group)
        return whole._replace(asked=whole.other, verdict=whole.besides, other=whole.asked, besides=whole.verdict)

    monkeypatch.setattr(Outcome, "side", side)
    assert {*caught(name)} & {"right in colour alone", "right in digits alone"}


@pytest.mark.parametrize("name", ["ira", "ra_neighbours"])
def test_images_that_name_no_colour_count_as_wrong(name, monkeypatch):
    plain = Outcome.side

    def side(self, group):
        whole = plain(self, group)
        asked = whole.asked.where(whole.other >= 0, 0)
        return whole._replace(asked=asked, other=whole.other.clamp(min=toy.CLASSES))

    monkeypatch.setattr(Outcome, "side", side)
    caught(name)


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
