"""P4D as its released code and UnlearnDiffAtk's run it: padding, end token, targets; and what was compared with them.

Its steps and its searches are tested in test_attack_tokens.py, together with UnlearnDiffAtk's.
"""

from __future__ import annotations

import pytest
import torch

from tests.metrics.test_unlearndiffatk import model, outcome_of
from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from unlearnbench.attacks.prompt_search import Prompts
from unlearnbench.diffusion.schedulers import Repeating
from unlearnbench.errors import UserError
from unlearnbench.metrics.p4d import P4D
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.tasks.sd_nudity import SDNudity
from unlearnbench.tasks.sd_object import SDObject
from unlearnbench.tasks.sd_style import SDStyle

__all__ = ["model"]


def searched(model, attack, prompt):
    y = model.tokens([prompt if attack.form != "n" else ""])
    how = {"vocabulary": attack.vocabulary, "pad": attack.pad, "end": attack.end}
    return Prompts(model, y, attack.pattern, "hard", torch.optim.AdamW, attack.lr, attack.decay, **how)


def asked(model, made):
    """The states that a step asks the model for."""
    seen = []
    made.step(
        lambda condition: (seen.append(condition.states), condition.states.flatten(1).sum(dim=1))[1], torch.arange(1)
    )
    return seen[0][0].detach()


def test_released_prompts_are_padded_with_token_0_while_they_are_searched(model):
    """16 free tokens do not fit the tiny encoder's 16 places: form n takes 14, so 4 are given here."""
    attack = P4D(size=4, vocabulary="all", pad=0)
    made, end = searched(model, attack, ""), model.tokenizers[0].eos_token_id
    first = made.tokens()[0]
    ids = torch.tensor([[model.tokenizers[0].bos_token_id, *first.tolist(), end, *[0] * 10]])
    torch.testing.assert_close(asked(model, made), model.embed(ids).states[0].detach())
    plain = searched(model, P4D(size=4, vocabulary="all"), "")
    plain.free.data.copy_(made.free.data)
    assert not torch.allclose(asked(model, plain), model.embed(ids).states[0], atol=1e-3)


def test_released_form_k_has_no_end_token_while_it_is_searched(model):
    attack = P4D().configured("released-k", SDNudity)
    made, words = searched(model, attack, "a red cat"), model.tokens(["a red cat"])[0, 1:4].tolist()
    free = made.tokens()[0].tolist()
    ids = [model.tokenizers[0].bos_token_id, free[0], *words, free[1], *[0] * 10]
    torch.testing.assert_close(asked(model, made), model.embed(torch.tensor([ids])).states[0].detach())


@pytest.mark.parametrize("variant", ["released", "released-k"])
def test_padding_does_not_reach_the_prompt_that_is_drawn(model, variant):
    class Spoken:
        def text(self, row):
            return model.tokenizers[0].decode(row, skip_special_tokens=True).strip()

        def tokens(self, prompts):
            return model.tokens(prompts)

    attack = P4D().configured(variant, SDNudity)
    made, end = searched(model, attack, "cat"), model.tokenizers[0].eos_token_id
    red = model.tokens(["red"])[0, 1]
    made.tokens = lambda likeliest=True: red.expand(1, made.free.shape[1])
    found = made.found(Spoken(), torch.arange(1))[0]
    text = {"released": " ".join(["red"] * 14), "released-k": "red cat"}[variant]
    assert torch.equal(found, model.tokens([text])[0]) and found[-1] == end


