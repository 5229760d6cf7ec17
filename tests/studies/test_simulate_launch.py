"""The simulated launch of a board against answers by hand, its bound and its conservation of work."""

import math

import numpy as np
import pytest

from tests.studies.simulate_launch import (
    CLOSE,
    HOUR,
    OPEN,
    TITLE,
    Launch,
    attacks_apart,
    board,
    hours,
    known,
    replaced,
    seconds_of,
    section,
    simulate,
)
from tests.support.small_world import ROOT

FREE = Launch(handover=0, start=0, overhead=0)
ROUGH = Launch(mtbf=40, respawn=5, start=1)
"""Workers that often die within a job of `drawn`."""


def drawn(jobs, seed=0):
    return np.random.default_rng(seed).exponential(20, size=jobs).tolist()


@pytest.fixture(scope="module")
def records():
    return known(ROOT / "results")


def test_one_worker_takes_the_sum():
    durations = [3.0, 1.0, 2.5]
    assert simulate(durations, 1).makespan == pytest.approx(8 + sum(0.5 + 0.01 + seconds for seconds in durations))


def test_two_workers_are_served_one_after_the_other():
    done = simulate([5, 5, 1], 2, Launch(handover=1, start=10, overhead=0.5))
    # handed over at 11 and 12, done at 16.5 and 17.5; the third is handed over at 17.5 and done at 19
    assert done.makespan == 19
    assert done.utilisation == pytest.approx(11 / (2 * 19))


def test_a_driver_that_is_slower_than_the_jobs_is_the_limit():
    assert simulate([1] * 50, 1000, Launch(handover=2, start=0, overhead=0)).makespan == 50 * 2 + 1


def test_the_longest_first_beats_the_given_order_on_the_known_example():
    durations = [1, 1, 2]
    assert simulate(durations, 2, FREE).makespan == 3
    assert simulate(durations, 2, FREE, expected=durations).makespan == 2


def test_the_longest_first_is_at_its_worst_where_graham_says():
    durations = [5, 5, 4, 4, 3, 3, 3]  # 4/3 - 1/(3 m) of the best, 9, on m = 3 workers
    assert simulate(durations, 3, FREE, expected=durations).makespan == 11


def test_equal_expectations_keep_the_given_order():
    durations = drawn(40)
    assert simulate(durations, 3, expected=[1] * 40) == simulate(durations, 3)


class Deaths:
    """A generator of known lives."""

    def __init__(self, *lives):
        self.lives = [*lives]

    def exponential(self, _):
        return self.lives.pop(0)


@pytest.mark.parametrize(("kept", "makespan", "lost"), [(0.0, 20, 6), (0.5, 17, 3)])
def test_a_death_by_hand(kept, makespan, lost):
    launch = Launch(handover=0, start=1, overhead=1, mtbf=1, respawn=2, kept=kept)
    done = simulate([8], 1, launch, Deaths(8, 1000))
    # begun at 1, at work from 2, dead at 8, back at 10, ready at 11, at work from 12
    assert (done.makespan, done.lost, done.useful, done.retries, done.failed) == (makespan, lost, 8, 1, 0)


def test_another_worker_takes_a_lost_job_at_once():
    done = simulate([8, 2], 2, Launch(handover=0, start=0, overhead=0, mtbf=1, respawn=50), Deaths(5, 1000, 1000))
    assert (done.makespan, done.lost, done.tries) == (13, 5, (2, 1))


def test_a_job_fails_at_its_third_death():
    launch = Launch(handover=0, start=0, overhead=0, mtbf=1, respawn=1, kept=0.5)
    done = simulate([20], 1, launch, Deaths(4, 5, 5, 1000))
    assert (done.failed, done.tries, done.useful, done.longest) == (1, (3,), 0, 0)
    # at work from 0 to 4, 5 to 10 and 11 to 16
    assert done.lost == done.busy == 4 + 5 + 5
    assert done.makespan == 16
    assert done.lost_share == 1 and math.isnan(done.ratio)


def test_a_worker_that_dies_while_the_driver_hands_over_costs_no_try():
    done = simulate([4], 1, Launch(handover=2, start=0, overhead=0, mtbf=1, respawn=10), Deaths(1, 1000))
    # dead at 1, the driver free at 2, the worker back at 11, handed over to at 13
    assert (done.makespan, done.tries, done.lost) == (17, (1,), 0)


