"""A linear model that is drawn with guidance, and the same drawing worked out in NumPy."""

from __future__ import annotations

import numpy as np
import torch

from tests.support.tiny_model import ALPHA_BAR, Linear
from unlearnbench import Sampler
from unlearnbench.diffusion.noise import START, gaussian_noise

DDIM = [9, 7, 5, 3, 1]
"""Five steps of a schedule of ten."""
FORGOTTEN = 1
LABELS = np.array([0, 1, 2, 1])
SEEDS = [5, 6, 7, 8]


def linear():
    """A linear model that draws in five steps."""
    model = Linear(0)
    model.sampler = Sampler(steps=5)
    return model


def sampled(predict):
    """DDIM in NumPy; predict(x, t, i) is the guided noise."""
    x = gaussian_noise(SEEDS, START, (4,)).double().numpy()
    for i, step in enumerate(DDIM):
        e = predict(x, np.full(len(x), step), i)
        now, then = ALPHA_BAR[step], ALPHA_BAR[DDIM[i + 1]] if i < 4 else 1.0
        x = np.sqrt(then) * (x - np.sqrt(1 - now) * e) / np.sqrt(now) + np.sqrt(1 - then) * e
    return x


def drawn(model, guidance, y=LABELS, seeds=SEEDS):
    """What the model's own sampler draws, as rows."""
    with torch.no_grad():
        x = model.sample(torch.tensor(y), seeds, sampler=Sampler(steps=5, guidance=guidance))
    return x.flatten(1).double().numpy()
