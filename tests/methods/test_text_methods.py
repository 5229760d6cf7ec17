"""Concept ablation against its formula in NumPy, and on a tiny Stable Diffusion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tiny_model import (
    ALPHA_BAR,
    Adam,
    Linear,
    TinyTask,
    assert_weights,
    combine,
    draw,
    eps,
    moved,
    squared,
    weights,
)
from tests.support.tiny_text import TinyText
from unlearnbench import Sampler
from unlearnbench.diffusion.noise import START, gaussian_noise
from unlearnbench.methods.concept_ablation import ConceptAblation

DDIM = [9, 7, 5, 3, 1]
"""Five steps of a schedule of ten."""
FORGOTTEN, SUBSTITUTE = 1, 2
LABELS = np.array([0, 1, 2, 1])
SEEDS = [5, 6, 7, 8]


def linear():
    model = Linear(0)
    model.sampler = Sampler(steps=5)
    return model


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp("sd1") / "model")


def sampled(predict, seeds):
    """DDIM in NumPy; predict(x, t, i) is the guided noise."""
    x = gaussian_noise(seeds, START, (4,)).double().numpy()
    for i, step in enumerate(DDIM):
        e = predict(x, np.full(len(x), step), i)
        now, then = ALPHA_BAR[step], ALPHA_BAR[DDIM[i + 1]] if i < 4 else 1.0
        x = np.sqrt(then) * (x - np.sqrt(1 - now) * e) / np.sqrt(now) + np.sqrt(1 - then) * e
    return x


def drawn(model, guidance, y=LABELS, seeds=SEEDS):
    with torch.no_grad():
        x = model.sample(torch.tensor(y), seeds, sampler=Sampler(steps=5, guidance=guidance))
    return x.flatten(1).double().numpy()


# ---- concept ablation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior_weight", [0.0, 0.7])
@pytest.mark.parametrize("target", ["model", "frozen", "noise"])
def test_concept_ablation_by_hand(target, prior_weight):
    method = ConceptAblation(steps=4, lr=0.03, batch_size=3, images=7, target=target, prior_weight=prior_weight)
    model, task = linear(), TinyTask()
    torch.manual_seed(7)
    method.unlearn(model, task, method.prepare(model, task))

    torch.manual_seed(7)
    w, theta_0, adam, x0 = weights(Linear(0)), weights(Linear(0)), Adam(0.03), []
    for n in (3, 3, 1):
        torch.randint(1, (n,))  # the one caption of the concept
        seeds = torch.randint(2**62, (n,)).tolist()
        x0.append(sampled(lambda x, t, i: eps(theta_0, x, t, np.full(len(x), SUBSTITUTE)), seeds))
    images = torch.tensor(np.concatenate(x0)).float().view(-1, 1, 2, 2)
    concept_y, anchor = np.full(3, FORGOTTEN), np.full(3, SUBSTITUTE)
    for _ in range(4):
        batch = images[torch.randint(7, (3,))]
        t, noise, x_t = draw(batch)
        wanted = {"model": eps(w, x_t, t, anchor), "frozen": eps(theta_0, x_t, t, anchor), "noise": noise}[target]
        g = squared(w, x_t, t, concept_y, wanted)[1]
        if prior_weight:
            t, noise, x_t = draw(batch)
            g = combine(g, squared(w, x_t, t, anchor, noise)[1], prior_weight)
        w = adam.step(w, g)
    assert_weights(model, w, 3e-5)
    assert moved(model, theta_0) > 0.05


def test_anchor_images_are_the_originals_for_the_substitute_caption(text):
    method = ConceptAblation(images=5, batch_size=2)
    torch.manual_seed(3)
    prepared = method.prepare(text.pretrained(), text)
    torch.manual_seed(3)
    for start, n in ((0, 2), (2, 2), (4, 1)):
        y = text.captions("forget")[torch.randint(3, (n,))]
        with torch.no_grad():
            x0 = text.pretrained().sample(text.substitute(y), torch.randint(2**62, (n,)).tolist())
        assert torch.equal(prepared.y[start : start + n], y)
        torch.testing.assert_close(prepared.x0[start : start + n], x0)
    assert text.forgotten(prepared.y).all()
    assert len(prepared.x0) == 5


def test_a_cap_on_steps_caps_the_images_too():
    task = TinyTask(limit=2)
    prepared = ConceptAblation(images=1000, batch_size=4).prepare(linear(), task)
    assert len(prepared.x0) == 8


@pytest.mark.parametrize("part", [None, "xattn", "full"])
def test_concept_ablation_trains_cross_attention_unless_told_otherwise(text, part):
    method = ConceptAblation(steps=2, images=3, batch_size=3, part=part)
    model = text.pretrained()
    torch.manual_seed(0)
    method.unlearn(model, text, method.prepare(model, text))
    before = text.pretrained().state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("attn2" in name for name in changed)
    assert all("attn2" in name for name in changed) == (part != "full")
    assert all(name.startswith("unet.") for name in changed)


def test_concept_ablation_brings_the_concept_to_its_anchor(text):
    method = ConceptAblation(steps=30, images=12, batch_size=12, lr=3e-4, target="frozen", prior_weight=0.0)
    model = text.pretrained()
    torch.manual_seed(0)
    method.unlearn(model, text, method.prepare(model, text))
    x_t, t = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(100, 1000, 150)
    seven = text.names("forget").expand(6, -1)

    def gap(network):
        with torch.no_grad():
            return (network.eps(x_t, t, seven) - text.original.eps(x_t, t, text.substitute(seven))).norm().item()

    assert gap(model) < 0.5 * gap(text.original)
