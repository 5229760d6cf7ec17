"""Gradient ascent: updates worked out in NumPy, of ours and of the algorithm that EraseDiff calls NegGrad."""

import numpy as np
import pytest
import torch

from tests.support.fidelity import Fidelity, Repository
from tests.support.small_world import made_record
from tests.support.tiny_model import Adam, Linear, TinyTask, assert_weights, combine, denoising, dot, moved, weights
from tests.support.tiny_model import unlearned_by as unlearn
from unlearnbench.leaderboard import published
from unlearnbench.methods.gradient_ascent import GradientAscent


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize(("clip", "drop", "paired"), [(None, 0.0, False), (0.2, 0.4, True)])
def test_gradient_ascent_subtracts_the_forget_loss(weight, clip, drop, paired):
    task, w = TinyTask(), weights(Linear(0))
    method = GradientAscent(
        steps=4, lr=0.03, batch_size=3, weight=weight, clip=clip, drop=drop, paired_timesteps=paired
    )
    model = unlearn(method, task)
    torch.manual_seed(7)
    adam = Adam(0.03)
    for forget, retain in task.paired_batches(4, 3):
        a = denoising(w, retain, drop, paired)[1]
        g = combine(a, denoising(w, forget, drop, paired)[1], -weight)
        scale = min(1, clip / np.sqrt(dot(g, g))) if clip else 1
        w = adam.step(w, {name: scale * value for name, value in g.items()})
    assert_weights(model, w)


def test_erasediffs_neggrad_climbs_the_loss_of_retain_images():
    """Forget images have no part in it: their condition's embedding stays as it was."""
    task, w = TinyTask(), weights(Linear(0))
    model = unlearn(GradientAscent(steps=4, lr=0.03, batch_size=3, ascent="retain"), task)
    torch.manual_seed(7)
    adam = Adam(0.03)
    for _, retain in task.paired_batches(4, 3):
        w = adam.step(w, {name: -value for name, value in denoising(w, retain)[1].items()})
    assert_weights(model, w)
    assert torch.equal(model.E[1], Linear(0).E[1])
    assert moved(model, weights(Linear(0))) > 0.05


def test_the_published_row_stands_beside_the_algorithm_that_made_it():
    """EraseDiff's FID of 76.73 is of ascent on retain images; ours never had such a row."""
    rows = [row for row in published.load() if row.method.startswith("gradient_ascent")]
    assert {row.method for row in rows} == {"gradient_ascent[retain]"}
    assert all("another algorithm" in row.note for row in rows)
    ours, theirs = (
        made_record("gradient_ascent", method_changes={"settings": GradientAscent(ascent=side).settings()})
        for side in ("forget", "retain")
    )
    assert not published.is_of(ours, rows[0].method)
    assert published.is_of(theirs, rows[0].method)


ERASEDIFF = Repository("JingWu321/EraseDiff", "14f4e98")
FIDELITY = Fidelity(
    method="gradient_ascent",
    paper="NegGrad of Golatkar et al., CVPR 2020, for classifiers; no paper gives its settings on a diffusion model",
    defects=(
        "EraseDiff's train_ng draws from the loader of the retain images "
        f'({ERASEDIFF.at("ddpm/runners/diffusion.py", 1262)}); ascent="retain" is that, with a relative difference of '
        "NEGGRAD in three updates of the papers' network.",
    ),
    departs="L_r - 0.2 L_f, since the loss of the paper's -L_f alone has no bound; SalUn's code has -L_f + alpha L_r.",
)
