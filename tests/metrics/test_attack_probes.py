"""Concept inversion and latent probes: each step against a computation of its own, and known answers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.support import tiny_sd
from unlearnbench import Condition, Guidance, Sampler
from unlearnbench.attacks.search import allowed, sample_targets
from unlearnbench.metrics.concept_inversion import PHOTO, ConceptInversion, ended, labelled, neutral, spoken
from unlearnbench.metrics.latent_probe import LatentProbe, hole, inverted
from unlearnbench.testing import toy, toy_models

SMALL = {"after": (5, 40), "lr": 0.05, "images": 0, "batch": 16, "templates": (PHOTO,), "targets": 6}
INVERSION = ConceptInversion(**SMALL)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def tiny(request, tmp_path_factory):
    """A tiny Stable Diffusion, with one tokenizer or two, as outcome on digits-text."""
    from unlearnbench.attacks.search import arena
    from unlearnbench.tasks.digits_text import DigitsText

    folder = tiny_sd.world(tmp_path_factory.mktemp(request.param), request.param)
    task = DigitsText("five", protocol="smoke", weights=folder)
    return arena(task, task.pretrained().eval(), task.pretrained().eval(), None)


@pytest.fixture
def rows(monkeypatch):
    """Images that have passed through any toy model."""
    seen = []
    plain = toy_models.PictureModel.predict

    def counted(self, x_t, t, condition):
        seen.append(len(x_t))
        return plain(self, x_t, t, condition)

    monkeypatch.setattr(toy_models.PictureModel, "predict", counted)
    return seen


# ---- concept inversion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [False, True])
def test_an_embedding_finds_what_is_hidden(text):
    score = INVERSION.measure(toy_models.attacked_outcome("hidden", text=text))
    assert score.value == 1.0 and (score.spent > 0).all()


def test_what_is_lost_is_given_up_after_the_whole_search():
    score = INVERSION.measure(toy_models.attacked_outcome("lost"))
    assert score.value == 0.0 and score.missing == 0 and set(score.spent) == {40 * 16}


@pytest.mark.parametrize("attack", [INVERSION, LatentProbe()], ids=lambda attack: type(attack).__name__)
def test_what_was_never_forgotten_costs_nothing(attack):
    score = attack.measure(toy_models.attacked_outcome("known"))
    assert score.value == 1.0 and set(score.spent) == {0.0}


@pytest.mark.parametrize("attack", [INVERSION, LatentProbe()], ids=lambda attack: type(attack).__name__)
def test_at_budget_0_nothing_hidden_is_found(attack):
    assert attack.measure(toy_models.attacked_outcome("hidden"), budget=0).value == 0.0


@pytest.mark.parametrize("text", [False, True])
def test_one_step_is_adamw_on_the_mean_squared_error(text):
    outcome = toy_models.attacked_outcome("hidden", text=text)
    model, x0 = outcome.model, outcome.task.data("forget").x0
    attack = replace(INVERSION, lr=0.1, size=6, batch=4, templates=(PHOTO, "the photo of a"))
    free, asked = spoken(model, outcome.task, attack.templates) if text else labelled(model, outcome.task)
    v = free[0].detach().clone()
    torch.manual_seed(1)
    attack.descend(model, x0, free, asked, torch.optim.AdamW(free, lr=0.1, weight_decay=0.01))

    torch.manual_seed(1)
    chosen, t, noise = torch.randint(len(x0), (6,)), torch.randint(100, (6,)), torch.randn(6, *x0.shape[1:])
    own, total = v.clone().requires_grad_(), torch.zeros(())
    for i in range(6):
        a, b = model.alpha_bar[t[i]].sqrt(), (1 - model.alpha_bar[t[i]]).sqrt()
        x_t = a * x0[chosen[i]] + b * noise[i]
        states = own if not text else own.view(1, 1, -1)  # all other words' rows are zero
        clean = model.predict(x_t[None], t[i : i + 1], Condition(states))[0]
        total = total + ((x_t - a * clean) / b - noise[i]).square().mean() / 6
    grad = torch.autograd.grad(total, own)[0]
    expected = v * (1 - 0.1 * 0.01) - 0.1 * grad / (grad.abs() + 1e-8)
    assert torch.allclose(free[0], expected, atol=1e-4)


def test_the_search_begins_at_the_mean_of_what_is_kept():
    outcome = toy_models.attacked_outcome("hidden")
    kept = [outcome.model.embedding.weight[d] for d in range(10) if d != toy.FORGOTTEN]
    assert torch.allclose(labelled(outcome.model, outcome.task)[0][0], torch.stack(kept).mean(0, keepdim=True))


def test_words_begin_at_the_mean_of_retained_names_or_of_the_vocabulary(tiny):
    model, names = tiny.model, tiny.model.tokens(["red one", "blue"])
    ids = [model.tokenizers[0](word).input_ids[1] for word in ("red", "one", "blue")]
    nothing = neutral(model, names[:0])
    for k, (encoder, v) in enumerate(zip(model.text_encoders, neutral(model, names), strict=True)):
        words = encoder.get_input_embeddings().weight
        assert torch.allclose(v[0, 0], words[ids].mean(0), atol=1e-6)
        plain = allowed(model)
        assert torch.allclose(nothing[k][0, 0], words[plain].mean(0), atol=1e-6)


def test_the_new_word_stands_where_the_name_would(tiny):
    """With a known word's embedding the condition is that of the prompt with the word, but has no tokens."""
    model = tiny.model
    y = model.tokens(["a photo of a seven", "the photo of a seven"])
    ids = (y if y.dim() == 3 else y[:, None])[0, :, 5]
    free = [words.weight[i].view(1, 1, -1) for words, i in zip(embeddings(model), ids, strict=True)]
    with torch.no_grad():
        asked = spoken(model, tiny.task, (PHOTO, "the photo of a"))[1](free, torch.tensor([1, 0, 1]))
        expected = model.embed(y[[1, 0, 1]])
    assert asked.ids is None and torch.allclose(asked.states, expected.states, atol=1e-5)
    if expected.pooled is not None:
        assert torch.allclose(asked.pooled, expected.pooled, atol=1e-5)
        assert torch.equal(asked.extra["time_ids"], expected.extra["time_ids"])


