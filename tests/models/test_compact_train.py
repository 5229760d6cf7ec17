"""Training in sittings: a step by its formula, stopped equal to never stopped, a decay from any step, whole files."""

from __future__ import annotations

import copy
import os
import signal

import numpy as np
import pytest
import torch

from unlearnbench.data.image_sets import Images
from unlearnbench.errors import Damaged, UserError
from unlearnbench.models import compact_train
from unlearnbench.models.compact_ddpm import CompactDDPM
from unlearnbench.models.compact_train import (
    BETAS,
    CompactTraining,
    Decay,
    open_training,
    rate_at,
    read_training_state,
    told_to_stop,
    train_compact,
    write_state,
)
from unlearnbench.models.ddpm_train import TrainingImages, draw_batch
from unlearnbench.training import Diverged, seeded

RNG = np.random.RandomState(0)
IMAGES = Images(RNG.randint(0, 256, (11, 3, 8, 8), dtype=np.uint8), np.arange(11) % 10)
PICTURES = TrainingImages(IMAGES, np.arange(11))


def training(seed=5, batch=4, **settings):
    with seeded(0):
        model = CompactDDPM(size=8, widths=(8, 16), layers=1, head=8, groups=4)
    return CompactTraining(model, PICTURES, seed, batch=batch, **settings)


def until(work, step):
    return lambda: work.done >= step


def sitting(out, steps, decay_steps=None, **settings):
    """Open what is in the folder, take so many steps, and leave."""
    work = training(**settings)
    path = open_training(work, out, decay_steps)
    train_compact(work, path, until(work, work.done + steps))
    return work


def assert_same(one, other):
    for name, value in one.values.items():
        assert torch.equal(value, other.values[name]), name
        assert torch.equal(one.mean[name], other.mean[name]), name
    moments, others = one.optimiser.state_dict()["state"], other.optimiser.state_dict()["state"]
    for number, each in moments.items():
        assert all(torch.equal(value, others[number][name]) for name, value in each.items())
    assert (one.done, one.since) == (other.done, other.since)
    assert [row[:4] for row in one.rows] == [row[:4] for row in other.rows], "all but the seconds"


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(compact_train, "LOGGED_EVERY", 2)


def test_two_steps_are_adamw_on_the_clipped_gradient_with_a_running_mean():
    work = training()
    replay = copy.deepcopy(work.model)
    values = dict(replay.named_parameters())
    mean = {name: value.detach().clone() for name, value in values.items()}
    first, second = ({name: torch.zeros_like(value) for name, value in values.items()} for _ in range(2))
    for step in range(2):
        work.advance()
        batch, t, noise, shown = draw_batch(PICTURES, step, 4, 5, 1000, "cpu")
        a = replay.alpha_bar[t].view(-1, 1, 1, 1)
        v = a.sqrt() * noise - (1 - a).sqrt() * batch.x0
        condition = replay.embed(batch.y).where(shown, replay.null(4))
        error = replay.predict(a.sqrt() * batch.x0 + (1 - a).sqrt() * noise, t, condition) - v
        grads = torch.autograd.grad((error**2).mean(), list(values.values()))
        length = torch.sqrt(sum((grad**2).sum() for grad in grads))
        rate = 6e-4 * (step + 1) / 500
        for (name, value), grad in zip(values.items(), grads, strict=True):
            grad = grad * min(1.0, 1.0 / (length.item() + 1e-6))
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * grad
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * grad**2
            m, s = first[name] / (1 - BETAS[0] ** (step + 1)), second[name] / (1 - BETAS[1] ** (step + 1))
            value.data = value.data * (1 - 0.01 * rate) - rate * m / (s.sqrt() + 1e-8)
        kept = (1 + step) / (10 + step)
        mean = {name: kept * value + (1 - kept) * values[name].detach() for name, value in mean.items()}
    for name, value in work.values.items():
        torch.testing.assert_close(value.detach(), values[name].detach(), atol=1e-7, rtol=1e-5, msg=name)
        torch.testing.assert_close(work.mean[name], mean[name], atol=1e-7, rtol=1e-5, msg=name)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_training_in_sittings_is_bit_for_bit_the_one_that_was_never_stopped(tmp_path, often, bf16):
    whole = sitting(tmp_path / "whole", 5, bf16=bf16)
    for steps in (1, 3, 1):
        broken = sitting(tmp_path / "broken", steps, bf16=bf16)
    assert_same(broken, whole)
    logs = [(tmp_path / name / "constant.csv").read_text().splitlines() for name in ("whole", "broken")]
    without_seconds = [[line.rpartition(",")[0] for line in log] for log in logs]
    assert without_seconds[0] == without_seconds[1]
    assert logs[0][0] == "step,images,loss,rate,seconds"
    assert [line.split(",")[:2] for line in logs[0][1:]] == [["2", "8"], ["4", "16"]]


