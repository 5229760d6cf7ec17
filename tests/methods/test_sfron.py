"""SFRon: masks and updates worked out in NumPy, and its settings against the paper and its code."""

import numpy as np
import pytest
import torch

from tests.support.tiny_model import (
    NULL,
    Adam,
    Linear,
    T,
    TinyTask,
    assert_weights,
    combine,
    denoising,
    dot,
    draw,
    eps,
    moved,
    squared,
    weights,
)
from unlearnbench.methods.sfron import SFRon

Mask = dict[str, np.ndarray]


def unlearn(method, task, seed=7, model=None):
    torch.manual_seed(seed)
    model = model or task.pretrained()
    return method.unlearn(model, task, method.prepare(model, task))


def scaled(g, factor):
    return {name: factor * value for name, value in g.items()}


def length(g):
    return np.sqrt(dot(g, g))


def clipped(g, clip):
    return scaled(g, min(1, clip / length(g))) if clip else g


def dropped(y, share):
    """Labels with some replaced by the null class, drawn as the methods do."""
    return np.where((torch.rand(len(y)) >= share).numpy(), y, NULL) if share else y


def noised_loss(w, batch, drop):
    """The denoising loss with dropped conditions, and its gradient."""
    t, noise, x_t = draw(batch.x0)
    return squared(w, x_t, t, dropped(batch.y.numpy(), drop), noise)


def fisher_by_hand(w, task, side, count, size, guidance, clip):
    total = scaled(w, 0)
    for batch in task.batches(count, size, side):
        t, noise, x_t = draw(batch.x0)
        y, null = batch.y.numpy(), np.full(len(t), NULL)
        r = (1 - guidance) * eps(w, x_t, t, null) + guidance * eps(w, x_t, t, y) - noise
        g = 2 * r / r.size
        E = np.zeros_like(w["E"])
        np.add.at(E, y, guidance * g)
        np.add.at(E, null, (1 - guidance) * g)
        grad = clipped({"W": g.T @ x_t, "E": E, "b": t / T @ g}, clip)
        total = {name: total[name] + grad[name] ** 2 / count for name in w}
    return total


def saliency_by_hand(w, task, counts, size, threshold, guidance=1.0, clip=None) -> Mask:
    f, r = (
        fisher_by_hand(w, task, side, count, size, guidance, clip)
        for side, count in zip(("forget", "retain"), counts, strict=True)
    )
    return {name: f[name] >= threshold * r[name] for name in w}


@pytest.mark.parametrize(
    ("settings", "counts", "size", "guidance", "clip"),
    [
        ({}, (6, 10), 1, 1.0, None),
        ({"fisher_samples": 4}, (4, 4), 1, 1.0, None),
        ({"fisher_samples": None, "fisher_batch": 4}, (2, 3), 4, 1.0, None),
        ({"fisher_batch": 3, "fisher_guidance": 3.0, "fisher_clip": 0.5}, (2, 4), 3, 3.0, 0.5),
    ],
)
@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_sfron_masks_by_the_ratio_of_fishers(settings, counts, size, guidance, clip, threshold):
    torch.manual_seed(7)
    mask = SFRon(threshold=threshold, **settings).prepare(Linear(0), TinyTask())
    torch.manual_seed(7)
    expected = saliency_by_hand(weights(Linear(0)), TinyTask(), counts, size, threshold, guidance, clip)
    for name, value in expected.items():
        np.testing.assert_array_equal(mask[name], value, err_msg=name)
    kept = sum(value.sum() for value in expected.values())
    assert 8 <= kept < 36, "row 1 of E has no retain gradient; something else is left out"


