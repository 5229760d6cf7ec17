"""Seconds per image, relative to the original's: by a clock that stands still but for what a model takes."""

import pytest
import torch

from unlearnbench.compute import environment
from unlearnbench.pipeline import unlearning

RELATIVE_TIME = unlearning._relative_time  # in tests, runs do without it


class Slow:
    """A model that takes some seconds an image, ten times as many in its first call, and now and then is held up."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.calls = clock, seconds, 0

    def sample(self, y, seeds):
        assert len(y) == len(seeds)
        factor = {0: 10, 2: 3}.get(self.calls, 1)
        self.calls += 1
        self.clock[0] += self.seconds * len(y) * factor


class Task:
    device = "cpu"

    def names(self, group):
        return torch.zeros(1 if group == "forget" else 9, dtype=torch.long)


@pytest.mark.parametrize("seconds", [1.0, 2.5, 0.5])
def test_it_is_the_ratio_of_the_fastest_rounds_after_the_first(monkeypatch, seconds):
    clock = [0.0]
    monkeypatch.setattr(environment.time, "perf_counter", lambda: clock[0])
    model, original = Slow(clock, seconds), Slow(clock, 1.0)
    assert RELATIVE_TIME(model, original, Task()) == pytest.approx(seconds)
    assert model.calls == original.calls == 5
