"""Training from scratch: one step against its formula, resumed equal to never stopped, every image once an epoch."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch

from unlearnbench.compute.precision import Resources
from unlearnbench.data.image_sets import Images
from unlearnbench.errors import Damaged, UserError
from unlearnbench.models import ddpm_train
from unlearnbench.models.ddpm import ConditionalDDPM
from unlearnbench.models.ddpm_train import TrainingImages, antithetic, draw_batch, train_ddpm

RNG = np.random.RandomState(0)
IMAGES = Images(RNG.randint(0, 256, (12, 3, 32, 32), dtype=np.uint8), np.arange(12) % 10)
PICTURES = TrainingImages(IMAGES, np.flatnonzero(IMAGES.y != 3))


def network(dropout=0.0):
    torch.manual_seed(0)
    return ConditionalDDPM(width=8, dropout=dropout)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_timesteps_come_in_pairs():
    t = antithetic(7, 1000, torch.Generator().manual_seed(1))
    assert t.shape == (7,)
    assert (t[:3] + t[4:]).tolist() == [999] * 3


def test_every_image_is_seen_once_an_epoch_and_none_that_is_left_out():
    seen = [draw_batch(PICTURES, step, 4, 5, 1000, "cpu")[0].y.tolist() for step in range(6)]
    flat, n = [y for some in seen for y in some], len(PICTURES.rows)
    assert n == 11
    for epoch in range(2):
        assert sorted(flat[epoch * n : (epoch + 1) * n]) == sorted(IMAGES.y[PICTURES.rows].tolist())
    assert flat[:n] != flat[n : 2 * n], "a new order each time"


def test_half_of_the_images_are_mirrored():
    generator = torch.Generator().manual_seed(0)
    index = torch.zeros(400, dtype=torch.long)
    x = PICTURES.batch(index, generator, "cpu").x0
    plain = torch.from_numpy(IMAGES.x[PICTURES.rows[0]]).float() / 127.5 - 1
    kept, turned = ((x == each).flatten(1).all(dim=1) for each in (plain, plain.flip(2)))
    assert (kept | turned).all()
    assert 150 < int(kept.sum()) < 250


def test_two_steps_are_adam_on_the_clipped_gradient_with_a_running_mean():
    model = network()
    replay = copy.deepcopy(model)
    train_ddpm(model, PICTURES, 2, 5, size=4)
    values = dict(replay.named_parameters())
    mean = {name: value.detach().clone() for name, value in values.items()}
    first, second = ({name: torch.zeros_like(value) for name, value in values.items()} for _ in range(2))
    for step in range(2):
        batch, t, noise, shown = draw_batch(PICTURES, step, 4, 5, 1000, "cpu")
        a = replay.alpha_bar[t].view(-1, 1, 1, 1)
        x_t = a.sqrt() * batch.x0 + (1 - a).sqrt() * noise
        condition = replay.embed(batch.y).where(shown, replay.null(4))
        loss = ((replay.predict(x_t, t, condition) - noise) ** 2).mean()
        grads = torch.autograd.grad(loss, list(values.values()), allow_unused=True, materialize_grads=True)
        length = torch.sqrt(sum((grad**2).sum() for grad in grads))
        for (name, value), grad in zip(values.items(), grads, strict=True):
            grad = grad * min(1.0, 1.0 / (length.item() + 1e-6))
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            m, v = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            value.data -= 2e-4 * m / (v.sqrt() + 1e-8)
        decay = (1 + step) / (10 + step)
        mean = {name: decay * value + (1 - decay) * values[name].detach() for name, value in mean.items()}
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.detach(), mean[name], atol=2e-6, rtol=1e-4, msg=name)
    assert not equal(state(model), state(network()))


@pytest.mark.parametrize("where", ["between", "within"])
def test_a_training_that_was_broken_off_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, where):
    """Within an update, weights and mean are of different steps: the state kept before is taken then."""
    monkeypatch.setattr(ddpm_train, "KEPT_EVERY", 2)
    whole, broken, keep = network(0.5), network(0.5), tmp_path / "deep" / "training.pt"
    train_ddpm(whole, PICTURES, 6, 5, size=4)
    step, calls = torch.optim.Adam.step, []

    def stopped(self, *given):
        result = step(self, *given)
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return result

    def drawn_until(*given):
        if given[1] == 4:
            raise KeyboardInterrupt
        return draw_batch(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if where == "within":
            patch.setattr(torch.optim.Adam, "step", stopped)
        else:
            patch.setattr(ddpm_train, "draw_batch", drawn_until)
        train_ddpm(broken, PICTURES, 6, 5, size=4, keep=keep)
    assert torch.load(keep, weights_only=True)["done"] == 4
    again = network(0.5)
    torch.manual_seed(99)  # dropout is of the step's seed
    train_ddpm(again, PICTURES, 6, 5, size=4, keep=keep)
    assert equal(state(again), state(whole))


def test_a_state_of_another_training_is_named_and_left(tmp_path, monkeypatch):
    monkeypatch.setattr(ddpm_train, "KEPT_EVERY", 1)
    keep = tmp_path / "training.pt"
    train_ddpm(network(), PICTURES, 1, 5, size=4, keep=keep)
    before = keep.read_bytes()
    for seed, size in ((6, 4), (5, 3)):
        with pytest.raises(UserError, match=r"training.pt is of another training .*: delete it, or name another"):
            train_ddpm(network(), PICTURES, 2, seed, size=size, keep=keep)
    assert keep.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["training.pt"]


def test_a_damaged_state_is_named(tmp_path):
    keep = tmp_path / "training.pt"
    keep.write_bytes(b"nothing")
    with pytest.raises(Damaged, match=r"training\.pt cannot be resumed: delete it"):
        train_ddpm(network(), PICTURES, 1, 5, size=4, keep=keep)


def hungry(monkeypatch, most):
    """The network takes no more images than this; returns how many it was asked for."""
    plain, sizes = ConditionalDDPM.predict, []

    def predict(self, x_t, t, condition):
        sizes.append(len(t))
        if len(t) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return plain(self, x_t, t, condition)

    monkeypatch.setattr(ConditionalDDPM, "predict", predict)
    return sizes


def test_a_batch_that_does_not_fit_goes_through_in_parts_with_the_same_gradient(monkeypatch):
    told = []
    monkeypatch.setattr(ddpm_train, "tell", told.append)
    whole, parts = network(), network()
    train_ddpm(whole, PICTURES, 2, 5, size=7)
    sizes = hungry(monkeypatch, 3)
    train_ddpm(parts, PICTURES, 2, 5, size=7)
    assert sizes == [7, 4, 2, 2, 2, 1, 2, 2, 2, 1], "what fits is kept for the next step"
    assert told[-1] == "too little memory for 7 images: 2 at once, their gradients added up"
    for name, value in parts.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=0, atol=2e-5, msg=name)


def test_memory_for_no_image_at_all_is_one_line(monkeypatch):
    hungry(monkeypatch, 0)
    with pytest.raises(UserError, match=r"training on one image ran out of memory \(1.00 GiB more was asked for\)"):
        train_ddpm(network(), PICTURES, 1, 5, size=4)


def test_the_next_batch_is_made_beside_the_device_and_in_order():
    main, made = threading.get_ident(), []

    def make(step):
        made.append((step, threading.get_ident()))
        return step

    assert list(ddpm_train._ahead(make, range(3, 8), "cuda")) == [3, 4, 5, 6, 7]
    assert [step for step, _ in made] == [3, 4, 5, 6, 7] and main not in {thread for _, thread in made}
    assert list(ddpm_train._ahead(make, range(0), "cuda")) == []
    assert list(ddpm_train._ahead(make, range(2), "cpu")) == [0, 1] and made[-1] == (1, main)


def test_the_compiled_network_keeps_its_names_on_the_disk(tmp_path, monkeypatch):
    class Wrapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self._orig_mod = inner

        def forward(self, *given, **named):
            return self._orig_mod(*given, **named)

    monkeypatch.setattr(ddpm_train, "KEPT_EVERY", 1)
    monkeypatch.setattr(ddpm_train, "Resources", lambda compile: Resources(compile=True))
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: Wrapped(module))
    model = network()
    train_ddpm(model, PICTURES, 1, 5, size=4, keep=tmp_path / "training.pt")
    assert set(torch.load(tmp_path / "training.pt", weights_only=True)["model"]) == set(model.state_dict())
