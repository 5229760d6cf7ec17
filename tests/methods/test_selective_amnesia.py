"""Selective Amnesia: Fisher, surrogate, replay and update against the formula worked out in NumPy."""

import numpy as np
import pytest
import torch

from tests.support.tiny_model import (
    Adam,
    Linear,
    T,
    TinyTask,
    add_noise,
    assert_weights,
    combine,
    denoising,
    dot,
    flat,
    moved,
    squared,
    weights,
)
from unlearnbench import Batch
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.methods.selective_amnesia import SelectiveAmnesia

D = 4
"""Elements of x."""


def original():
    """With a sampler that fits ten timesteps."""
    model = Linear(0)
    model.sampler = Sampler(steps=5)
    return model


def fisher_by_hand(w, batch, count):
    """The mean over samples of the square of the summed gradients, draws in the engine's order."""
    fisher = {name: np.zeros_like(value) for name, value in w.items()}
    for x, y in zip(flat(batch.x0), batch.y.tolist(), strict=True):
        total = {name: np.zeros_like(value) for name, value in w.items()}
        t = [int((i + u) * T / count) for i, u in enumerate(torch.rand(count).tolist())]
        noise = torch.cat([torch.randn(len(some), 1, 2, 2) for some in np.array_split(t, range(3, count, 3))])
        for step, e in zip(t, flat(noise), strict=True):
            x_t = add_noise(x[None], e[None], np.array([step]))
            total = combine(total, squared(w, x_t, np.array([step]), np.array([y]), e[None])[1], T / count)
        fisher = {name: fisher[name] + total[name] ** 2 / len(batch.x0) for name in w}
    return fisher


@pytest.mark.parametrize("count", [T, 4, 1])
def test_the_fisher_is_the_mean_square_of_gradients_summed_over_time(count):
    method, task = SelectiveAmnesia(replay="real", fisher_samples=6, fisher_timesteps=count, batch_size=3), TinyTask()
    torch.manual_seed(3)
    found = method.prepare(Linear(0), task).fisher
    torch.manual_seed(3)
    expected = fisher_by_hand(weights(Linear(0)), next(task.batches(1, 6, "retain")), count)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-4, atol=1e-6 * value.max(), err_msg=name)
    assert not expected["E"][1].any() and expected["E"][[0, 2]].all(), "samples are of retained concepts"


def test_a_part_of_the_timesteps_estimates_the_sum_over_all():
    """The square is above that of the whole sum, by the variance of the draw, which falls with the number taken."""
    batch, model = next(TinyTask().batches(1, 1, "retain")), Linear(0)

    def mean(count):
        torch.manual_seed(0)
        found = [SelectiveAmnesia().fisher(model, batch, count)["W"].sum().item() for _ in range(400)]
        return np.mean(found)

    whole, half, one = mean(T), mean(5), mean(1)
    assert whole < half < one
    assert half < 2.5 * whole, "unscaled it would be a quarter, and by the wrong power four times as much"


def replayed(w, method, task, prepared, steps, size):
    """The weights after these steps, with the draws of the method."""
    origin, adam = w, Adam(method.lr)
    real = task.batches(steps, size, "retain")
    fisher = {name: value.double().numpy() for name, value in prepared.fisher.items()}
    for _ in range(steps):
        if method.surrogate == "uniform":
            y = torch.tensor([1])[torch.randint(1, (size,))]
            surrogate = Batch(2 * torch.rand(size, 1, 2, 2) - 1, y)
        else:
            surrogate = taken(prepared.surrogate, size)
        replay = next(real) if method.replay == "real" else taken(prepared.replay, size)
        g = denoising(w, surrogate)[1]
        g = combine(g, denoising(w, replay)[1], method.gamma)
        pull = {name: 2 * D * fisher[name] * (w[name] - origin[name]) for name in w}
        g = combine(g, pull, method.lam)
        scale = min(1, method.clip / np.sqrt(dot(g, g))) if method.clip else 1
        w = adam.step(w, {name: value * scale for name, value in g.items()})
    return w


