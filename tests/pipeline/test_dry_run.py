"""`run --dry-run`: counts are exact, times are what single steps take, nothing is left behind."""

from __future__ import annotations

import re
import time

import pytest
import torch

from tests.support.small_world import IMAGES, debris, write_method
from unlearnbench.compute.precision import Resources
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.methods.finetune import Finetune
from unlearnbench.methods.original import Original
from unlearnbench.methods.retrain import Retrain
from unlearnbench.pipeline import dry_run as module
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.dry_run import probe
from unlearnbench.pipeline.planning import planned_costs
from unlearnbench.tasks.digits_class import STEPS, DigitsClass

pytestmark = pytest.mark.usefixtures("small")


def test_counts_are_those_of_the_protocol():
    task = DigitsClass("3")
    found = probe(Cell(Finetune(steps=40), task), seconds=0.1)
    p = task.protocol
    assert found.images == p.forget_images + 9 * p.retain_images
    assert found.evaluations == found.images * p.sampler.steps * 2, "guidance asks twice"
    assert found.batch == p.chunk
    assert found.sampling > 0
    assert found.unlearning is not None and found.unlearning > 0


def test_time_is_a_steps_time_by_the_number_of_steps(monkeypatch):
    """A network that takes 20 ms a call, and a method of 10 ms a step and 3 s before, by a clock of the test's own."""
    task, now = DigitsClass("3"), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    chunks, steps = -(-len(task.plan()) // task.protocol.chunk), task.protocol.sampler.steps

    def slow(self, *given, **more):
        now[0] += 0.02
        return torch.zeros(1)

    monkeypatch.setattr("unlearnbench.diffusion.model.Diffusion.sample", slow)
    found = probe(Cell(Original(), task), seconds=0.1)
    assert found.sampling == pytest.approx(0.02 * chunks * steps)
    assert found.unlearning is None

    def unlearn(self, model, task, prepared=None):
        now[0] += 3
        for _ in range(task.steps(self.steps)):
            now[0] += 0.01
        return model

    monkeypatch.setattr(Finetune, "unlearn", unlearn)
    found = probe(Cell(Finetune(steps=1000), task), seconds=0.1)
    assert found.unlearning == pytest.approx(13)


def test_a_retraining_takes_the_steps_of_the_originals_training(monkeypatch):
    """A training of 10 ms a step and 3 s before, by a clock of the test's own."""
    task, now = DigitsClass("3"), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module, "_step", lambda *given: (1, 0.0, 0.0))

    def train(self, seed, which="both"):
        now[0] += 3 + 0.01 * self.steps(self.training_steps)
        return self.pretrained()

    monkeypatch.setattr(DigitsClass, "train", train)
    found = probe(Cell(Retrain(), task))
    assert found.steps == planned_costs(Cell(Retrain(), task)).steps == task.training_steps == STEPS
    assert found.unlearning == pytest.approx(3 + 0.01 * STEPS)


