"""Negative prompts against their formula in NumPy, and against diffusers' pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.fidelity import Fidelity
from tests.support.guided import FORGOTTEN, LABELS, SEEDS, drawn, linear, sampled
from tests.support.tiny_model import Linear, TinyTask, eps, weights
from tests.support.tiny_text import TinyText
from unlearnbench.diffusion.noise import START, gaussian_noise
from unlearnbench.diffusion.schedulers import Scheduled
from unlearnbench.methods.negative_prompt import NegativePrompt

FIDELITY = Fidelity(
    "negative_prompt",
    "none",
    departs="A practice without a paper, hence without presets; it draws what diffusers' `negative_prompt` draws.",
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp("sd1") / "model")


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_negative_prompt_by_hand(guidance):
    w = weights(Linear(0))

    def predict(x, t, i):
        S, c = eps(w, x, t, np.full(4, FORGOTTEN)), eps(w, x, t, LABELS)
        return S + guidance * (c - S)

    model = NegativePrompt().wrap(linear(), TinyTask())
    np.testing.assert_allclose(drawn(model, guidance), sampled(predict), atol=2e-4, rtol=1e-4)
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
