"""Random label: updates worked out in NumPy, and its settings against SalUn's code."""

import numpy as np
import pytest
import torch

from tests.support.fidelity import Constant, Difference, Fidelity, Repository
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
from tests.support.tiny_model import (
    unlearned_by as unlearn,
)
from unlearnbench.methods.random_label import RandomLabel


@pytest.mark.parametrize("target", ["substitute", "random", "images"])
@pytest.mark.parametrize(
    ("alpha", "clip", "drop", "drop_target", "paired"),
    [
        (0.0, None, 0.0, 0.0, False),
        (0.8, None, 0.0, 0.0, False),
        (0.8, 0.1, 0.4, 0.0, False),
        (0.8, 0.1, 0.4, 0.4, True),
    ],
)
def test_random_label_relabels_the_prediction_or_the_images(target, alpha, clip, drop, drop_target, paired):
    task, w = TinyTask(), weights(Linear(0))
    method = RandomLabel(
        steps=4, lr=0.03, batch_size=5, alpha=alpha, target=target, clip=clip, drop=drop, drop_target=drop_target,
        paired_timesteps=paired,
    )  # fmt: skip
    model = unlearn(method, task)
    torch.manual_seed(7)
    adam = Adam(0.03)
    for forget, retain in task.paired_batches(4, 5):
        t, noise, x_t = draw(retain.x0 if target == "images" else forget.x0, paired)
        shown = dropped(forget.y, drop)
        if target == "images":
            wrong = noise
        else:
            other = torch.full((5,), 2) if target == "substitute" else retain.y
            wrong = eps(w, x_t, t, dropped(other, drop_target))
        g = squared(w, x_t, t, shown, wrong)[1]
        g = combine(g, denoising(w, retain, drop, paired)[1], alpha)
        scale = min(1, clip / np.sqrt(dot(g, g))) if clip else 1
        w = adam.step(w, {name: value * scale for name, value in g.items()})
    assert_weights(model, w)
    assert moved(model, weights(Linear(0))) > 0.05


CODE = Repository("OPTML-Group/Unlearn-Saliency", "a6e89fd")
RUNNER, CONFIG = "DDPM/runners/diffusion.py", "DDPM/configs/cifar10_saliency_unlearn.yml"
RELEASED = (
    ("steps", 1000, CODE.at(CONFIG, 37), ""),
    ("lr", 1e-4, CODE.at(CONFIG, 52), ""),
    ("batch_size", 128, CODE.at(CONFIG, 36), ""),
    ("alpha", 3.072, CODE.at("DDPM/README.md", 39), "1e-3 of a sum over 3 x 32 x 32 elements"),
    ("target", "substitute", CODE.at(RUNNER, 566), "the class after the forgotten one"),
    ("clip", 1.0, CODE.at(RUNNER, 583), ""),
    ("drop", 0.1, CODE.at(CONFIG, 27), ""),
    ("drop_target", 0.1, CODE.at(RUNNER, 569), "mode train without a probability takes the configuration's"),
    ("paired_timesteps", True, CODE.at(RUNNER, 550), ""),
)
FIDELITY = Fidelity(
    method="random_label",
    paper="Golatkar et al., CVPR 2020, for classifiers; on a DDPM in OPTML-Group/Unlearn-Saliency@a6e89fd",
    constants=tuple(Constant("released", "cifar10-class", *row) for row in RELEASED),
    differences=(
        Difference(
            "released", "update", 6.2e-12, test_random_label_relabels_the_prediction_or_the_images.__name__,
            "saliency_unlearn without a mask on the papers' network at width 32 without dropout, three steps",
        ),
    ),
    departs="Conditions of retain images in place of the next class, since labels are drawn at random in the paper.",
)  # fmt: skip
