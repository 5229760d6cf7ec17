"""UnlearnDiffAtk as its released code runs it: target images, projection, vocabulary; and what was compared with it.

Its steps and its searches are tested in test_attack_tokens.py, together with P4D's.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support import tiny_sd
from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from unlearnbench import Plan
from unlearnbench.attacks.prompt_search import Prompts
from unlearnbench.attacks.search import allowed, bisect_simplex, simplex
from unlearnbench.diffusion.schedulers import Repeating
from unlearnbench.errors import UserError
from unlearnbench.metrics.unlearndiffatk import UnlearnDiffAtk
from unlearnbench.models.loading import load_stable_diffusion
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.tasks.sd_nudity import SDNudity
from unlearnbench.tasks.sd_object import SDObject
from unlearnbench.tasks.sd_style import SDStyle
from unlearnbench.tasks.sdxl_nudity import SDXLNudity


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Stable Diffusion whose protocol samples by DDIM from the papers' noise."""
    made = load_stable_diffusion(tiny_sd.save(tmp_path_factory.mktemp("sd1") / "model", "sd1"))
    made.sampler = Repeating(steps=4, guidance=3.0)
    return made.requires_grad_(False).eval()


def outcome_of(model, prompts):
    """What `draw_targets` reads of an outcome."""
    known = SDNudity.__new__(SDNudity)  # only its to_uint8 is used
    task = SimpleNamespace(
        protocol=SimpleNamespace(chunk=2),
        inputs=lambda items: model.tokens([item.prompt for item in items]),
        to_uint8=known.to_uint8,
        device="cpu",
    )
    items = [Plan("forget", "cat", 0, 7 + i, prompt, guidance=2.0) for i, prompt in enumerate(prompts)]
    return SimpleNamespace(task=task, original=model, drawing=nullcontext), items


def test_released_target_images_are_lms_at_its_own_guidance_and_encoded_from_8_bits(model):
    attack = UnlearnDiffAtk().configured("released", SDNudity)
    outcome, items = outcome_of(model, ["a cat", "a red cat"])
    found = attack.draw_targets(outcome, items)
    sampler = Repeating(steps=25, guidance=7.5, scheduler="lms")
    for row, item in zip(found, items, strict=True):
        latents = model.sample(model.tokens([item.prompt]), [item.seed], sampler=sampler)
        image = model.vae.decode(latents / 0.18215).sample
        eight = (image / 2 + 0.5).clamp(0, 1).mul(255).round() / 255
        mean = model.vae.encode(2 * eight - 1).latent_dist.mean[0] * 0.18215
        torch.testing.assert_close(row, mean, rtol=0, atol=1e-4)
    plain = UnlearnDiffAtk().draw_targets(outcome, items)
    own = model.sample(model.tokens(["a cat"]), [7], sampler=Repeating(steps=4, guidance=2.0))[0]
    torch.testing.assert_close(plain[0], own, rtol=0, atol=1e-5)
    assert not torch.allclose(plain, found, atol=0.05)


def test_bisection_is_followed_step_by_step():
    """Row by row, as the code does it: bounds are halved until they are within 1e-5 of each other."""
    rows = torch.rand(5, 300, generator=torch.Generator().manual_seed(0)) * 0.02
    rows[4] = simplex(rows[4])  # sums to one already
    found = bisect_simplex(rows)
    for row, projected in zip(rows[:4], found[:4], strict=True):
        low, high = float((row - 1).min()), float(row.max())
        while abs(high - low) > 1e-5:
            middle = (low + high) / 2
            total = float((row - middle).clamp(0, 1).sum())
            low, high = (middle, high) if total > 1 else (low, middle)
        assert torch.equal(projected, (row - middle).clamp(0, 1))
    assert torch.equal(found[4], rows[4])
    torch.testing.assert_close(found, simplex(rows), rtol=0, atol=1e-5)
    assert (found.sum(dim=1) - 1).abs().max() > 1e-6, "it is not exact"


def test_released_free_tokens_are_any_of_the_encoders(model):
    rows = allowed(model, "all")
    assert rows.tolist() == list(range(len(model.tokenizers[0])))
    assert set(model.tokenizers[0].all_special_ids) <= set(rows.tolist())
    words = allowed(model)
    assert len(words) < len(rows) and not set(model.tokenizers[0].all_special_ids) & set(words.tolist())
    attack = UnlearnDiffAtk().configured("released", SDNudity)
    how = {"vocabulary": attack.vocabulary, "bisect": attack.bisect}
    y = model.tokens(["a cat"])
    searched = Prompts(model, y, attack.prefixed, "relaxed", torch.optim.Adam, attack.lr, attack.decay, **how)
    assert searched.free.shape == (1, 5, len(rows)) and np.allclose(searched.free.detach(), 1 / len(rows))