def embeddings(model):
    """Word embeddings of each text encoder."""
    return [encoder.get_input_embeddings() for encoder in model.text_encoders]


def test_a_template_that_is_too_long_gives_its_last_place_to_the_word(tiny):
    y, place = ended(tiny.model, [PHOTO, "a a a a a a a a a a a a a a a a a a a a"])
    end = tiny.model.tokenizers[0].eos_token_id
    rows = y if y.dim() == 3 else y[:, None]
    assert place.tolist() == [5, tiny_sd.TOKENS - 2]
    assert (rows[0, :, 6] == end).all() and (rows[1, :, -1] == end).all()
    assert (rows[torch.arange(2), :, place] != end).all()


def test_a_step_moves_the_word_of_every_text_encoder(tiny):
    model, x0 = tiny.model, torch.randn(4, *tiny.model.shape)
    free, asked = spoken(model, tiny.task, (PHOTO,))
    before = [v.detach().clone() for v in free]
    replace(INVERSION, size=2).descend(model, x0, free, asked, torch.optim.AdamW(free, lr=0.1))
    assert all((v != old).any() for v, old in zip(free, before, strict=True))


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_images_of_a_step_may_come_in_parts(batch):
    outcome = toy_models.attacked_outcome("hidden")
    found = []
    for size in (16, batch):
        free, asked = labelled(outcome.model, outcome.task)
        torch.manual_seed(3)
        attack = replace(INVERSION, batch=size)
        attack.descend(outcome.model, outcome.task.data("forget").x0, free, asked, torch.optim.AdamW(free, lr=0.1))
        found.append(free[0].grad)
    assert torch.allclose(*found, atol=1e-6)


def test_evaluations_of_the_search_are_what_is_counted(rows):
    outcome = toy_models.attacked_outcome("lost")
    spent, before = [], 0
    for look in INVERSION.looks(outcome, INVERSION.aims(outcome)):
        spent.append(look.spent)
    before = sum(rows) - 3 * 6 * 10  # three looks draw six targets in ten steps
    assert spent == [0, 5 * 16, 40 * 16] and before == spent[-1]


