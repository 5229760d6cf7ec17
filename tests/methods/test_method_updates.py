"""Each method's weights after a few steps against the paper's formula worked out in NumPy."""

import numpy as np
import pytest
import torch

from tests.support.tiny_model import (
    ALPHA_BAR,
    NULL,
    Adam,
    Linear,
    TinyTask,
    assert_weights,
    combine,
    denoising,
    eps,
    moved,
    squared,
    weights,
)
from unlearnbench.diffusion.noise import START, gaussian_noise
from unlearnbench.methods.esd import ESD
from unlearnbench.methods.esd_retain import ESDRetain

DDIM = [9, 7, 5, 3, 1]
"""Five steps of a schedule of ten."""


def unlearn(method, task, seed=7):
    torch.manual_seed(seed)
    model = Linear(0)
    return method.unlearn(model, task, method.prepare(model, task))


def sampled(w, y, seeds, done, guidance):
    """x_t after done[b] guided DDIM steps."""
    x = gaussian_noise(seeds, START, (4,)).double().numpy()
    for i in range(max(done)):
        t = np.full(len(y), DDIM[i])
        null = eps(w, x, t, np.full(len(y), NULL))
        e = null + guidance * (eps(w, x, t, y) - null)
        now, then = ALPHA_BAR[DDIM[i]], ALPHA_BAR[DDIM[i + 1]]
        step = np.sqrt(then) * (x - np.sqrt(1 - now) * e) / np.sqrt(now) + np.sqrt(1 - then) * e
        x = np.where((done > i)[:, None], step, x)
    return x


def esd_replayed(task, steps, size, lr, eta, guidance, retain_weight):
    w = weights(Linear(0))
    theta_0, adam = weights(Linear(0)), Adam(lr)
    retain = task.batches(steps, size, "retain")
    y = np.ones(size, dtype=int)
    for _ in range(steps):
        done = torch.randint(5, (size,)).numpy()
        seeds = torch.randint(2**62, (size,)).tolist()
        x_t, t = sampled(w, y, seeds, done, guidance), np.array(DDIM)[done]
        null, concept = eps(theta_0, x_t, t, np.full(size, NULL)), eps(theta_0, x_t, t, y)
        g = squared(w, x_t, t, y, null - eta * (concept - null))[1]
        if retain_weight:
            g = combine(g, denoising(w, next(retain))[1], retain_weight)
        w = adam.step(w, g)
    return w


@pytest.mark.parametrize("eta", [1.0, 2.5])
def test_esd_aims_away_from_the_concept_on_its_own_samples(eta):
    task = TinyTask()
    model = unlearn(ESD(steps=4, lr=0.03, batch_size=6, eta=eta, start_guidance=3.0, sampler_steps=5), task)
    torch.manual_seed(7)
    assert_weights(model, esd_replayed(task, 4, 6, 0.03, eta, 3.0, 0.0), 3e-5)
    assert moved(model, weights(Linear(0))) > 0.05


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_esd_retain_adds_the_retain_loss(weight):
    task = TinyTask()
    settings = {"steps": 4, "lr": 0.03, "batch_size": 6, "eta": 1.5, "start_guidance": 2.0, "sampler_steps": 5}
    torch.manual_seed(7)
    expected = esd_replayed(task, 4, 6, 0.03, 1.5, 2.0, weight)
    assert_weights(unlearn(ESDRetain(**settings, retain_weight=weight), task), expected, 3e-5)


def test_esd_retain_is_esd_where_the_weight_is_zero_and_not_by_default():
    settings = {"steps": 3, "lr": 0.03, "batch_size": 6, "sampler_steps": 5}
    plain = weights(unlearn(ESD(**settings), TinyTask()))
    assert_weights(unlearn(ESDRetain(**settings, retain_weight=0.0), TinyTask()), plain, 0)
    assert moved(unlearn(ESDRetain(**settings), TinyTask()), plain) > 1e-3


def test_esd_loss_takes_its_target_from_the_teacher_without_gradient():
    model, teacher = Linear(0), Linear(1)
    x, t, y = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(2)), torch.arange(6), torch.ones(6).long()
    loss = ESD(eta=2.0).loss(model, teacher, x, t, y)
    loss.backward()
    flat_x, w = x.flatten(1).double().numpy(), weights(teacher)
    null, concept = (eps(w, flat_x, t.numpy(), np.full(6, c)) for c in (NULL, 1))
    value, grad = squared(weights(model), flat_x, t.numpy(), y.numpy(), 3 * null - 2 * concept)
    assert loss.item() == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(model.E.grad, grad["E"], atol=1e-5)
    assert all(value.grad is None for value in teacher.parameters())


def test_the_teacher_keeps_its_own_embedding():
    model = Linear(0)
    teacher = model.frozen()
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    assert_weights(teacher, weights(Linear(0)), 0)
    assert not any(value.requires_grad for value in teacher.parameters())