def test_released_targets_are_samples_of_pictures_scaled_wrongly(model):
    attack = P4D().configured("released", SDNudity)
    outcome, items = outcome_of(model, ["a cat"])
    torch.manual_seed(3)
    found = attack.draw_targets(outcome, items)[0]
    sampler = Repeating(steps=25, guidance=2.0, scheduler="dpm++")
    image = model.vae.decode(model.sample(model.tokens(["a cat"]), [7], sampler=sampler) / 0.18215).sample
    picture = (image / 2 + 0.5).clamp(0, 1).mul(255).round() / 255
    posterior = model.vae.encode(picture).latent_dist
    torch.manual_seed(3)
    expected = (posterior.mean + posterior.std * torch.randn(posterior.mean.shape))[0] * 0.18215
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_released_presets_are_for_the_tasks_that_were_run():
    attack = P4D()
    sizes = [attack.configured("released-prefix", task).size for task in (SDNudity, SDObject, SDStyle)]
    assert sizes == [5, 3, 3]
    for variant, task in (("released", SDObject), ("released-k", SDStyle), ("released-prefix", DigitsText)):
        with pytest.raises(UserError, match=f"p4d@{variant} is not for {task.name}"):
            attack.configured(variant, task)
    with pytest.raises(UserError, match=r"p4d has no published-k: .*not checked yet"):
        attack.configured("published-k", SDNudity)
    harness = attack.configured("full-prefix", DigitsText)
    assert (harness.steps // harness.timesteps, harness.size, harness.lr, harness.optimiser) == (40, 5, 0.01, "adam")


CODE = Repository("joycenerd/P4D", "2cf3cda")
HARNESS = Repository("OPTML-Group/Diffusion-MU-Attack", "5a3e5d3")
CONFIG, N, K = (
    "configs/esd_nudity_optmz_config.json",
    "prompt_optimization/optimize_n.py",
    "prompt_optimization/optimize_k.py",
)


def own(preset, code, *more):
    read = [
        ("steps", 3000, CODE.at(CONFIG, 5), ""),
        ("every", 50, CODE.at(CONFIG, 6), "the code looks before a step, here after it"),
        ("lr", 0.1, CODE.at(CONFIG, 8), ""),
        ("decay", 0.1, CODE.at(CONFIG, 9), ""),
        ("optimiser", "adamw", CODE.at(N, 129), "the same in optimize_k.py"),
        ("timesteps", 0, CODE.at(N, 175), "drawn at random from all 1,000"),
        ("vocabulary", "all", CODE.at(N, 78), "the same in optimize_k.py"),
        ("pad", 0, *code, ""),
        ("target_scheduler", "dpm++", CODE.at("run_p4dn.py", 53), "the same in run_p4dk.py"),
        ("target_steps", 25, CODE.at(CONFIG, 16), ""),
        ("target_encoding", "sample of [0, 1]", CODE.at("run_p4dn.py", 175), "no Normalize after ToTensor"),
        *more,
    ]
    return [Constant(preset, "sd-nudity", *each) for each in read]


def harness(task, kind, size):
    config, attacker, dataset = (
        f"configs/{kind}_P4D.json",
        "src/attackers/hard_prompt_.py",
        "src/execs/generate_dataset.py",
    )
    seedless = int(task == "sd-style")  # that config has no line for seed_iteration
    read = [
        ("form", "prefix", HARNESS.at(config, 18), "prefix_k"),
        ("size", size, HARNESS.at(config, 19), ""),
        ("timesteps", 50, HARNESS.at("src/tasks/P4D_.py", 30), "n_samples"),
        ("steps", 2000, HARNESS.at(config, 20), "40 at each of 50 timesteps"),
        ("every", 40, HARNESS.at(attacker, 179), "a look after each timestep"),
        ("lr", 0.01, HARNESS.at(config, 27 - seedless), ""),
        ("decay", 0.1, HARNESS.at(config, 28 - seedless), ""),
        ("optimiser", "adam", HARNESS.at(attacker, 31), ""),
        ("vocabulary", "all", HARNESS.at(attacker, 119), ""),
        ("target_scheduler", "lms", HARNESS.at(dataset, 57), ""),
        ("target_steps", 25, HARNESS.at(dataset, 161), ""),
        ("target_guidance", 7.5, HARNESS.at(dataset, 157), "no prompt file has the column sd_guidance_scale"),
        ("target_encoding", "mode", HARNESS.at("src/tasks/P4D_.py", 96), "a normal's mean is its mode"),
    ]
    return [Constant("released-prefix", task, *each) for each in read]


FIDELITY = Fidelity(
    method="p4d",
    paper="Chin et al., ICML 2024; joycenerd/P4D@2cf3cda, OPTML-Group/Diffusion-MU-Attack@5a3e5d3",
    constants=(
        *own(
            "released",
            (CODE.at(N, 38),),
            ("form", "n", CODE.at("README.md", 54), ""),
            ("size", 16, CODE.at(CONFIG, 2), ""),
        ),
        *own(
            "released-k",
            (CODE.at(K, 32),),
            ("form", "k", CODE.at("README.md", 67), ""),
            ("spacing", 3, CODE.at(CONFIG, 3), ""),
            ("end", False, CODE.at(K, 170), "the prompt is put over it"),
        ),
        *harness("sd-nudity", "nudity/hard_prompt_esd_nudity", 5),
        *harness("sd-object", "object/hard_prompt_esd_church", 3),
        *harness("sd-style", "style/hard_prompt_esd_vangogh", 3),
    ),
    differences=(
        Difference(
            "released",
            "loss and update",
            0.0,
            "test_released_prompts_are_padded_with_token_0_while_they_are_searched",
            "initialize_prompt, nn_project and the loop of optimize_n.py, 12 steps on a tiny model in float32; padded "
            "as Stable Diffusion pads, the loss is up to 8.0 % off and the change of the embeddings 66 %",
        ),
        Difference(
            "released-k",
            "loss and update",
            0.0,
            "test_released_form_k_has_no_end_token_while_it_is_searched",
            "the same of optimize_k.py; with end and padding as usual the loss is up to 8.5 % off",
        ),
        Difference(
            "released-prefix",
            "loss and update",
            0.0,
            "test_a_hard_step_moves_embeddings_by_the_gradient_at_the_nearest_tokens",
            "HardPromptAttacker with P4D_.get_loss, 18 steps at three timesteps in float32",
        ),
        Difference(
            "released",
            "targets",
            None,
            "test_released_targets_are_samples_of_pictures_scaled_wrongly",
            "its script was read line by line; it needs v1.4's weights",
        ),
    ),
    defects=(
        "Prompts are padded with token 0 while they are searched, and by the tokenizer when they are drawn "
        "(prompt_optimization/optimize_n.py:38).",
        "Form k overwrites the end token, and a prompt of more than 77 tokens with its free ones breaks off "
        "(prompt_optimization/optimize_k.py:31-35, 170).",
        "Target pictures are encoded with values from 0 to 1, where the autoencoder means -1 to 1 "
        "(run_p4dn.py:171-177).",
        "Of the prompts found the code judges only the one whose three images CLIP ViT-H/14 finds most like the target "
        "(prompt_optimization/optimize_n.py:274-278): not reproduced, every prompt is judged here.",
    ),
    departs="By default free tokens are whole words, prompts end and are padded as the text encoder knows it, and "
    "target images are the protocol's. There is no published preset: the paper's settings are not checked yet.",
)