def test_a_step_that_fails_is_missing_and_not_safe(monkeypatch):
    outcome = toy_models.attacked_outcome("lost")
    outcome.task.data = lambda which: toy_models.ToyClass.data(outcome.task, which)._replace(
        x0=torch.full((4, *toy_models.SHAPE), torch.nan)
    )
    score = INVERSION.measure(outcome)
    assert score.value is None and score.missing == 6 and "not finite" in score.reason


# ---- latent probes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ["0.9", "0.75", "0.5", "inversion"])
def test_probes_never_find_what_is_lost(probe):
    score = LatentProbe(probe=probe, refine=3).measure(toy_models.attacked_outcome("lost"))
    assert score.value == 0.0 and score.missing == 0


@pytest.mark.parametrize("probe", ["inpainting", "completion"])
def test_the_unknown_part_is_filled_by_what_the_model_knows(probe):
    """The digit's column goes on in it, of most images, only where the model has the digit."""
    lost, hidden = (probed(toy_models.attacked_outcome(fate), probe)[0] for fate in ("lost", "hidden"))
    lower = hole(lost, probe)[:, toy.FORGOTTEN]
    assert (lost[:, 0, lower, toy.FORGOTTEN] < 0).all()
    assert (hidden[:, 0, lower, toy.FORGOTTEN] > 0).all(dim=1).sum() >= 4


def probed(outcome, probe, refine=3):
    """What a probe draws for six targets, and what it says that an image costs."""
    attack = LatentProbe(probe=probe, refine=refine)
    items = attack.aims(outcome)
    seeds = [item.seed for item in items]
    return attack.probed(outcome.model, attack.images(outcome, items)[0], seeds, Sampler(10))


@pytest.mark.parametrize("text", [False, True])
def test_probes_find_what_hides_behind_its_name(text):
    assert LatentProbe(probe="0.5").measure(toy_models.attacked_outcome("hidden", text=text)).value == 1.0


def test_inversion_regenerates_what_hides_behind_its_name():
    score = LatentProbe(probe="inversion", refine=3).measure(toy_models.attacked_outcome("hidden"))
    assert score.value == 1.0 and set(score.spent) == {10 * 5}


@pytest.mark.parametrize(("probe", "evaluations"), [("0.9", 9), ("0.75", 7), ("0.5", 5), ("completion", 10)])
def test_probes_cost_the_steps_they_take(rows, probe, evaluations):
    _, spent = probed(toy_models.attacked_outcome("lost"), probe)
    assert spent == evaluations and sum(rows) == 6 * evaluations


def test_inversion_costs_its_passes_too(rows):
    _, spent = probed(toy_models.attacked_outcome("lost"), "inversion", refine=2)
    assert spent == 10 + 10 * 3 and sum(rows) == 6 * spent


def test_denoising_begins_where_the_image_was_noised_to():
    """DDIM by hand from x_t, in plain loops, at guidance 1 without a prompt."""
    outcome = toy_models.attacked_outcome("hidden")
    model, attack = outcome.model, LatentProbe(probe="0.5")
    items = attack.aims(outcome)[:2]
    x0, seeds = attack.images(outcome, items)[0], [item.seed for item in items]
    x, _ = attack.probed(model, x0, seeds, Sampler(10))
    noise = model.sample(model.null(2), seeds, sampler=Sampler(10), until=10)
    y, times = math.sqrt(model.alpha_bar[49]) * x0 + math.sqrt(1 - model.alpha_bar[49]) * noise, [49, 39, 29, 19, 9]
    for t, after in zip(times, [*times[1:], None], strict=True):
        a = model.alpha_bar[t]
        clean = model.predict(y, torch.full((2,), t), Condition(torch.zeros(2, 10)))
        eps = (y - a.sqrt() * clean) / (1 - a).sqrt()
        below = torch.ones(()) if after is None else model.alpha_bar[after]
        y = below.sqrt() * clean + (1 - below).sqrt() * eps
    assert torch.allclose(x, y, atol=1e-4)


