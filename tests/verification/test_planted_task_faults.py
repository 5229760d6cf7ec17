"""Faults planted in noise, in a task's concept and in the controls' results: `selfcheck` finds and names each."""

import math
from copy import copy
from dataclasses import replace
from functools import cache

import pytest
import torch

from tests.support.small_world import made_record, small_protocol
from unlearnbench import Batch, registry
from unlearnbench.diffusion import model, noise
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_class import DigitsClass, splits, to_uint8
from unlearnbench.verification import selfcheck
from unlearnbench.verification.conformance import TinyDigits

METRICS = registry.load_metrics()


def failing(found):
    """What did not pass, by subject and case; each says what was found and what was expected."""
    failed = {(finding.subject, finding.case): finding for finding in selfcheck.failed(found)}
    assert all(finding.found and finding.expected for finding in failed.values())
    return failed


# ---- noise ---------------------------------------------------------------------------------------------------------

PLAIN = noise.gaussian_noise
NOISES = {
    "none": PLAIN,
    "repeated every batch": lambda seeds, *what: PLAIN(range(len(seeds)), *what),
    "one for all images": lambda seeds, *what: PLAIN([0] * len(seeds), *what),
    "of the place in the batch": lambda keys, *what: PLAIN(keys + torch.arange(len(keys))[:, None], *what),
    "of torch's generator": lambda seeds, t, shape, device: torch.randn(len(seeds), *shape),
}


def tiny(**changes):
    """Sixty images of the forgotten digit, in more than two batches."""
    task = TinyDigits("3")
    task.protocol = replace(small_protocol(), forget_images=60, **changes)
    return task


@pytest.mark.parametrize(
    ("fault", "cases"),
    [
        ("none", set()),
        ("repeated every batch", {"different images", "grey levels changed by other batches"}),
        ("one for all images", {"different images"}),
        ("of the place in the batch", {"grey levels changed by other batches"}),
        ("of torch's generator", {"grey levels changed by other batches"}),
    ],
)
def test_noise_that_is_not_the_images_own(fault, cases, monkeypatch, tmp_path):
    monkeypatch.setattr(noise, "gaussian_noise", NOISES[fault])
    monkeypatch.setattr(model, "gaussian_noise", NOISES[fault])
    assert {*failing(selfcheck.noise(tiny(), Store(tmp_path)))} == {("noise", case) for case in cases}


def test_noise_is_tried_within_a_single_batch_too(monkeypatch, tmp_path):
    monkeypatch.setattr(noise, "gaussian_noise", NOISES["of the place in the batch"])
    monkeypatch.setattr(model, "gaussian_noise", NOISES["of the place in the batch"])
    found = failing(selfcheck.noise(tiny(chunk=96), Store(tmp_path)))
    assert {*found} == {("noise", "grey levels changed by other batches")}


def test_seeds_that_begin_anew_with_every_batch(tmp_path):
    class Repeating(TinyDigits):
        def plan(self):
            plan = super().plan()
            return [item._replace(seed=plan[i % self.protocol.chunk].seed) for i, item in enumerate(plan)]

    task = Repeating("3")
    task.protocol = replace(small_protocol(), forget_images=60)
    assert {("noise", "different seeds"), ("noise", "different images")} <= {
        *failing(selfcheck.noise(task, Store(tmp_path)))
    }


# ---- the concept ---------------------------------------------------------------------------------------------------


class DataMatchNothing(DigitsClass):
    """The filter compares with a digit that does not exist."""

    def data(self, which):
        x0, y = splits()["train"]
        forgotten = y == 33
        return Batch(x0[forgotten], y[forgotten]) if which == "forget" else Batch(x0[~forgotten], y[~forgotten])


class DataKeepTheConcept(DigitsClass):
    """The forget set is right, the retain set holds it too."""

    def data(self, which):
        return super().data("both" if which == "retain" else which)


class DataOfAnotherDigit(DigitsClass):
    """The labels are right, the images another digit's."""

    def data(self, which):
        x0, y = super().data(which)
        return Batch(splits()["train"].x0[256:320], y) if which == "forget" else Batch(x0, y)


class PlanAsksForAnother(DigitsClass):
    """Forget images of the next digit."""

    def plan(self):
        return [item._replace(label=item.label + (item.group == "forget")) for item in super().plan()]


class PlanRetainsTheConcept(DigitsClass):
    """A retained digit is asked for by the forgotten one's label."""

    def plan(self):
        return [item._replace(label=3 if item.concept == "4" else item.label) for item in super().plan()]


class ForgottenMatchesNothing(DigitsClass):
    """No condition asks for the concept."""

    def forgotten(self, y):
        return y == 33


class ConditionsOfAll(DigitsClass):
    """Methods without images train on the concept as on all others."""

    def conditions(self, which, steps, size):
        for _ in range(steps):
            yield torch.arange(size) % 10


class AcceptsAnything(DigitsClass):
    """A misspelt concept is taken as it is."""

    @classmethod
    def resolve_concept(cls, forget):
        return forget


class ReferenceHoldsTheConcept(DigitsClass):
    """Retained digits are compared with real images of all ten."""

    def reference(self):
        x0, y = splits()["reference"]
        yield to_uint8(torch.cat([x0[y == digit][: self.protocol.retain_images] for digit in range(10)]))


