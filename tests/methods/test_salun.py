"""SalUn: mask and updates worked out in NumPy, and its settings against the paper and its code."""

import numpy as np
import pytest
import torch

from tests.support.tiny_model import (
    NULL,
    Adam,
    Linear,
    TinyTask,
    assert_weights,
    combine,
    denoising,
    draw,
    dropped,
    eps,
    squared,
    weights,
)
from unlearnbench.methods.salun import SalUn


def unlearn(method, task, seed=7):
    torch.manual_seed(seed)
    model = Linear(0)
    return method.unlearn(model, task, method.prepare(model, task))


def saliency(w, task, size, guidance):
    """|sum of grad L_f| over one pass, of the guided prediction: its gradient runs through both conditions."""
    total = {name: np.zeros_like(value) for name, value in w.items()}
    for batch in task.batches(-(-6 // size), size, "forget"):
        t, noise, x_t = draw(batch.x0)
        y, null = batch.y.numpy(), np.full(len(t), NULL)
        r = (1 - guidance) * eps(w, x_t, t, null) + guidance * eps(w, x_t, t, y) - noise
        g = 2 * r / r.size
        E = np.zeros_like(w["E"])
        np.add.at(E, y, guidance * g)
        np.add.at(E, null, (1 - guidance) * g)
        total = combine(total, {"W": g.T @ x_t, "E": E, "b": t / 10 @ g}, 1)
    return {name: np.abs(value) for name, value in total.items()}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_salun_masks_the_weights_with_the_largest_summed_gradient(share, guidance):
    torch.manual_seed(7)
    mask = SalUn(batch_size=4, saliency=share, mask_guidance=guidance).prepare(Linear(0), TinyTask())
    torch.manual_seed(7)
    size = saliency(weights(Linear(0)), TinyTask(), 4, guidance)
    least = np.sort(np.concatenate([value.ravel() for value in size.values()]))[-round(36 * share)]
    for name, value in size.items():
        np.testing.assert_array_equal(mask[name], value >= least, err_msg=name)
    assert sum(value.sum() for value in mask.values()) == round(36 * share)


@pytest.mark.parametrize(("clip", "drop"), [(None, 0.0), (0.1, 0.0), (None, 0.4)])
def test_salun_relabels_towards_a_constant_target_within_the_mask(clip, drop):
    task, w = TinyTask(), weights(Linear(0))
    model = unlearn(SalUn(steps=4, lr=0.03, batch_size=3, alpha=0.8, saliency=0.4, clip=clip, drop=drop), task)
    torch.manual_seed(7)
    mask = SalUn(batch_size=3, saliency=0.4).prepare(Linear(0), task)
    adam = Adam(0.03)
    for forget, retain in task.paired_batches(4, 3):
        t, _, x_t = draw(forget.x0)
        wrong = eps(w, x_t, t, (forget.y.numpy() + 1) % 3)
        g = squared(w, x_t, t, dropped(forget.y, drop), wrong)[1]
        g = combine(g, denoising(w, retain, drop)[1], 0.8)
        length = np.sqrt(sum((value**2).sum() for value in g.values()))
        scale = min(1, clip / length) if clip else 1
        w = adam.step(w, {name: value * scale * mask[name].numpy() for name, value in g.items()})
    assert_weights(model, w)
    for name, value in model.named_parameters():
        changed = value != getattr(Linear(0), name)
        assert torch.equal(changed, mask[name].bool() & changed)
        assert changed.any()