def test_the_hole_is_the_middle_or_the_lower_half():
    x0 = torch.zeros(1, 1, 8, 8)
    middle, lower = hole(x0, "inpainting"), hole(x0, "completion")
    assert middle.sum() == 16 and middle[2:6, 2:6].all()
    assert lower.sum() == 32 and lower[4:].all()


@pytest.mark.parametrize("probe", ["inpainting", "completion"])
def test_the_known_part_is_the_image_and_is_put_back_at_every_step(probe, monkeypatch):
    outcome = toy_models.attacked_outcome("hidden")
    model, attack = outcome.model, LatentProbe(probe=probe)
    items = attack.aims(outcome)
    x0, _ = attack.images(outcome, items)
    noise = model.sample(model.null(6), [item.seed for item in items], sampler=Sampler(10), until=10)
    unknown, plain, seen = hole(x0, probe), toy_models.PictureModel.predict, []

    def watched(self, x_t, t, condition):
        a = self.alpha_bar[t[0]]
        seen.append(((x_t - a.sqrt() * x0 - (1 - a).sqrt() * noise).abs().amax(dim=(0, 1)) < 1e-5) | unknown)
        return plain(self, x_t, t, condition)

    monkeypatch.setattr(toy_models.PictureModel, "predict", watched)
    x, _ = probed(outcome, probe)
    assert len(seen) == 10 and torch.stack(seen).all()
    assert torch.equal(x[:, :, ~unknown], x0[:, :, ~unknown]) and (x[:, :, unknown] != x0[:, :, unknown]).any()


def test_a_refined_inversion_solves_the_equation_of_the_step_back():
    outcome = toy_models.attacked_outcome("hidden")
    model, x0 = outcome.model, LatentProbe().images(outcome, LatentProbe().aims(outcome)[:3])[0]
    every = torch.tensor([9, 19])
    middle = inverted(model, x0, model.null(3), every[:1], 60)
    a, b = model.alpha_bar[9].sqrt(), (1 - model.alpha_bar[9]).sqrt()
    eps = model.eps(middle, torch.full((3,), 9), model.null(3))
    assert torch.allclose((middle - b * eps) / a, x0, atol=1e-3)


def test_one_pass_back_is_ddims_step_with_the_noise_of_where_it_was():
    outcome = toy_models.attacked_outcome("hidden")
    model, x0 = outcome.model, LatentProbe().images(outcome, LatentProbe().aims(outcome)[:3])[0]
    x = x0
    for t, s in ((9, None), (19, 9)):
        now, below = model.alpha_bar[t], torch.ones(()) if s is None else model.alpha_bar[s]
        eps = model.eps(x, torch.full((3,), t), model.null(3))
        x = now.sqrt() * (x - (1 - below).sqrt() * eps) / below.sqrt() + (1 - now).sqrt() * eps
    assert torch.allclose(inverted(model, x0, model.null(3), torch.tensor([9, 19]), 0), x, atol=1e-4)


@pytest.mark.parametrize("probe", ["0.75", "completion", "inversion"])
def test_targets_probed_in_groups_are_probed_alike(probe):
    outcome = toy_models.attacked_outcome("hidden")
    scores = [LatentProbe(probe=probe, refine=2, batch=size).measure(outcome) for size in (1, 4, 20)]
    assert all((score.per_image == scores[0].per_image).all() for score in scores)


def test_images_are_used_again_where_they_are_fewer_than_targets():
    outcome = toy_models.attacked_outcome("hidden", count=15)
    x0, shown = LatentProbe().images(outcome, LatentProbe().aims(outcome))
    assert shown.all()
    assert torch.equal(x0[12:], x0[:3]) and not torch.equal(x0[0], x0[1])


@pytest.mark.parametrize("probe", ["0.75", "inpainting", "inversion"])
def test_probes_run_on_stable_diffusion(tiny, probe):
    with torch.no_grad():
        tiny.task.data = lambda which: type(tiny.task).data(tiny.task, which)._replace(x0=torch.randn(5, 4, 8, 8))
    attack = LatentProbe(probe=probe, refine=1, targets=3)
    items = attack.aims(tiny)
    x, spent = attack.probed(tiny.model, torch.randn(3, 4, 8, 8), [item.seed for item in items], Sampler(2))
    assert x.shape == (3, 4, 8, 8) and x.isfinite().all() and spent > 0
    assert attack.measure(tiny).missing == 3  # images of noise show nothing that could be brought back