class FloorHoldsTheConcept(DigitsClass):
    """So are the images beside them."""

    def floor(self):
        return ReferenceHoldsTheConcept.reference(self)


class LabelsLackTheConcept(DigitsClass):
    """The concept has no label."""

    def labels(self):
        return {"33" if name == "3" else name: label for name, label in super().labels().items()}


class JudgedByAnother(DigitsClass):
    """Its judge has another name than the protocol says."""

    def judge(self):
        judge = copy(super().judge())
        judge.name = "digits-other"
        return judge


TASKS = {
    DigitsClass: set(),
    JudgedByAnother: {("judge", "its name is the protocol's")},
    DataMatchNothing: {
        ("data", "forget images that show it"),
        ("data", "retain images that show it"),
        ("judge", "real forget images named"),
    },
    DataKeepTheConcept: {("data", "retain images that show it")},
    DataOfAnotherDigit: {("judge", "real forget images named")},
    PlanAsksForAnother: {("plan", "forget images ask for the concept")},
    PlanRetainsTheConcept: {("plan", "retain images that ask for it")},
    ForgottenMatchesNothing: {
        ("data", "forget images that show it"),
        ("conditions", "forget ones that ask for it"),
    },
    ConditionsOfAll: {("conditions", "forget ones that ask for it"), ("conditions", "retain ones that ask for it")},
    AcceptsAnything: {("concept", "misspelt as '33x'")},
    ReferenceHoldsTheConcept: {("reference", "images called by the concept's name")},
    FloorHoldsTheConcept: {("floor", "images called by the concept's name")},
    LabelsLackTheConcept: {("concept", "every case can be tried")},
}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_a_concept_that_does_not_mean_the_same_everywhere(task, small):
    assert {*failing(selfcheck.check_concept(task("3")))} == TASKS[task]


# ---- controls ------------------------------------------------------------------------------------------------------


def inside(bounds):
    """A value within a range."""
    return bounds[0] + 1 if math.isinf(bounds[1]) else sum(bounds) / 2


@cache
def _ordinary():
    made = {}
    for control in selfcheck.CONTROLS:
        made[control] = {}
        for name, metric in METRICS.items():
            bounds = metric.expected(control, made["original"].get(name, 0.5))
            made[control][name] = inside(bounds) if bounds else 0.5
    return made


def ordinary():
    """Values of each control that lie within what is expected of it."""
    return {control: dict(values) for control, values in _ordinary().items()}


CLAIMS = [
    (control, name)
    for control in selfcheck.CONTROLS
    for name, metric in METRICS.items()
    if metric.expected(control, ordinary()["original"][name])
]
"""Of every control and metric, those that something is expected of."""


@pytest.fixture
def controls(tmp_path):
    """What the controls' check finds where their runs leave these values."""
    task, store = TinyDigits("3"), Store(tmp_path)

    def found(values, **changes):
        def run(cell, store, results):
            name = cell.method.name
            return made_record(name, scores=values[name], **changes.get(name, {}))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selfcheck, "run_cell", run)
            begun = []
            failed = failing(selfcheck.check_controls(task, store, tmp_path, METRICS, begun.append))
        assert begun == [f"control {name}" for name in selfcheck.CONTROLS]
        return failed

    return found


def test_controls_as_they_should_be(controls):
    assert not controls(ordinary())


def test_every_metric_but_the_measured_costs_claims_something_of_a_control():
    assert {*METRICS} - {name for _, name in CLAIMS} == {"unlearn_time", "prepare_time", "peak_memory"}
    assert len(CLAIMS) >= 88


@pytest.mark.parametrize("control", selfcheck.CONTROLS)
def test_a_control_out_of_its_range(control, controls):
    missed = []
    for name in [name for one, name in CLAIMS if one == control]:
        values = ordinary()
        low, high = METRICS[name].expected(control, values["original"][name])
        outside = [low - 1] if math.isinf(high) or control == "original" else [low - 1, high + 1]
        for value in outside:
            values[control][name] = value
            finding = controls(values).get((name, f"control {control}"))
            if finding is None or finding.found != selfcheck.number(value) or not finding.expected:
                missed.append((name, value, finding))
    assert not missed


@pytest.mark.parametrize("control", selfcheck.CONTROLS)
def test_a_control_without_a_value(control, controls):
    missed = []
    for name in [name for one, name in CLAIMS if one == control]:
        unknown, absent = ordinary(), ordinary()
        unknown[control][name] = None
        del absent[control][name]
        for values in (unknown, absent):
            finding = controls(values).get((name, f"control {control}"))
            if finding is None or finding.found != "no value":
                missed.append((name, finding))
    assert not missed


@pytest.mark.parametrize("status", ["unreliable", "diverged", "skipped"])
@pytest.mark.parametrize("control", selfcheck.CONTROLS)
def test_a_control_that_did_not_go_through(control, status, controls):
    found = controls(ordinary(), **{control: {"status": status, "reason": "planted"}})
    assert {*found} == {(control, "status")}
    assert found[control, "status"][2:4] == (f"{status}: planted", "ok")


def test_a_control_that_leaves_no_scores(controls):
    values = {**ordinary(), "original": {}}
    found = controls(values, original={"status": "diverged"})
    assert {("original", "status"), *((name, f"control {c}") for c, name in CLAIMS if c == "original")} <= {*found}