def taken(batch, size):
    index = torch.randint(len(batch.x0), (size,))
    return Batch(batch.x0[index], batch.y[index])


@pytest.mark.parametrize("surrogate", ["uniform", "substitute"])
@pytest.mark.parametrize("replay", ["generated", "real"])
@pytest.mark.parametrize(("gamma", "lam", "clip"), [(1.0, 0.0, None), (0.6, 0.003, None), (0.6, 0.003, 0.1)])
def test_an_update_is_surrogate_replay_and_penalty(surrogate, replay, gamma, lam, clip):
    method = SelectiveAmnesia(
        steps=4, lr=0.03, batch_size=5, gamma=gamma, lam=lam, clip=clip, surrogate=surrogate, replay=replay,
        surrogate_images=7, replay_images=9, fisher_samples=4, fisher_timesteps=3,
    )  # fmt: skip
    task, model = TinyTask(), original()
    torch.manual_seed(5)
    prepared = method.prepare(model, task)
    assert_weights(model, weights(Linear(0)), 0)
    torch.manual_seed(7)
    method.unlearn(model, task, prepared)
    torch.manual_seed(7)
    assert_weights(model, replayed(weights(Linear(0)), method, task, prepared, 4, 5), 3e-5)
    assert moved(model, weights(Linear(0))) > 0.05


def test_the_penalty_holds_the_weights_that_matter_to_what_is_kept():
    def run(lam):
        torch.manual_seed(0)
        task, model = TinyTask(), original()
        method = SelectiveAmnesia(steps=40, lr=0.03, lam=lam, fisher_samples=8, fisher_timesteps=T)
        return method.unlearn(model, task, method.prepare(model, task))

    free, held = run(0.0), run(100.0)
    assert moved(held, weights(Linear(0))) > 0.3, "the forgotten embedding has no Fisher and is free to move"
    far = {name: (getattr(free, name) - getattr(Linear(0), name)).abs().max().item() for name in ("W", "b")}
    near = {name: (getattr(held, name) - getattr(Linear(0), name)).abs().max().item() for name in ("W", "b")}
    assert all(near[name] < 0.2 * far[name] for name in far)


def test_replay_and_surrogate_are_the_originals_images():
    method = SelectiveAmnesia(surrogate="substitute", surrogate_images=7, replay_images=9, batch_size=4)
    model = original()
    torch.manual_seed(5)
    prepared = method.prepare(model, TinyTask())
    torch.manual_seed(5)
    for batch, names, count in ((prepared.replay, torch.tensor([0, 2]), 9), (prepared.surrogate, torch.tensor([1]), 7)):
        y = names[torch.randint(len(names), (count,))]
        seeds = [torch.randint(2**62, (len(some),)) for some in y.split(4)]
        assert torch.equal(batch.y, y)
        shown = y if 0 in names else (y + 1) % 3
        torch.testing.assert_close(batch.x0, model.sample(shown, torch.cat(seeds).tolist()).detach())
    assert set(prepared.replay.y.tolist()) == {0, 2}


def test_uniform_surrogates_and_real_replay_need_no_images_of_the_original():
    model = Linear(0)
    prepared = SelectiveAmnesia(replay="real", fisher_timesteps=2, fisher_samples=3).prepare(model, TinyTask())
    assert prepared.replay is prepared.surrogate is None
    assert model.forwards == 3


def test_the_papers_settings():
    published = SelectiveAmnesia.configured(SelectiveAmnesia.preset("published", "cifar10-class"))
    assert (published.lam, published.gamma, published.steps, published.lr) == (10, 1, 20000, 1e-4)
    assert (published.surrogate, published.replay, published.part) == ("uniform", "generated", "full")
    text = SelectiveAmnesia.configured(SelectiveAmnesia.preset("default", "digits-text"))
    assert (text.surrogate, text.part) == ("substitute", "noxattn")
