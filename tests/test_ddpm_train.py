"""Training from scratch: one step against its formula, resumed equal to never stopped, every image once an epoch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from unlearnbench.errors import Damaged
from unlearnbench.images import Images
from unlearnbench.models import ddpm_train
from unlearnbench.models.ddpm import ConditionalDDPM
from unlearnbench.models.ddpm_train import Pictures, antithetic, drawn, train_ddpm

RNG = np.random.RandomState(0)
IMAGES = Images(RNG.randint(0, 256, (12, 3, 32, 32), dtype=np.uint8), np.arange(12) % 10)
PICTURES = Pictures(IMAGES, np.flatnonzero(IMAGES.y != 3))


def network():
    torch.manual_seed(0)
    return ConditionalDDPM(width=8, dropout=0.0)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_timesteps_come_in_pairs():
    t = antithetic(7, 1000, torch.Generator().manual_seed(1))
    assert t.shape == (7,)
    assert (t[:3] + t[4:]).tolist() == [999] * 3


def test_every_image_is_seen_once_an_epoch_and_none_that_is_left_out():
    seen = [drawn(PICTURES, step, 4, 5, 1000, "cpu")[0].y.tolist() for step in range(6)]
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
        batch, t, noise, shown = drawn(PICTURES, step, 4, 5, 1000, "cpu")
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
    whole, broken, keep = network(), network(), tmp_path / "deep" / "training.pt"
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
        return drawn(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if where == "within":
            patch.setattr(torch.optim.Adam, "step", stopped)
        else:
            patch.setattr(ddpm_train, "drawn", drawn_until)
        train_ddpm(broken, PICTURES, 6, 5, size=4, keep=keep)
    assert torch.load(keep, weights_only=True)["done"] == 4
    again = network()
    train_ddpm(again, PICTURES, 6, 5, size=4, keep=keep)
    assert equal(state(again), state(whole))


def test_a_damaged_state_is_named(tmp_path):
    keep = tmp_path / "training.pt"
    keep.write_bytes(b"nothing")
    with pytest.raises(Damaged, match=r"training.pt cannot be gone on with: delete it"):
        train_ddpm(network(), PICTURES, 1, 5, size=4, keep=keep)
