"""diff: every kind of difference between two records is named."""

from __future__ import annotations

from tests.leaderboard.test_robustness import attack
from tests.support.small_world import made_record
from unlearnbench.compare.record_diff import alike, record_differences


def found(a, b):
    return {(row.group, row.what): row[2:4] for row in record_differences(a, b)}


def test_each_kind_of_difference_is_named():
    packages = {"torch": "2", "numpy": "1"}
    environment = {"threads": 1, "device": "A", "commit": "a" * 40, "python": "3.10", "packages": packages}
    a = made_record(
        seed=0, scores={"ua": 0.5, "fid": 1.0, "ra": None}, environment=environment,
        method_changes={"settings": {"lr": 0.1, "eta": 1}},
        protocol_changes={"settings": {"sampler": {"steps": 20, "eta": 0.0}, "k": 3}},
    )  # fmt: skip
    b = made_record(
        seed=1, scores={"ua": 0.75, "fid": 1.0, "ra": 0.5}, forget="4",
        environment={**environment, "threads": 2, "commit": "b" * 40, "packages": {**packages, "torch": "3"}},
        method_changes={"settings": {"lr": 0.1, "steps": None}},
        protocol_changes={"settings": {"sampler": {"steps": 50, "eta": 0.0}, "k": 3}},
        judge=a.judge.model_copy(update={"threshold": 0.25, "hash": "0" * 64}), engine_hash="1" * 64,
    )  # fmt: skip
    assert found(a, b) == {
        ("task", "concept"): ("3", "4"),
        ("seed", "unlearning"): ("0", "1"),
        ("hyper-parameter", "eta"): ("1", "—"),
        ("hyper-parameter", "steps"): ("—", "none"),
        ("protocol", "sampler.steps"): ("20", "50"),
        ("judge", "hash"): ("j" * 64, "0" * 12),
        ("judge", "threshold"): ("0.5", "0.25"),
        ("code", "engine"): ("e" * 12, "1" * 12),
        ("library", "torch"): ("2", "3"),
        ("device", "threads"): ("1", "2"),
        ("commit", "commit"): ("a" * 12, "b" * 12),
        ("score", "UA (%) ↑"): ("50.0", "75.0"),
        ("score", "RA (%) ↑"): ("—", "50.0"),
    }
    changes = {row.what: row.change for row in record_differences(a, b) if row.group == "score"}
    assert changes == {"UA (%) ↑": "+25.0", "RA (%) ↑": "—"}


def test_parts_of_a_result_are_rows_of_their_own_with_few_digits():
    parts = {"RA after 1": 0.8285714387893677, "RA after 2": 0.5, "unknown": None}
    others = {"RA after 1": 0.9714285731315613, "RA after 2": 0.5, "unknown": None, "UA of B": 1.0}
    a, b = (made_record(attacks={"relearn": attack([True], parts=each)}) for each in (parts, others))
    rows = [row for row in record_differences(a, b) if row.group == "attack"]
    assert {row.what: (row.a, row.b) for row in rows} == {
        "relearn, parts: RA after 1": ("0.828571", "0.971429"),
        "relearn, parts: UA of B": ("—", "1.0"),
    }
    assert all(row.outcome for row in rows), "what came out is not how it was made"


def test_numbers_that_differ_beyond_the_digits_shown_are_given_whole():
    a, b = (made_record(method_changes={"settings": {"lr": lr}}) for lr in (0.1, 0.1 + 1e-12))
    (row,) = record_differences(a, b)
    assert (row.a, row.b) == ("0.1", str(0.1 + 1e-12))


def test_small_differences_and_those_beside_a_value_are_not_hidden():
    a, b = (made_record(scores={"ua": value}) for value in (0.5, 0.5 + 1e-9))
    assert [row.cells[1:] for row in record_differences(a, b)] == [["50.0", "50.0", "+1e-07"]]
    score = a.scores["ua"].model_copy(update={"missing": 2})
    assert found(a, a.model_copy(update={"scores": {"ua": score}})) == {("score", "ua, missing"): ("0", "2")}


def test_a_metric_that_is_not_known_here_is_shown_as_it_is():
    a = made_record(scores={"ua": 0.5})
    score = a.scores["ua"]
    b = a.model_copy(update={"scores": {"ua": score, "novel": score}})
    assert ("score", "novel") in found(a, b)
    assert found(a, b)["score", "novel"] == ("—", "0.5")


def test_what_little_differs_where_the_result_is_the_same():
    a, b = (made_record(scores={"ua": 0.5, "unlearn_time": value}) for value in (1.0, 2.0))
    assert alike(record_differences(a, b)) == "times"
    assert alike(record_differences(a, a.model_copy(update={"created": "x"}))) == "times"
    again = made_record(seed=1, scores={"ua": 0.5, "unlearn_time": 1.0})
    assert alike(record_differences(a, again)) == "seed and times"
    assert alike(record_differences(a, made_record(scores={"ua": 0.6, "unlearn_time": 1.0}))) is None