@pytest.mark.parametrize(("precision", "each"), [("fp32", 2.0), ("bf16", 2.0)])
def test_training_images_are_counted_as_they_are_drawn_in_fp32(monkeypatch, precision, each):
    seconds = {"fp32": 2.0, "bf16": 0.5}
    monkeypatch.setattr(module, "_step", lambda cell, *rest: (10, seconds[cell.resources.precision], 0.0))
    monkeypatch.setattr(DigitsClass, "undrawn", lambda self, side: 15)
    task = DigitsClass("3")
    found = probe(Cell(Finetune(steps=1), task, resources=Resources(precision)), seconds=0.01)
    assert found.training_images == 15, "of the one side that it trains on"
    assert found.drawing == 2 * task.protocol.sampler.steps * each
    assert found.sampling == -(-len(task.plan()) // 10) * task.protocol.sampler.steps * seconds[precision]


def test_compiling_is_counted_and_the_compiled_network_is_timed(monkeypatch):
    """A minute for the first call, 10 ms for any other, by a clock of the test's own."""
    task, now = DigitsClass("3"), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Compiled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.wait = inner, 60.0

        def forward(self, *given, **named):
            now[0] += self.wait
            self.wait = 0.01
            return self.inner(*given, **named)

    monkeypatch.setattr(torch, "compile", lambda module, dynamic: Compiled(module))
    steps = -(-len(task.plan()) // task.protocol.chunk) * task.protocol.sampler.steps
    found = probe(Cell(Original(), task, resources=Resources(compile=True)), seconds=0.1)
    assert found.sampling == pytest.approx(60 + 0.01 * steps)


def test_the_largest_batch_that_fits_is_found(monkeypatch):
    task, tried = DigitsClass("3"), []

    def sample(self, y, seeds, **more):
        tried.append(len(y))
        if len(y) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return torch.zeros(len(y))

    monkeypatch.setattr("unlearnbench.diffusion.model.Diffusion.sample", sample)
    found = probe(Cell(Original(), task), seconds=0.01)
    assert found.batch == max(size for size in tried if size <= 3)
    assert tried[0] == task.protocol.chunk

    def never(self, y, seeds, **more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("unlearnbench.diffusion.model.Diffusion.sample", never)
    with pytest.raises(torch.OutOfMemoryError):
        probe(Cell(Original(), task), seconds=0.01)


def test_the_command_says_what_it_would_take_and_leaves_nothing(cli, tmp_path, monkeypatch, fresh_store):
    monkeypatch.setattr(module, "SECONDS", 0.1)
    mine = write_method(tmp_path, "return model", fields="steps: int = 5")
    said = cli(
        "run", "--method", f"finetune,{mine}", "--seeds", "0-2", "--forget", "3,8", "--results", "here", "--dry-run"
    )
    assert said.code == 0, said.err
    assert re.search(rf"^ *finetune +6 +0 +{IMAGES} +60 ", said.out, re.M), "three seeds of two concepts, 60 steps each"
    assert re.search(rf"^ *original +2 +0 +{IMAGES} +— ", said.out, re.M)
    assert re.search(r"memory [\d.,]+ GiB \(the machine's\); disk \d+ MiB of weights and images, ", said.out)
    assert "on one device in total" in said.out
    assert not (tmp_path / "here").exists()
    assert not fresh_store.exists() or not any(fresh_store.iterdir())
    assert debris(tmp_path) == []


def test_what_is_done_is_counted_and_left_out_of_the_time(cli, tmp_path, monkeypatch, fresh_store):
    monkeypatch.setattr(module, "SECONDS", 0.1)
    words = ("run", "--method", "finetune", "--set", "steps=2", "--results", "here")
    assert cli(*words).code == 0
    said = cli(*words, "--seeds", "0-1", "--jobs", 2, "--dry-run")
    assert said.code == 0, said.err
    assert re.search(r"^ *finetune +2 +1 ", said.out, re.M)
    assert re.search(r"^ *original +1 +1 .* 0.0 s *$", said.out, re.M)
    assert " with 2 jobs at a time" in said.out


def test_the_trial_of_unlearning_has_the_device_to_itself(monkeypatch):
    order, drawn, step, unlearning, to = [], [], module._step, module._unlearning, Diffusion.to

    def moved(self, *words, **options):
        order.append((self in drawn, *words))
        return to(self, *words, **options)

    monkeypatch.setattr(module, "_step", lambda cell, model, *words: drawn.append(model) or step(cell, model, *words))
    monkeypatch.setattr(module, "_unlearning", lambda cell: order.append("trial") or unlearning(cell))
    monkeypatch.setattr(Diffusion, "to", moved)
    probe(Cell(Original(), DigitsClass("3")), seconds=0.01)
    assert order[order.index("trial") - 1] == (True, "cpu"), "the model that images were drawn from has left it"


def test_what_stays_in_the_store_is_weights_and_images():
    task = DigitsClass("3")
    images = len(task.plan()) * 3 * 8 * 8
    assert probe(Cell(Original(), task), seconds=0.01).stored == images, "the original changes nothing"
    trained = sum(4 * value.numel() for value in task.pretrained().select("full").values())
    assert probe(Cell(Finetune(steps=2, batch_size=4), task), seconds=0.01).stored == trained + images


def test_too_little_memory_and_disk_are_told(cli, monkeypatch, fresh_store):
    monkeypatch.setattr(module, "SECONDS", 0.1)
    monkeypatch.setattr(module, "room", lambda device, store: module.Room(1, "a small card", 1))
    said = cli("run", "--method", "finetune", "--dry-run")
    assert "is more than this machine has: see --memory and --precision" in said.out
    assert "not enough disk space" in said.err
