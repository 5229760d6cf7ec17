"""SLD and negative prompts against their formulas in NumPy, and on a tiny Stable Diffusion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tiny_model import (
    ALPHA_BAR,
    NULL,
    Linear,
    TinyTask,
    assert_weights,
    eps,
    weights,
)
from tests.support.tiny_text import TinyText
from unlearnbench import Sampler
from unlearnbench.diffusion.noise import START, gaussian_noise
from unlearnbench.diffusion.schedulers import SCHEDULERS, Scheduled
from unlearnbench.fingerprint import definitions
from unlearnbench.methods.negative_prompt import NegativePrompt
from unlearnbench.methods.sld import LEVELS, SLD, warm
from unlearnbench.techniques.guidance import concept, eps_of

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


# ---- SLD ---------------------------------------------------------------------------------------------------------

CUSTOM = {"scale": 0.6, "threshold": 0.3, "warmup": 20, "momentum_scale": 0.4, "momentum_beta": 0.5}
TABLE = {
    "weak": (15, 200, 0.0, 0.0, 0.0),
    "medium": (10, 1000, 0.01, 0.3, 0.4),
    "strong": (7, 2000, 0.025, 0.5, 0.7),
    "max": (0, 5000, 1.0, 0.5, 0.7),
}
FIRST = {"weak": 2, "medium": 1, "strong": 1, "max": 0, "custom": 2}
"""Of five steps, the first on which each acts: 15, 10, 7, 0 and 20 of 50."""


def sld_by_hand(strength, first, guidance, forgotten):
    """The samples, and whether mu was seen below one, at one and cut to zero by the threshold."""
    _, scale, threshold, momentum_scale, beta = strength
    w, nu, seen = weights(Linear(0)), np.zeros((4, 4)), set()

    def predict(x, t, i):
        nonlocal nu
        null, c = eps(w, x, t, np.full(4, NULL)), eps(w, x, t, LABELS)
        S = np.mean([eps(w, x, t, np.full(4, label)) for label in forgotten], axis=0)
        mu = np.where(c - S < threshold, np.minimum(1, np.abs(scale * (c - S))), 0)
        seen.update(np.unique(np.where(c - S >= threshold, "cut", np.where(mu == 1, "one", "below"))))
        gamma = mu * (S - null) + momentum_scale * nu
        nu = beta * nu + (1 - beta) * gamma
        return null + guidance * (c - null - (gamma if i >= first else 0))

    return sampled(predict, SEEDS), seen


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("level", FIRST)
def test_sld_by_hand(level, guidance):
    settings, strength = ({"level": level}, TABLE[level]) if level in TABLE else (CUSTOM, tuple(CUSTOM.values()))
    if level == "custom":
        strength = (20, 0.6, 0.3, 0.4, 0.5)
    expected, seen = sld_by_hand(strength, FIRST[level], guidance, [FORGOTTEN])
    model = SLD(**settings).wrap(linear(), TinyTask())
    np.testing.assert_allclose(drawn(model, guidance), expected, atol=2e-4, rtol=1e-4)
    plain = drawn(linear(), guidance)
    assert np.abs(expected - plain)[0].max() > 1e-2
    assert {"one"} | ({"cut"} if level != "max" else set()) | ({"below"} if level == "custom" else set()) <= seen


def test_sld_averages_the_predictions_of_several_labels():
    expected, _ = sld_by_hand(TABLE["medium"], 1, 2.0, [0, 1])
    model = linear()
    model.guidance = SLD().steer(torch.tensor([0, 1]))
    np.testing.assert_allclose(drawn(model, 2.0), expected, atol=2e-4, rtol=1e-4)


def test_sld_forgets_its_momentum_between_runs():
    model = SLD(level="max").wrap(linear(), TinyTask())
    first = drawn(model, 2.0)
    assert model.guidance.momentum.abs().max() > 0
    np.testing.assert_array_equal(drawn(model, 2.0), first)
    drawn(model, 2.0, LABELS[:2], SEEDS[:2])  # another number of images


def test_the_levels_are_the_papers_table_and_a_field_overrides_its_own_number_only():
    assert {name: tuple(value) for name, value in LEVELS.items()} == TABLE
    assert SLD().strength() == LEVELS["medium"]
    assert SLD(level="max", threshold=0.0, warmup=3).strength() == (3, 5000.0, 0.0, 0.5, 0.7)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_warm_up_counts_steps_of_fifty_and_the_same_share_of_fewer(text, scheduler):
    model = text.pretrained()

    def counted(steps, warmups):
        t = model.timesteps(Scheduled(steps=steps, scheduler=scheduler))
        return [int((~warm(t, 1000, warmup)).sum()) for warmup in warmups]

    assert counted(50, [15, 10, 7, 0]) == [15, 10, 7, 0]
    assert counted(20, [15, 10, 0]) == [6, 4, 0]


def test_sld_changes_what_text_draws(text):
    model, y = SLD(level="max").wrap(text.pretrained(), text), text.captions("forget")
    with torch.no_grad():
        found, plain = (network.sample(y, SEEDS[:3]) for network in (model, text.original))
    assert found.isfinite().all()
    change = (found - plain).abs().amax(dim=(1, 2, 3))
    assert change[1:].min() > 1e-3
    assert change[0] < 1e-4, "the bare name is the concept itself, from which nothing can be told apart"


# ---- negative prompt ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_negative_prompt_by_hand(guidance):
    w = weights(Linear(0))

    def predict(x, t, i):
        S, c = eps(w, x, t, np.full(4, FORGOTTEN)), eps(w, x, t, LABELS)
        return S + guidance * (c - S)

    model = NegativePrompt().wrap(linear(), TinyTask())
    np.testing.assert_allclose(drawn(model, guidance), sampled(predict, SEEDS), atol=2e-4, rtol=1e-4)
    assert np.abs(drawn(model, guidance) - drawn(linear(), guidance)).max() > 1e-2


def test_negative_prompt_does_nothing_without_guidance_and_draws_the_concept_unguided():
    model = NegativePrompt().wrap(linear(), TinyTask())
    np.testing.assert_array_equal(drawn(model, 1.0), drawn(linear(), 1.0))
    forgotten = np.full(4, FORGOTTEN)
    np.testing.assert_allclose(drawn(model, 3.0, forgotten), drawn(linear(), 1.0, forgotten), atol=1e-4)


def test_negative_prompt_is_that_of_the_pipeline(text, tmp_path_factory):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    prompts, original = ["a photo of a cat", "a red seven"], text.pretrained()
    pipeline = StableDiffusionPipeline(
        vae=original.vae,
        text_encoder=original.text_encoders[0],
        tokenizer=original.tokenizers[0],
        unet=original.unet,
        scheduler=DDIMScheduler.from_config(original.schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    words = {"num_inference_steps": 7, "guidance_scale": 5.0, "output_type": "latent"}
    latents = gaussian_noise(SEEDS[:2], START, (4, 8, 8))
    with torch.no_grad():
        theirs = pipeline(prompts, negative_prompt=["seven"] * 2, latents=latents, **words).images
        model = NegativePrompt().wrap(text.pretrained(), text)
        ours = model.sample(model.tokens(prompts), SEEDS[:2], sampler=Scheduled(steps=7, guidance=5.0))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


# ---- what both share ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SLD(), NegativePrompt()], ids=lambda method: method.name)
def test_steering_leaves_every_weight(method):
    model = method.wrap(linear(), TinyTask())
    assert method.unlearn(model, TinyTask(), method.prepare(model, TinyTask())) is model
    assert_weights(model, weights(Linear(0)), 0)
    np.testing.assert_array_equal(drawn(model.frozen(), 2.0), drawn(model, 2.0))
    assert "Steering" in {one.name for one in definitions([type(method)])}, "a record's code hash covers it"


def test_the_concept_is_one_prompt_of_all_its_names(tmp_path):
    task = TinyText(tmp_path / "model", names=("seven", "red cat"))
    model = task.pretrained()
    assert torch.equal(concept(model, task), model.tokens(["seven, red cat"]))
    assert torch.equal(concept(linear(), TinyTask()), torch.tensor([FORGOTTEN]))


def test_predictions_come_in_the_order_asked_for(text):
    model, y = text.original, text.captions("retain")[:2]
    x_t, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([10, 700])
    names = text.names("forget")
    with torch.no_grad():
        found = eps_of(model, x_t, t, names, model.null(2), model.embed(y))
        expected = [model.eps(x_t, t, c) for c in (model.null(2), y, names.expand(2, -1))]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
