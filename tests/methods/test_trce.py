"""TRCE's edit against a least-squares solver, its contrast against the formula, and its presets against the code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from tests.support.tiny_text import TEMPLATES as SAID
from tests.support.tiny_text import predicted, shaken, shared_text
from tests.techniques.test_closed_form import least_squares, projections, text_states
from unlearnbench.diffusion.schedulers import Scheduled
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.methods.trce import SEXUAL, TEMPLATES, TRCE, attending, summed
from unlearnbench.techniques.saliency import zero_sums

CODE = Repository("ddgoodgood/TRCE", "0da9b71")
STAGE1, STAGE2 = "config/stage1/stage1_sexual_default.yaml", "config/stage2/stage2_sexual_default.yaml"
DRAWING, TRAINING = "stage2_data_preparation.py", "run_trce_stage2.py"
FIDELITY = Fidelity(
    method="trce",
    paper="Chen, Guo, Wang, Zhang, Nie and Liu, TRCE: Towards Reliable Malicious Concept Erasure in Text-to-Image "
    "Diffusion Models, ICCV 2025; ddgoodgood/TRCE@0da9b71",
    constants=(
        Constant("released", "sd-nudity", "erase", SEXUAL["erase"], CODE.at("data/concepts/sexual.json", 2),
                 "the first 20, of which two are Nudity"),
        Constant("released", "sd-nudity", "replace_with", SEXUAL["replace_with"],
                 CODE.at("data/concepts/sexual.json", 4)),
        Constant("released", "sd-nudity", "preserve", 1e-4, CODE.at(STAGE1, 9), "0.01, which is multiplied twice"),
        Constant("released", "sd-nudity", "prompts", "templates", CODE.at(STAGE1, 8), "15 of them"),
        Constant("released", "sd-nudity", "end", "words", CODE.at("src/cfr_utils.py", 116)),
        Constant("released", "sd-nudity", "steps", 300, CODE.at(STAGE2, 7), "3 epochs over 20 concepts by 5 images"),
        Constant("released", "sd-nudity", "lr", 1e-6, CODE.at(STAGE2, 6)),
        Constant("released", "sd-nudity", "batch_size", 1, CODE.at(TRAINING, 97)),
        Constant("released", "sd-nudity", "retain_batch", 4, CODE.at(STAGE2, 13)),
        Constant("released", "sd-nudity", "strength", 15.0, CODE.at(STAGE2, 8)),
        Constant("released", "sd-nudity", "beta", 1.0, CODE.at(STAGE2, 10)),
        Constant("released", "sd-nudity", "margin", 0.01, CODE.at(STAGE2, 11)),
        Constant("released", "sd-nudity", "retain_weight", 100.0, CODE.at(STAGE2, 9)),
        Constant("released", "sd-nudity", "early_steps", 25, CODE.at(STAGE2, 12)),
        Constant("released", "sd-nudity", "sampler_steps", 50, CODE.at(DRAWING, 126)),
        Constant("released", "sd-nudity", "start_guidance", 3.0, CODE.at(DRAWING, 126)),
        Constant("released", "sd-nudity", "accumulate", True, CODE.at(TRAINING, 190)),
        Constant("released", "sd-nudity", "lag", True, CODE.at(DRAWING, 74)),
    ),
    differences=(
        Difference("released", "edit", 5.3e-7, "test_end_tokens_give_what_those_of_the_safe_prompts_give",
                   "closed_form_refinement on a tiny Stable Diffusion in float64 with our end tokens; the sums over "
                   "COCO's captions were not available, the retained captions take their place in both."),
        Difference("released", "loss", None, "test_the_contrast_is_the_formula",
                   "The formula is worked out in plain torch; the code's script runs on cached trajectories alone."),
    ),
    defects=(
        "The sums over COCO are multiplied by their weight twice "
        f"({CODE.at('run_trce_stage1.py', 59)}; {CODE.at('src/cfr_utils.py', 162)}).",
        f"Gradients are never cleared, so that each step follows their sum ({CODE.at(TRAINING, 190)}).",
        f"Latents are kept with the timestep before the step that made them ({CODE.at(DRAWING, 74)}).",
        f"The end token is looked for by counting words, not tokens ({CODE.at('src/cfr_utils.py', 116)}).",
        f"Both stages load the original from a path of the authors' machine ({CODE.at('run_trce_stage1.py', 23)}).",
        "For several concepts stage 2 starts from the model in which stage 1 erased sexual content "
        f"({CODE.at('config/stage2/stage2_unsafe_default.yaml', 3)}).",
    ),
    departs="Forget captions in place of templates on digits, which do not know their words, a higher rate for fewer "
    "and larger steps; no bugs.",
)  # fmt: skip
SHORT = {"steps": 2, "batch_size": 2, "retain_batch": 2, "sampler_steps": 4, "early_steps": 1}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def task(request):
    return shared_text(request.param)


def filled(words):
    return [text.format(word) for word in words for text in SAID]


def test_end_tokens_give_what_those_of_the_safe_prompts_give(task):
    """By hand: the three captions are one, five and three tokens long, so that their ends are at 2, 6 and 4."""
    model = TRCE(steps=0, preserve=0.3, lamb=0.1).unlearn(task.pretrained(), task)
    before, places = task.pretrained(), [2, 6, 4]
    e, g = (
        np.stack([row[i] for row, i in zip(text_states(before, filled([word])), places, strict=True)])
        for word in ("seven", "one")
    )
    kept = text_states(before, filled(["three", "cat"]))
    terms = [(e, g, 1 / 3), (p := kept.reshape(-1, kept.shape[-1]), p, 0.3 / 6)]
    for W0, W in zip(projections(before), projections(model), strict=True):
        expected = least_squares(W0, terms, 0.1)
        np.testing.assert_allclose(W, expected, atol=1e-6)
        assert np.abs(expected - W0).max() > 1e-4


def test_templates_and_ends_by_words(task):
    """A word that is spelt in several tokens has its end behind them; the code looks as many words behind the start."""
    model = task.original
    unsafe, safe = TRCE(prompts="templates").pairs(model, task)
    assert unsafe == [text.format("seven") for text in TEMPLATES] and len(safe) == 15
    assert safe[0] == "one in a photo"
    spelt, plain = "a photo of orb", "a photo of cat"  # "orb" is three letters
    states = text_states(model, [spelt, plain])
    for end, places in (("tokens", (7, 5)), ("words", (5, 5))):
        found = TRCE(end=end).ends(model, [spelt, plain]).detach().numpy()
        for row, whole, place in zip(found, states, places, strict=True):
            np.testing.assert_allclose(row, whole[place], atol=1e-5)


def test_the_contrast_is_the_formula(task):
    method = TRCE(strength=2.0, beta=0.7, margin=0.05)
    original, model = task.original, shaken(task, 0.1)
    x_t, t = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([900, 400, 20])
    y, safe = model.tokens(["seven", "a red seven", "cat"]), model.tokens(["one", "a red one", "seven"])
    eps_null, eps_y, eps_safe = predicted(original, x_t, t, original.null(3), y, safe)
    prefer, reject = (each + 2.0 * (each - eps_null) for each in (eps_safe, eps_y))
    total, zeros = 0.0, 0
    for eps in predicted(model, x_t, t, y, model.null(3)):
        for row in range(3):
            d = [((eps[row] - aim[row]) ** 2).mean() for aim in (prefer, reject)]
            total += max(0.0, 0.7 * (d[0] - d[1] + 0.05)) / 6
            zeros += d[0] - d[1] + 0.05 < 0
    assert method.contrast(model, original, x_t, t, y, safe).item() == pytest.approx(total, rel=1e-4)
    assert zeros < 6, "some rows still have to turn"


def test_a_step_is_the_contrast_and_what_the_edit_left():
    task = shared_text()
    method = TRCE(**SHORT, retain_weight=3.0)
    model, original, edited = task.pretrained(), task.original, TRCE(steps=0).unlearn(task.pretrained(), task)
    torch.manual_seed(7)
    found = next(method.losses(model, original, edited, task)).item()

    torch.manual_seed(7)
    captions = filled(["seven"])
    rows = torch.randint(3, (2,)).tolist()
    y = original.tokens([captions[i] for i in rows])
    safe = original.tokens([captions[i].replace("seven", "one") for i in rows])
    every = original.timesteps(Scheduled(steps=4))
    with torch.no_grad():
        done, seeds = torch.randint(1, 3, (2,)), torch.randint(2**62, (2,)).tolist()
        x_t = original.sample(y, seeds, sampler=Scheduled(steps=4, guidance=3.0), until=4 - done)
        expected = method.contrast(model, original, x_t, every[done], y, safe).item()
        done, seeds = torch.randint(1, 4, (2,)), torch.randint(2**62, (2,)).tolist()
        x_r = original.sample(
            original.tokens(["", ""]), seeds, sampler=Scheduled(steps=4, guidance=1.0), until=4 - done
        )
        gap = model.eps(x_r, every[done], model.null(2)) - edited.eps(x_r, every[done], edited.null(2))
        assert gap.abs().max() > 1e-6
    assert found == pytest.approx(expected + 3.0 * gap.square().mean().item(), rel=1e-4)


def test_timesteps_of_the_released_code_lie_above():
    task = shared_text()
    sampler, y = Scheduled(steps=4, guidance=1.0), task.original.tokens([""] * 64)
    every = task.original.timesteps(sampler)
    for lag, low, high in ((1, 0, 0), (2, 0, 249)):
        torch.manual_seed(1)
        found = TRCE(lag=True).reached(task.original, y, sampler, 3, lag)[1]
        torch.manual_seed(1)
        above = found - every[torch.randint(1, 4, (64,)) - 1]
        assert low <= above.min() and above.max() <= high and (above.max() > 100) == (lag == 2)


def test_summed_gradients_are_never_cleared():
    weight = torch.nn.Parameter(torch.zeros(2))
    losses = ((weight * torch.tensor(values)).sum() for values in ([1.0, 2.0], [10.0, 0.0], [0.0, -3.0]))
    found = [step["w"].tolist() for step in summed(losses, {"w": weight}, zero_sums({"w": weight}))]
    assert found == [[1.0, 2.0], [11.0, 2.0], [11.0, -1.0]]


@pytest.mark.parametrize("settings", [{}, {"accumulate": True, "lag": True}])
def test_what_is_trained(settings):
    task = shared_text()
    before = task.pretrained().state_dict()
    after = TRCE(**SHORT, **settings).unlearn(task.pretrained(), task).state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    kv = {name for name in before if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert kv < changed and changed - kv == set(attending(task.pretrained()))
    assert {name.rsplit(".attn", 1)[1].split(".")[0] for name in changed} == {"1", "2"}


def test_what_does_not_fit_is_refused():
    with pytest.raises(Unsupported, match="no settings for sd-style"):
        TRCE.preset("released", "sd-style")
    for setting in ("preserve=-1", "lamb=0", "lr=0", "early_steps=-1", "steps=-1", "sampler_steps=1"):
        with pytest.raises(UserError, match=setting):
            TRCE.configured(dict([setting.split("=")]))
    assert TRCE.configured({"steps": "0"}).steps == 0, "the edit alone"
