"""When two runs of one thing are held to agree."""

from __future__ import annotations

import pytest

from tests.support.small_world import made_record
from unlearnbench.records.agreement import EXACT, likeness, provenance, tolerance

CPU = {"device_type": "cpu", "device": "A", "threads": 1, "packages": {"torch": "2", "numpy": "1"}}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "same"),
        ({"threads": 2}, "alike"),
        ({"device": "B"}, "alike"),
        ({"packages": {"torch": "3"}}, "alike"),
        ({"packages": {"torch": "2", "numpy": "2"}}, "same"),
        ({"device_type": "cuda"}, "other"),
    ],
)
def test_likeness(changes, kind):
    one = made_record(environment=CPU)
    assert likeness(one, made_record(environment={**CPU, **changes})) == kind
    assert likeness(made_record(environment={**CPU, **changes}), one) == kind


def test_likeness_asks_for_equal_code_and_never_takes_cuda_for_exact():
    one = made_record(environment=CPU)
    assert likeness(one, made_record(environment=CPU, engine_hash="0" * 64)) == "alike"
    cuda = made_record(environment={**CPU, "device_type": "cuda"})
    assert likeness(cuda, cuda) == "alike"


def test_tolerance():
    assert tolerance("same", 5.0, (0.0, 10.0)) == EXACT
    assert tolerance("alike", 5.0, (4.0, 6.0)) == pytest.approx(1 + EXACT)
    assert tolerance("other", 5.0, (4.0, 6.0)) == pytest.approx(2 + EXACT)
    assert tolerance("alike", -5.0) == pytest.approx(0.25 + EXACT)
    assert tolerance("other", -5.0) == pytest.approx(0.5 + EXACT)
    assert tolerance("other", None) == EXACT


def test_no_tolerance_covers_another_methods_code():
    one = made_record(method_changes={"code_hash": "a" * 64})
    other = made_record(method_changes={"code_hash": "b" * 64})
    assert [row.agrees for row in provenance(one, other, "alike")] == [False]
    assert list(provenance(one, one, "other")) == []


def test_weights_must_be_equal_in_the_same_surroundings():
    one, other = (made_record(weights={"original": "o" * 64, "unlearned": letter * 64}) for letter in "ab")
    assert list(provenance(one, one, "same")) == list(provenance(one, other, "alike")) == []
    assert [row.agrees for row in provenance(one, other, "same")] == [False]