def sfron_by_hand(w, task, mask, method):
    adam = Adam(method.lr)
    for k, (forget, retain) in enumerate(task.paired_batches(method.steps, method.batch_size)):
        t, noise, x_t = draw(forget.x0)
        y = dropped(forget.y.numpy(), method.drop)
        singles = [squared(w, x_t[[i]], t[[i]], y[[i]], noise[[i]]) for i in range(len(t))]
        c = np.array([value for value, _ in singles]) ** -method.lam
        up = scaled(w, 0)
        for share, (_, grad) in zip(c / c.sum(), singles, strict=True):
            up = combine(up, grad, share)
        alpha = method.alpha_f * (1 + np.cos(np.pi * k / method.steps)) / 2
        w = adam.step(w, clipped({name: -alpha * mask[name] * up[name] for name in w}, method.clip))
        w = adam.step(w, clipped(scaled(noised_loss(w, retain, method.drop)[1], method.alpha_r), method.clip))
    return w


@pytest.mark.parametrize(
    "settings",
    [{}, {"lam": 0.0}, {"lam": 2.0, "alpha_f": 3.0, "alpha_r": 0.5}, {"clip": 0.3, "drop": 0.4, "alpha_f": 5.0}],
    ids=str,
)
def test_sfron_ascends_and_descends_by_turns(settings):
    task, w = TinyTask(), weights(Linear(0))
    method = SFRon(steps=4, lr=0.03, batch_size=3, threshold=2.0, **settings)
    model = unlearn(method, task)
    torch.manual_seed(7)
    mask = saliency_by_hand(w, task, (6, 10), 1, 2.0)
    assert_weights(model, sfron_by_hand(w, task, mask, method), 3e-5)
    assert moved(model, weights(Linear(0))) > 0.05


def test_sfron_ends_its_ascent_along_a_cosine():
    """What each step ascends by, read off the gradients it yields."""
    task, method = TinyTask(), SFRon(steps=4, batch_size=6, lam=0.0, alpha_f=2.0)
    model = Linear(0)
    ones = {name: torch.ones_like(value) for name, value in model.named_parameters()}
    torch.manual_seed(7)
    found = [{name: value.double().numpy() for name, value in g.items()} for g in method.turns(model, task, ones)]
    torch.manual_seed(7)
    for k, (forget, retain) in enumerate(task.paired_batches(4, 6)):
        up, down = denoising(weights(model), forget)[1], denoising(weights(model), retain)[1]
        alpha = 2 * (0.5 + 0.5 * np.cos(np.pi * k / 4))
        np.testing.assert_allclose(found[2 * k]["W"], -alpha * up["W"], atol=1e-5)
        np.testing.assert_allclose(found[2 * k + 1]["W"], down["W"], atol=1e-5)
    assert len(found) == 8


def test_sfron_counts_images_less_that_are_forgotten_already():
    batch = next(TinyTask().batches(1, 6, "forget"))

    def value(lam):
        torch.manual_seed(1)
        return SFRon(lam=lam).adaptive_loss(Linear(0), batch).item()

    torch.manual_seed(1)
    plain = denoising(weights(Linear(0)), batch)[0]
    assert value(0.0) == pytest.approx(plain, rel=1e-5)
    assert value(0.0) > value(0.5) > value(2.0) > 0


def test_sfron_without_salient_weights_only_fine_tunes():
    """A forget step then has no gradient, and Adam goes on by its momentum."""
    task, w = TinyTask(), weights(Linear(0))
    method = SFRon(steps=3, lr=0.03, batch_size=4, threshold=1e30)
    model = unlearn(method, task)
    torch.manual_seed(7)
    mask = saliency_by_hand(w, task, (6, 10), 1, 1e30)
    assert not mask["W"].any() and not mask["b"].any()
    assert mask["E"][[1, NULL]].all() and not mask["E"][[0, 2]].any(), "what no retain image moves"
    expected = sfron_by_hand(w, task, mask, method)
    assert_weights(model, expected)
    assert np.abs(expected["W"] - w["W"]).max() > 0.02


def test_sfron_with_threshold_zero_keeps_every_weight():
    mask = SFRon(threshold=0.0).prepare(Linear(0), TinyTask())
    assert all(value.all() for value in mask.values())


def test_caps_of_a_conformance_check_hold():
    """Two batches at most for each loop, whatever the settings."""
    model, task = Linear(0), TinyTask(limit=2)
    unlearn(SFRon(batch_size=3), task, model=model)
    assert model.forwards <= 10
