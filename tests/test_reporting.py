"""Progress: what a stage took, and how long the rest is going to take."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from unlearnbench import reporting
from unlearnbench.reporting import Pace, bars, phase, span, track


class Clock:
    """Seconds that a test decides on."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(reporting.time, "perf_counter", found)
    return found


def test_the_rest_is_known_from_the_first_step_on_and_then_from_finished_cells(clock):
    pace = Pace(3, clock)
    pace.next_cell("a")
    pace.report("unlearning: steps", 0, 10)
    assert pace.rest() is None
    clock.now = 1.0
    pace.report("unlearning: steps", 1, 10)
    assert pace.rest() == pytest.approx(9 + 2 * 10), "nine steps, and two more cells like this one"
    clock.now = 10.0
    pace.report("sampling", 0, 2)
    clock.now = 15.0
    pace.report("sampling, 3 images/s", 1, 2)
    assert pace.stage_seconds == pytest.approx(5)
    assert pace.rest() == pytest.approx(5 + 2 * 20)
    clock.now = 30.0
    pace.next_cell("b")
    assert pace.rest() == pytest.approx(30 + 30), "as long as the first took, for this cell and the next"
    clock.now = 40.0
    assert pace.rest() == pytest.approx(20 + 30)


def lines(clock, quiet=False):
    """What two cells say where the output is no terminal."""
    console = Console(file=io.StringIO(), width=40)
    with bars(console, 2, quiet) as begin:
        for title in ("one", "two"):
            begin(title)
            with phase("unlearning"):
                for _ in track(range(4), 4, "steps"):
                    clock.now += 3
            for _ in track(range(2), 2, "sampling"):
                clock.now += 0.1
        reporting.tell("a note")
    return console.file.getvalue().splitlines()


def test_a_pipe_gets_a_line_for_each_stage_that_takes_a_second(clock):
    assert lines(clock) == [
        "[1/2] one",
        "[1/2] one · unlearning 12 s, about 12 s left",
        "[2/2] two",
        "[2/2] two · unlearning 12 s",
        "a note",
    ]


def test_quiet_shows_only_notes(clock):
    assert lines(clock, quiet=True) == ["a note"]


def test_a_long_stage_is_heard_of_on_its_way(clock):
    console = Console(file=io.StringIO(), width=200)
    with bars(console, 1) as begin:
        begin("one")
        for _ in track(range(3), 3, "sampling"):
            clock.now += 40
    said = console.file.getvalue().splitlines()
    assert said[1:3] == [
        "[1/1] one · sampling 40 s, about 1 min 20 s left",
        "[1/1] one · sampling 1 min 20 s, about 40 s left",
    ]


def test_the_terminal_shows_the_time_taken_and_the_rest():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with bars(console, 2) as begin:
        begin("one")
        for number in track(range(10), 10, "sampling"):
            if number == 5:
                import time

                time.sleep(0.7)
    assert "left" in console.file.getvalue() and "sampling" in console.file.getvalue()


@pytest.mark.parametrize(("seconds", "said"), [(12.4, "12 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_in_words(seconds, said):
    assert span(seconds) == said
