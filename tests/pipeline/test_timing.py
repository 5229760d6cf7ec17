"""Seconds per image, relative to the original's: by a clock that stands still but for what a step takes."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny_model import TinyTask
from unlearnbench import registry
from unlearnbench.compute import environment
from unlearnbench.diffusion.model import Guidance
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.pipeline import runner, timing
from unlearnbench.pipeline.cell import Cell
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_class import DigitsClass

relative_time, seconds_of_sampling = timing.relative_time, timing.seconds_of_sampling  # in tests, runs do without it
EMBED = 0.5
STEPS = 20


class Paid(Guidance):
    """Guidance whose step i takes `cost(i)` seconds by the clock; where it is rough, ten times as many the first time
    that it is called, and now and then it is held up."""

    def __init__(self, clock, cost, rough):
        self.clock, self.cost, self.rough, self.calls, self.images = clock, cost, rough, 0, []

    def start(self, n):
        self.clock[0] += EMBED
        self.images.append(n)

    def __call__(self, model, x_t, t, i, condition, null, w):
        self.calls += 1
        self.clock[0] += self.cost(i) * (
            (10 if self.calls == 1 else 3 if self.calls % 29 == 0 else 1) if self.rough else 1
        )
        return x_t


@pytest.fixture
def paid(monkeypatch):
    """A model whose steps take this long, and calls how long; `clock` moves with nothing else."""
    clock = [0.0]
    monkeypatch.setattr(environment.time, "perf_counter", lambda: clock[0])

    def made(cost, steps=STEPS, rough=False):
        model = TinyTask().pretrained().eval()
        model.alpha_bar = torch.linspace(0.999, 0.001, 1000)
        model.guidance, model.sampler = Paid(clock, cost, rough), Sampler(steps=steps, guidance=2.0)
        return model

    return made


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 50])
def test_seconds_are_those_of_all_steps_and_what_comes_before_them(paid, steps):
    model = paid(lambda i: 2.0, steps)
    y = torch.zeros(3, dtype=torch.long)
    assert seconds_of_sampling(model, y, "cpu") == pytest.approx(EMBED + 2.0 * steps)
    assert model.guidance.calls <= 8


def test_steps_count_where_they_cost_more(paid):
    """As of guidance that begins after some steps, or ends, and one that reads the prompts at its first step."""
    late, early, first = (
        (lambda i: 1.0 + 2.0 * (i >= 10)),
        (lambda i: 1.0 + 2.0 * (i < 10)),
        (lambda i: 1.0 + 9 * (i < 1)),
    )
    y = torch.zeros(1, dtype=torch.long)
    for cost, seconds in ((late, 40), (early, 40), (first, 29)):
        model = paid(cost)
        assert seconds_of_sampling(model, y, "cpu") == pytest.approx(EMBED + seconds, rel=0.1)


@pytest.mark.parametrize("seconds", [1.0, 2.5, 0.5])
def test_it_is_the_ratio_of_the_fastest_rounds_after_the_first(paid, seconds):
    cell = Cell(registry.load_method("original")(), TinyTask())
    model, original = paid(lambda i: seconds, rough=True), paid(lambda i: 1.0, rough=True)
    expected = (EMBED + STEPS * seconds) / (EMBED + STEPS)
    assert relative_time(cell, model, original) == pytest.approx(expected, rel=0.02)
    drawn = len(model.guidance.images) and model.guidance.calls * model.guidance.images[0]
    assert drawn < STEPS * 12, "fewer steps than a dozen images take"


def test_with_little_memory_fewer_images_are_timed_and_other_errors_are_not_hidden(paid, monkeypatch):
    cell = Cell(registry.load_method("original")(), TinyTask())
    asked = []

    def short(network, y, device):
        asked.append(len(y))
        if len(y) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    monkeypatch.setattr(timing, "seconds_of_sampling", short)
    assert relative_time(cell, None, None) == 1.0
    assert list(dict.fromkeys(asked)) == sorted(set(asked), reverse=True) and asked[-1] == 1
    monkeypatch.setattr(timing, "seconds_of_sampling", lambda *words: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        relative_time(cell, None, None)


@pytest.mark.usefixtures("small")
def test_nothing_is_timed_before_the_weights_are_stored_and_a_failure_is_a_missing_value(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    stored = []

    def fails(cell, weights):
        stored.append(len(list((store.root / "weights").glob("*/meta.json"))))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(timing, "timed_beside_original", fails)
    cls = registry.load_method("gradient_ascent")
    cell = Cell(cls(steps=1, batch_size=4), DigitsClass("3"), overrides={"steps": 1, "batch_size": 4})
    record = runner.run_cell(cell, store, tmp_path / "results")
    score = record.scores["relative_time"]
    assert stored == [1] and record.status == "ok" and score.value is None and "out of memory" in score.reason

    monkeypatch.setattr(timing, "timed_beside_original", lambda cell, weights: 3.0)
    record.path(tmp_path / "results").unlink()
    again = runner.run_cell(cell, store, tmp_path / "results")
    assert again.scores["relative_time"].value == 3.0, "a failure is not kept"
    monkeypatch.setattr(timing, "timed_beside_original", lambda *words: pytest.fail("it is in the store"))
    record.path(tmp_path / "results").unlink()
    assert runner.run_cell(cell, store, tmp_path / "results").scores["relative_time"].value == 3.0
    assert again.weights == record.weights


def test_within_a_tuning_budget_nothing_is_timed(tmp_path):
    cost = {"evaluations": 12}
    assert timing.timed_cost(None, {}, cost, {}, Store(tmp_path), False)["relative_time"] is None
    known = {"evaluations": None, "relative_time": 2.0}
    assert timing.timed_cost(None, {}, known, {}, Store(tmp_path), False) == known, "of an earlier version's entry"