def test_rows_after_the_last_state_are_not_in_the_log_twice(tmp_path, often):
    sitting(tmp_path, 2)
    state = (tmp_path / "constant.pt").read_bytes()
    sitting(tmp_path, 2)
    (tmp_path / "constant.pt").write_bytes(state)  # as if the process had been killed before it wrote the second
    sitting(tmp_path, 4)
    rows = (tmp_path / "constant.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["2", "4", "6"]


def test_the_rate_rises_stays_and_falls_to_zero():
    assert rate_at(0, None) == pytest.approx(6e-4 / 500)
    assert rate_at(499, None) == rate_at(10**6, None) == 6e-4
    decay = Decay(1000, 4)
    assert [rate_at(step, decay) / 6e-4 for step in (999, 1000, 1001, 1002, 1003, 1004)] == pytest.approx(
        [1, 1, 0.75, 0.5, 0.25, 0]
    )


def test_a_decay_begins_anywhere_goes_on_when_stopped_and_leaves_the_constant_phase_alone(tmp_path, often):
    whole = sitting(tmp_path / "whole", 6)
    sitting(tmp_path / "out", 3)
    before = (tmp_path / "out" / "constant.pt").read_bytes()
    first = sitting(tmp_path / "out", 2, decay_steps=4)
    assert (first.done, first.complete) == (5, False)
    second = sitting(tmp_path / "out", 99, decay_steps=4)
    assert (second.done, second.complete) == (7, True)
    assert sitting(tmp_path / "out", 99, decay_steps=4).done == 7, "nothing is left to do"
    at_once = training()
    at_once.load(read_training_state(tmp_path / "out" / "constant.pt"), tmp_path)
    at_once.decay = Decay(3, 4)
    for _ in range(4):
        at_once.advance()
    assert_same(second, at_once)
    assert (tmp_path / "out" / "constant.pt").read_bytes() == before
    assert_same(sitting(tmp_path / "out", 3), whole)
    again = sitting(tmp_path / "out", 99, decay_steps=2)
    assert again.decay == Decay(6, 2) and again.done == 8
    assert sorted(path.name for path in (tmp_path / "out").glob("*.pt")) == ["constant.pt", "decay-3.pt", "decay-6.pt"]


def test_a_decay_of_another_length_or_from_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no .*constant.pt that a decay could begin from: train without"):
        sitting(tmp_path, 1, decay_steps=4)
    sitting(tmp_path, 1)
    sitting(tmp_path, 1, decay_steps=4)
    with pytest.raises(UserError, match=r"decay-1.pt is of a decay of 4 steps, not 5"):
        sitting(tmp_path, 1, decay_steps=5)


@pytest.mark.parametrize("other", [{"seed": 6}, {"batch": 3}])
def test_a_state_of_another_training_is_named_and_left(tmp_path, other):
    sitting(tmp_path, 1)
    before = (tmp_path / "constant.pt").read_bytes()
    with pytest.raises(UserError, match=r"constant.pt is of another training .*--out"):
        sitting(tmp_path, 1, **other)
    assert (tmp_path / "constant.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"nothing", None])
def test_a_damaged_state_is_named(tmp_path, content):
    path = tmp_path / "constant.pt"
    if content is None:
        torch.save({"seed": 5}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(Damaged, match=r"constant.pt .*: move it away"):
        sitting(tmp_path, 1)


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    work = sitting(tmp_path, 1)
    before = (tmp_path / "constant.pt").read_bytes()

    def full(_, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        write_state(work, tmp_path / "constant.pt")
    assert (tmp_path / "constant.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["constant.csv", "constant.pt"]


def test_the_state_is_written_while_the_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(compact_train, "SAVED_EVERY", 0.0)
    work, seen = training(), []
    path = open_training(work, tmp_path)

    def stop():
        seen.append(read_training_state(path)["done"] if path.is_file() else 0)
        return work.done >= 3

    train_compact(work, path, stop)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_keeps_it(tmp_path, number):
    before = signal.getsignal(number)
    work = training()
    path = open_training(work, tmp_path)
    with told_to_stop() as told:

        def stop():
            if work.done == 2:
                os.kill(os.getpid(), number)
            return told()

        train_compact(work, path, stop)
    assert read_training_state(path)["done"] == 2
    assert signal.getsignal(number) is before


def test_a_loss_that_is_not_finite_changes_nothing(tmp_path):
    work = sitting(tmp_path, 1)
    with torch.no_grad():
        next(iter(work.values.values())).fill_(torch.nan)
    mean = {name: value.clone() for name, value in work.mean.items()}
    with pytest.raises(Diverged, match="step 1"):
        train_compact(work, tmp_path / "constant.pt", until(work, 3))
    assert all(torch.equal(value, mean[name]) for name, value in work.mean.items())
    assert read_training_state(tmp_path / "constant.pt")["done"] == 1