@pytest.mark.parametrize("workers", [1, 2, 7, 30, 200])
@pytest.mark.parametrize("launch", [Launch(), FREE, ROUGH, ROUGH._replace(kept=0.5)], ids=str)
@pytest.mark.parametrize("ordered", [False, True])
def test_no_launch_beats_the_bound_or_makes_work_up(workers, launch, ordered):
    durations = drawn(100)
    done = simulate(durations, workers, launch, expected=durations if ordered else None)
    assert done.makespan >= done.bound * (1 - 1e-12)
    assert 0 < done.utilisation <= 1 + 1e-12
    assert done.useful + done.lost == pytest.approx(done.busy)
    assert done.busy <= workers * done.makespan * (1 + 1e-12)
    assert done.useful == pytest.approx(sum(d for d, times in zip(durations, done.done, strict=True) if times))
    if launch.mtbf == math.inf:
        assert done.done == done.tries == (1,) * 100
        assert done.lost == pytest.approx(0)


@pytest.mark.parametrize("kept", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(10))
def test_every_job_is_done_once_or_has_failed_three_times(kept, seed):
    done = simulate(drawn(200, seed), 9, ROUGH._replace(kept=kept), np.random.default_rng(seed))
    assert 0 < done.failed < 100 and done.retries > 0
    for times, tries in zip(done.done, done.tries, strict=True):
        assert times in (0, 1) and 1 <= tries <= 3
        assert times or tries == 3


def test_without_a_limit_of_tries_all_are_done():
    assert simulate(drawn(200), 9, ROUGH._replace(tries=10**9)).done == (1,) * 200


def test_lost_work_is_what_failures_at_a_constant_rate_cost():
    """From nothing, a job of d seconds is expected to spend (exp(d / mtbf) - 1) mtbf until it is done."""
    launch = Launch(handover=0, start=0, overhead=0, mtbf=50, respawn=0, tries=10**9)
    done = simulate([40] * 4000, 5, launch)
    assert done.busy / 4000 == pytest.approx(math.expm1(40 / 50) * 50, rel=0.03)


def test_equal_seeds_give_equal_outcomes():
    ones = [simulate(drawn(100), 5, ROUGH, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert ones[0] == ones[1] != ones[2]


def test_the_board_holds_recorded_seconds_in_nested_order(records):
    seconds, expected = board(records, 500)
    again = board(reversed(records), 500)
    assert (seconds == again[0]).all() and (expected == again[1]).all()
    assert {*seconds} <= {seconds_of(one) for one in records}
    methods = {(one.task, one.label()) for one in records}
    assert np.count_nonzero(np.diff(expected)) < len(methods)  # each method's cells lie together


def test_a_cell_is_its_stages_its_sampling_and_its_attacks(records):
    one = next(one for one in records if one.task == "digits-text" and one.attacks)
    parts = [one.scores["prepare_time"].value, one.scores["unlearn_time"].value]
    parts += [attack.seconds or 0 for attack in one.attacks.values()]
    assert seconds_of(one) == pytest.approx(12 + sum(parts))
    assert attacks_apart([one]) == pytest.approx(12 + sum(parts[:2]) + max(parts[2:]))


def test_the_page_is_made_again_the_same_and_the_rest_is_kept(records):
    part = section(records[::20], 60, 1)
    assert part == section(records[::20], 60, 1)
    page = replaced("", part)
    assert page == f"{TITLE}\n\n{OPEN}\n{part}{CLOSE}\n"
    around = page.replace(OPEN, f"Measured.\n\n{OPEN}") + "\nAfter.\n"
    assert replaced(around, "new\n") == f"{TITLE}\n\nMeasured.\n\n{OPEN}\nnew\n{CLOSE}\n\nAfter.\n"
    assert replaced("# Other\n", "new\n") == f"# Other\n\n{OPEN}\nnew\n{CLOSE}\n"


@pytest.mark.parametrize("page", [OPEN, CLOSE, f"{CLOSE}{OPEN}", f"{OPEN}{OPEN}{CLOSE}"])
def test_a_page_with_half_a_mark_is_left(page):
    with pytest.raises(ValueError, match="once each"):
        replaced(page, "new\n")


def test_hours_show_three_digits():
    assert [hours(value * HOUR) for value in (0.91393, 13.37, 227.8, 3333)] == ["0.914", "13.4", "228", "3,333"]
