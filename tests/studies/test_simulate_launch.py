"""The simulated launch against answers by hand and its lower bound."""

import numpy as np
import pytest

from tests.studies import simulate_launch
from tests.studies.simulate_launch import board, seconds_of, simulate
from tests.support.small_world import ROOT
from unlearnbench.records.folder import load_all


@pytest.fixture
def free(monkeypatch):
    """No time is spent but on the jobs themselves."""
    for name in ("HANDOVER", "START", "OVERHEAD", "RESPAWN"):
        monkeypatch.setattr(simulate_launch, name, 0.0)


def test_one_worker_takes_the_sum():
    durations = [3.0, 1.0, 2.5]
    assert simulate(durations, 1).seconds == pytest.approx(8 + sum(0.01 + 0.5 + one for one in durations))


def test_two_workers_are_served_one_after_the_other(monkeypatch):
    monkeypatch.setattr(simulate_launch, "HANDOVER", 1.0)
    # ready at 8, handed over at 9 and 10, done at 14.5 and 15.5; the third is handed over at 15.5, done at 17
    assert simulate([5, 5, 1], 2).seconds == 17


def test_longest_first_is_faster_on_the_known_example(free):
    assert simulate([1, 1, 2], 2).seconds == 3
    assert simulate([2, 1, 1], 2).seconds == 2


def test_grahams_worst_case(free):
    assert simulate([5, 5, 4, 4, 3, 3, 3], 3).seconds == 11  # 9 would do


def test_a_job_longer_than_workers_live_fails_after_three_tries(free):
    found = simulate([1000.0], 1, mtbf=1.0)
    assert found.failed == 1
    assert 0 < found.seconds < 100


def test_failures_cost_time_and_equal_seeds_are_equal(free):
    durations = np.random.default_rng(0).exponential(20, size=300)
    kept, lost = simulate(durations, 5), simulate(durations, 5, mtbf=500.0)
    assert kept.seconds >= max(durations.sum() / 5, durations.max())
    assert lost.seconds > kept.seconds
    assert lost == simulate(durations, 5, mtbf=500.0) != simulate(durations, 5, mtbf=500.0, seed=1)


def test_lost_work_is_what_failures_at_a_constant_rate_cost(free, monkeypatch):
    """From nothing, a job of d seconds is expected to take (exp(d / mtbf) - 1) mtbf until it is done."""
    monkeypatch.setattr(simulate_launch, "TRIES", 10**9)
    assert simulate([40.0] * 20_000, 1, mtbf=50.0).seconds / 20_000 == pytest.approx(np.expm1(40 / 50) * 50, rel=0.03)


def test_a_board_is_of_recorded_seconds_and_its_means_are_the_methods():
    records = [
        one for one in load_all(ROOT / "results") if one.task == "digits-class" and one.method.division == "default"
    ]
    seconds, means = board(records, 500)
    assert {*seconds} <= {seconds_of(one) for one in records}
    attacked = next(one for one in records if one.attacks)
    of_method = [seconds_of(one) for one in records if one.label() == attacked.label()]
    assert np.isclose(means, np.mean(of_method)).any()
    assert seconds_of(attacked) > 12 + sum(attack.seconds or 0 for attack in attacked.attacks.values()) - 1e-9
