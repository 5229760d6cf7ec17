"""Random label: updates worked out in NumPy, and its settings against SalUn's code."""

import numpy as np
import pytest
import torch

from tests.support.tiny_model import (
    Adam,
    Linear,
    TinyTask,
    assert_weights,
    combine,
    denoising,
    dot,
    draw,
    dropped,
    eps,
    moved,
    squared,
    weights,
)
from unlearnbench.methods.random_label import RandomLabel


def unlearn(method, task, seed=7):
    torch.manual_seed(seed)
    model = Linear(0)
    return method.unlearn(model, task, method.prepare(model, task))


@pytest.mark.parametrize("target", ["substitute", "random", "images"])
@pytest.mark.parametrize(("alpha", "clip", "drop"), [(0.0, None, 0.0), (0.8, None, 0.0), (0.8, 0.1, 0.4)])
def test_random_label_relabels_the_prediction_or_the_images(target, alpha, clip, drop):
    task, w = TinyTask(), weights(Linear(0))
    method = RandomLabel(steps=4, lr=0.03, batch_size=5, alpha=alpha, target=target, clip=clip, drop=drop)
    model = unlearn(method, task)
    torch.manual_seed(7)
    adam = Adam(0.03)
    for forget, retain in task.paired_batches(4, 5):
        t, noise, x_t = draw(retain.x0 if target == "images" else forget.x0)
        other = np.full(5, 2) if target == "substitute" else retain.y.numpy()
        wrong = noise if target == "images" else eps(w, x_t, t, other)
        g = squared(w, x_t, t, dropped(forget.y, drop), wrong)[1]
        g = combine(g, denoising(w, retain, drop)[1], alpha)
        scale = min(1, clip / np.sqrt(dot(g, g))) if clip else 1
        w = adam.step(w, {name: value * scale for name, value in g.items()})
    assert_weights(model, w)
    assert moved(model, weights(Linear(0))) > 0.05