def test_the_released_preset_is_for_the_tasks_that_were_run():
    attack = UnlearnDiffAtk()
    assert [attack.configured("released", task).k for task in (SDNudity, SDObject, SDStyle)] == [5, 3, 3]
    for task in (DigitsText, SDXLNudity):
        with pytest.raises(UserError, match=rf"unlearndiffatk@released is not for {task.name}: .*sd-nudity"):
            attack.configured("released", task)
    with pytest.raises(UserError, match=r"unlearndiffatk has no published: .*not checked yet; @released"):
        attack.configured("published", SDNudity)
    assert attack.configured("full", DigitsText) == attack


def test_settings_of_later_versions_are_left_out_where_they_mean_what_was_done_before():
    before = {"targets", "batch", "kind", "k", "timesteps", "iterations", "lr", "decay"}
    assert set(UnlearnDiffAtk().settings()) == before
    released = UnlearnDiffAtk().configured("released", SDNudity).settings()
    added = {"vocabulary", "bisect", "target_scheduler", "target_steps", "target_guidance", "target_encoding"}
    assert set(released) == before | added


CODE = Repository("OPTML-Group/Diffusion-MU-Attack", "5a3e5d3")
CONFIGS = {
    "sd-nudity": "configs/nudity/text_grad_esd_nudity_classifier.json",
    "sd-object": "configs/object/text_grad_esd_church_classifier.json",
    "sd-style": "configs/style/text_grad_esd_vangogh_classsifier.json",
}
TOKENS = {"sd-nudity": 5, "sd-object": 3, "sd-style": 3}


def constants(task):
    config, attacker, dataset = CONFIGS[task], "src/attackers/text_grad_.py", "src/execs/generate_dataset.py"
    seedless = int(task == "sd-style")  # that config has no line for seed_iteration
    read = [
        ("kind", "relaxed", CODE.at(attacker, 211), ""),
        ("k", TOKENS[task], CODE.at(config, 19), ""),
        ("timesteps", 50, CODE.at("src/tasks/classifier_.py", 30), "n_samples"),
        ("iterations", 40, CODE.at(config, 20), ""),
        ("lr", 0.01, CODE.at(config, 27 - seedless), ""),
        ("decay", 0.1, CODE.at(config, 28 - seedless), ""),
        ("vocabulary", "all", CODE.at(attacker, 69), ""),
        ("bisect", True, CODE.at(attacker, 20), "xi = 1e-5"),
        ("target_scheduler", "lms", CODE.at(dataset, 57), ""),
        ("target_steps", 25, CODE.at(dataset, 161), ""),
        ("target_guidance", 7.5, CODE.at(dataset, 157), "no prompt file has the column sd_guidance_scale"),
        ("target_encoding", "mode", CODE.at("src/tasks/classifier_.py", 98), "a normal's mean is its mode"),
    ]
    return [Constant("released", task, *each) for each in read]


FIDELITY = Fidelity(
    method="unlearndiffatk",
    paper="Zhang et al., ECCV 2024; OPTML-Group/Diffusion-MU-Attack@5a3e5d3",
    constants=tuple(each for task in CONFIGS for each in constants(task)),
    differences=(
        Difference(
            "released",
            "loss",
            0.0,
            "test_a_relaxed_step_is_straight_through_adam_and_the_projection",
            "TextGrad with ClassifierTask.get_loss on a tiny model in float32, 18 steps at three timesteps",
        ),
        Difference(
            "released",
            "update",
            0.0,
            "test_bisection_is_followed_step_by_step",
            "weights after those steps, with the code's own draws; by the exact projection 5.5e-4",
        ),
        Difference(
            "released",
            "timesteps",
            0.0,
            "test_timesteps_are_the_published_ones_and_scale_with_the_schedule",
            "ClassifierTask.sampled_t and the noise schedule",
        ),
        Difference(
            "released",
            "targets",
            None,
            "test_released_target_images_are_lms_at_its_own_guidance_and_encoded_from_8_bits",
            "its script was read line by line; it needs v1.4's weights",
        ),
    ),
    defects=(
        "Prompts of over 60 tokens are left out, 24 of nudity's 142, while README counts all "
        "(src/tasks/utils/datasets.py:10-18): here they are attacked, and cut where they do not fit.",
        "The projection ends 1e-5 from its root, which is half of a token's weight at the start "
        "(src/attackers/text_grad_.py:30).",
    ),
    departs="By default target images are the protocol's and free tokens are whole words, so that a found prompt is "
    "tokenised as it was found. There is no published preset: the paper's settings are not checked yet.",
)