class _Blind(Guidance):
    """A method's own guidance, which sees nothing but noise."""

    def __call__(self, model, x_t, t, i, condition, null, w):
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("probe", ["0.5", "inversion"])
def test_a_methods_own_guidance_is_probed_with_the_weights(probe, rows):
    outcome = toy_models.attacked_outcome("hidden")
    outcome.model.guidance = _Blind()
    probed(outcome, probe)
    assert rows == []


@pytest.mark.parametrize(
    "attack", [INVERSION, *(LatentProbe(probe=p, refine=1) for p in ("0.75", "completion", "inversion"))], ids=str
)
def test_the_model_is_left_as_it_was(attack):
    outcome = toy_models.attacked_outcome("hidden")
    model = outcome.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guidance, hooks = model.guidance, [len(module._forward_hooks) for module in model.modules()]
    attack.measure(outcome)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(value.requires_grad or value.grad is not None for value in model.parameters())
    assert model.guidance is guidance and [len(module._forward_hooks) for module in model.modules()] == hooks


# ---- drawing -------------------------------------------------------------------------------------------------------


def test_targets_are_drawn_at_the_guidance_that_their_plan_says():
    outcome = toy_models.attacked_outcome("known")
    items = [item._replace(guidance=scale) for item, scale in zip(outcome.plan, (2.0, 0.0, 5.0, 2.0), strict=False)]
    x = sample_targets(outcome, items)
    for i, item in enumerate(items):
        sampler = replace(outcome.model.sampler, guidance=item.guidance or outcome.model.sampler.guidance)
        alone = outcome.model.sample(outcome.task.inputs([item]), [item.seed], sampler=sampler)[0]
        assert torch.allclose(x[i], alone, atol=1e-5)
    assert not torch.allclose(x[2], sample_targets(outcome, [items[2]._replace(guidance=0.0)])[0], atol=1e-4)


def test_searched_conditions_keep_to_their_targets_at_any_guidance(tiny):
    items = [item._replace(guidance=scale) for item, scale in zip(tiny.plan, (2.0, 0.0, 2.0), strict=False)]
    y = tiny.model.tokens(["red", "a photo of a seven", "blue one"])
    with torch.no_grad():
        x = sample_targets(tiny, items, conditions=lambda some: tiny.model.embed(y[some])._replace(ids=None))
        sampler = replace(tiny.model.sampler, guidance=2.0)
        alone = tiny.model.sample(tiny.model.embed(tiny.model.tokens(["blue one"])), [items[2].seed], sampler=sampler)
    assert torch.allclose(x[2:], alone, atol=1e-4)


def test_every_target_gets_an_image_that_shows_its_own_concept():
    """Of joint concepts the first images may all show one; targets without one are missing, not safe."""
    outcome = toy_models.attacked_outcome("known")
    data = toy_models.ToyClass.data(outcome.task, "both")
    mixed = (data.y == 3) | (data.y == 5)
    outcome.task.data = lambda which: data._replace(x0=data.x0[mixed], y=data.y[mixed])
    plan = LatentProbe().aims(outcome)
    items = [item._replace(label=label) for item, label in zip(plan, (3, 5, 3, 5, 7, 3), strict=True)]
    x0, shown = LatentProbe().images(outcome, items)
    assert x0.mean(dim=(1, 2)).argmax(dim=1)[shown].tolist() == [3, 5, 3, 5, 3]
    assert shown.tolist() == [True, True, True, True, False, True]


def test_a_model_whose_decoder_is_gone_recovers_nothing_rather_than_being_missing():
    """Which images show the concept is asked of the original: all methods are given the same ones."""
    outcome = toy_models.attacked_outcome("hidden")
    given, _ = LatentProbe().images(outcome, LatentProbe().aims(outcome))
    outcome.model.decode = torch.zeros_like
    again, shown = LatentProbe().images(outcome, LatentProbe().aims(outcome))
    assert shown.all() and torch.equal(given, again)
    score = LatentProbe(probe="0.5").measure(outcome)
    assert (score.value, score.missing) == (0.0, 0)
