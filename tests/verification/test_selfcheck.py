"""`selfcheck` on metrics, tasks and controls as they are; planted faults: test_planted_*."""

from dataclasses import replace
from functools import cache

import pytest

from tests.support.small_world import small_protocol
from unlearnbench import FeatureMetric, registry
from unlearnbench.errors import UserError
from unlearnbench.methods.prompt_filter import PromptFilter
from unlearnbench.metric import Known
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.testing import toy
from unlearnbench.verification import selfcheck
from unlearnbench.verification.selfcheck import CaseResult, format_range, number

METRICS = registry.load_metrics()
SHARED = ["no images", "one image", "the judge always fails", "the judge fails on 4 of 10"]
LARGE = ["300 images in reverse order", "beside samples of the other side"]


check_metric = selfcheck.check_metric


@cache
def checked(name):
    """What is found of a metric as it is."""
    return list(check_metric(METRICS[name]))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_knows_its_answers_to_its_own_and_to_the_shared_cases(name):
    metric, found = METRICS[name], checked(name)
    assert not selfcheck.failed(found)
    assert all(finding.subject == name for finding in found)
    cases = [finding.case for finding in found]
    assert len({*cases}) == len(cases)

    known = list(metric.known())
    expected = [case.case for case in known] + [f"a value for every {metric.side} image"] * (metric.side is not None)
    expected += [f"better is {metric.better}"] * (metric.better is not None)
    expected += (SHARED + LARGE) * (metric.axis != "cost")
    expected += ["floor, of the same images"] * isinstance(metric, FeatureMetric)
    assert cases == expected

    assert len({case.low for case in known}) >= 2, "answers by hand lie on both sides of good"
    if metric.better is not None:
        assert {"good", "bad"} <= {case.quality for case in known}


@pytest.mark.parametrize("name", [name for name in METRICS if isinstance(METRICS[name], FeatureMetric)])
def test_distances_are_tried_on_identical_and_on_distant_sets(name):
    cases = {case.case for case in METRICS[name].known()}
    assert "identical" in cases and cases & {"disjoint", "shifted by 5"}
    if name != "kid":
        assert {"collapsed", "over-dispersed"} <= cases


# ---- what a finding says -------------------------------------------------------------------------------------------


def test_findings_show_numbers_and_ranges():
    assert (number(None), number(0.25), number(1 / 3)) == ("no value", "0.25", "0.333333")
    assert (format_range(None), format_range(0.5), format_range(0.5, 0.5), format_range(0, 1)) == (
        "no value",
        "0.5",
        "0.5",
        "0 to 1",
    )


@pytest.mark.parametrize(
    ("case", "found", "expected", "passed"),
    [
        (Known("", toy.outcome([toy.shows(4)]), 1.0), "1", "1", True),
        (Known("", toy.outcome([toy.shows(4)]), 1 + 1e-7), "1", "1", True),
        (Known("", toy.outcome([toy.shows(4)]), 0.0, 0.5), "1", "0 to 0.5", False),
        (Known("", toy.outcome([toy.shows(4)]), None), "1", "no value, with a reason", False),
        (Known("", toy.outcome(), None), "no value", "no value, with a reason", True),
        (Known("", toy.outcome(), 0.0), "no value", "0", False),
        (Known("", toy.outcome([toy.shows(4), toy.fails()]), 1.0, missing=1), "1, 1 missing", "1, 1 missing", True),
        (Known("", toy.outcome([toy.shows(4), toy.fails()]), 1.0), "1, 1 missing", "1", False),
        (Known("", toy.outcome([toy.shows(4)]), 1.0, missing=1), "1, 0 missing", "1, 1 missing", False),
    ],
)
def test_an_answer_lies_in_its_range_and_misses_as_many_as_it_must(case, found, expected, passed):
    assert selfcheck._judged(METRICS["ua"], case)[0] == CaseResult("ua", "", found, expected, passed)


def test_failed_are_those_that_did_not_pass():
    good, bad = CaseResult("a", "", "", "", True), CaseResult("b", "", "", "", False)
    assert selfcheck.failed([good, bad, good]) == [bad]


# ---- everything ----------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """The filter stands in for `retrain`, which takes minutes; time per image is not measured.

    Retain images are as many as KID needs to come near zero for real digits.
    """
    plain, few = selfcheck.run_cell, replace(small_protocol(), retain_images=30)
    monkeypatch.setitem(DigitsClass.protocols, "default", few)

    def run(cell, store, results, **options):
        stand_in = replace(cell, method=PromptFilter()) if cell.method.name == "retrain" else cell
        return plain(stand_in, store, results, **options)

    monkeypatch.setattr(selfcheck, "run_cell", run)


@pytest.fixture
def remembered(monkeypatch):
    """Metrics are checked once in this module, but for UA, which one test breaks."""
    monkeypatch.setattr(
        selfcheck,
        "check_metric",
        lambda metric: check_metric(metric) if metric.name == "ua" else iter(checked(metric.name)),
    )


def test_all_of_it_from_end_to_end(quick, remembered, shared_store, tmp_path):
    """Of a `retrain` that leaves the weights alone just that is said; all else passes, on real samples."""
    begun = []
    found = list(selfcheck.selfcheck_findings(DigitsClass("3"), Store(shared_store), tmp_path, begun.append))
    assert {(finding.subject, finding.case) for finding in selfcheck.failed(found)} == {
        ("trained_parameters", "control retrain"),
        ("stored_size", "control retrain"),
    }
    parts = ("original", "retrain", "destroy", "prompt_filter")
    assert begun == ["known answers", "concept, data and noise", *(f"control {part}" for part in parts), "ways to game"]
    subjects = [finding.subject for finding in found]
    assert {
        *METRICS,
        "plan",
        "data",
        "conditions",
        "judge",
        "reference",
        "floor",
        "concept",
        "noise",
        "score",
        *parts,
    } == {*subjects}


def test_an_error_breaks_off_its_own_part_alone(quick, remembered, shared_store, tmp_path, monkeypatch):
    def broken(self):
        raise RuntimeError("planted")

    monkeypatch.setattr(type(METRICS["ua"]), "known", broken)
    monkeypatch.setattr(DigitsClass, "plan", broken)
    found = list(selfcheck.selfcheck_findings(DigitsClass("3"), Store(shared_store), tmp_path))
    every = {finding.subject: finding for finding in found if finding.case == "every case can be tried"}
    assert {*every} == {"ua", "concept", "noise", "controls", "score"}
    assert all(finding[2:] == ("RuntimeError: planted", "no error", False) for finding in every.values())
    assert {*METRICS} <= {finding.subject for finding in found if finding.passed}


def test_the_users_own_errors_are_not_findings(tmp_path):
    def broken():
        raise UserError("the disk is full")
        yield

    with pytest.raises(UserError, match="the disk is full"):
        list(selfcheck._to_the_end("noise", broken()))
