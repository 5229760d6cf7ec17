"""SLD against its formula in NumPy and against diffusers' own pipeline for it."""

from __future__ import annotations

import ast
import inspect
import textwrap

import diffusers
import numpy as np
import pytest
import torch

from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from tests.support.guided import FORGOTTEN, LABELS, SEEDS, drawn, linear, sampled
from tests.support.tiny_model import NULL, Linear, TinyTask, assert_weights, eps, weights
from tests.support.tiny_text import TinyText
from unlearnbench.diffusion.noise import START, gaussian_noise
from unlearnbench.diffusion.schedulers import SCHEDULERS, Scheduled
from unlearnbench.fingerprint import definitions
from unlearnbench.methods.negative_prompt import NegativePrompt
from unlearnbench.methods.sld import INAPPROPRIATE, LEVELS, SLD, warm
from unlearnbench.techniques.guidance import concept, eps_of

REPOSITORY = Repository("ml-research/safe-latent-diffusion", "a42923c")
PIPELINE = "src/sld/sld_pipeline.py"
FIDELITY = Fidelity(
    "sld",
    "Schramowski et al., CVPR 2023; ml-research/safe-latent-diffusion@a42923c",
    constants=(
        Constant(
            "published",
            "sd-nudity",
            "level",
            "medium",
            REPOSITORY.at("README.md", 44),
            "one of the four that the paper evaluates, and the one that its code calls the default",
        ),
        Constant("published", "sd-nudity", "erase", INAPPROPRIATE, REPOSITORY.at(PIPELINE, 70)),
        Constant(
            "released",
            "sd-nudity",
            "level",
            "medium",
            REPOSITORY.at(PIPELINE, 223),
            "warm-up 10, s_S 1000, lambda 0.01, s_m 0.3 and beta_m 0.4 are the defaults of its arguments",
        ),
        Constant("released", "sd-nudity", "erase", INAPPROPRIATE, REPOSITORY.at(PIPELINE, 70)),
    ),
    differences=tuple(
        Difference(
            preset,
            "sampling",
            0.0,
            "test_samples_are_those_of_diffusers_pipeline_for_it",
            "50 steps of SLDPipeline.__call__ beside ours on a tiny Stable Diffusion, DDIM and LMS, all four levels",
        )
        for preset in ("published", "released")
    ),
    departs="The default has the words of the task for its concept. The warm-up is a share of the timesteps, so that "
    "fewer than the paper's 50 steps have fewer steps of it, where the code counts steps. s_S of level weak is 200, as "
    "in OPTML-Group/Diffusion-MU-Attack@5a3e5d3, src/tasks/P4D_.py:159; diffusers' SafetyConfig.WEAK has 20.",
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp("sd1") / "model")


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

    return sampled(predict), seen


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


@pytest.mark.parametrize(  # levels differ in numbers alone, of which `max` has no warm-up and cuts nothing
    ("level", "scheduler", "steps"), [("medium", "ddim", 50), ("max", "lms", 10)]
)
def test_samples_are_those_of_diffusers_pipeline_for_it(text, level, scheduler, steps):
    """At 50 steps, the paper's number, the warm-up is the code's too; where there is none, at any.

    Guidance does not ask which scheduler steps.
    """
    prompts, original, strength = ["a photo of a cat", "a red seven"], text.pretrained(), LEVELS[level]
    spacing = "leading" if scheduler == "ddim" else "linspace"
    own = getattr(diffusers, SCHEDULERS[scheduler]).from_config(original.schedule, timestep_spacing=spacing)
    pipeline = diffusers.StableDiffusionPipelineSafe(
        vae=original.vae,
        text_encoder=original.text_encoders[0],
        tokenizer=original.tokenizers[0],
        unet=original.unet,
        scheduler=own,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.safety_concept = "three, red cat"
    latents, seen = gaussian_noise(SEEDS[:2], START, (4, 8, 8)), []
    with torch.no_grad():
        pipeline(
            prompts,
            num_inference_steps=steps,
            guidance_scale=7.5,
            latents=latents,
            callback=lambda step, t, x: seen.append(x.clone()),
            sld_warmup_steps=strength.warmup,
            sld_guidance_scale=strength.scale,
            sld_threshold=strength.threshold,
            sld_momentum_scale=strength.momentum_scale,
            sld_mom_beta=strength.momentum_beta,
        )
        theirs = seen[-1]
        model, sampler = text.pretrained(), Scheduled(steps, guidance=7.5, scheduler=scheduler)
        model.guidance = SLD(level=level).steer(model.joined(model.tokens(["three", "red cat"])))
        ours = model.sample(model.tokens(prompts), SEEDS[:2], sampler=sampler)
        plain = original.sample(original.tokens(prompts[:1]), SEEDS[:1], sampler=sampler)
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    assert (ours[:1] - plain).norm() > 1e-3 * theirs[:1].norm()


def test_the_papers_concept_and_its_medium_level_are_the_pipelines_own():
    """diffusers' safety concept has the same twenty names behind "an image showing"."""
    call = inspect.signature(diffusers.StableDiffusionPipelineSafe.__call__).parameters
    medium = [call[f"sld_{name}"].default for name in ("warmup_steps", "guidance_scale", "threshold")]
    medium += [call[f"sld_{name}"].default for name in ("momentum_scale", "mom_beta")]
    assert tuple(medium) == LEVELS["medium"]
    source = inspect.getsource(diffusers.StableDiffusionPipelineSafe.__init__)
    said = "".join(
        node.value
        for node in ast.walk(ast.parse(textwrap.dedent(source)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    assert f"an image showing {', '.join(INAPPROPRIATE)}" in said


@pytest.mark.parametrize("preset", ["published", "released"])
def test_the_papers_presets_are_for_what_it_ran(preset):
    assert SLD.preset(preset, "sd-nudity") == {"level": "medium", "erase": INAPPROPRIATE}
    for task in ("sd-object", "sd-style", "sdxl-nudity", "digits-text", "cifar10-class"):
        assert not SLD.has_preset(preset, task)


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
