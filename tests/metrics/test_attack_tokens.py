"""UnlearnDiffAtk and P4D: each step against a computation of its own, and searches whose outcome is known."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from unlearnbench import Guidance, registry
from unlearnbench.attacks.prompt_search import Prompts, arranged, evenly, reread
from unlearnbench.attacks.search import allowed, fill_tokens, nearest, open_prompts, sample_targets
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.errors import Unsupported
from unlearnbench.metrics.p4d import P4D, apart
from unlearnbench.metrics.unlearndiffatk import UnlearnDiffAtk
from unlearnbench.testing import toy_models

COUNT = 4
UDA = UnlearnDiffAtk(timesteps=2, iterations=3, targets=COUNT)
SHORT = P4D(steps=4, every=2, targets=COUNT)
FOUND = [replace(UDA, timesteps=5, iterations=40, lr=0.1), replace(SHORT, steps=200, every=20)]
KINDS = ["relaxed", "hard", "soft"]


def world(fate="lost"):
    return toy_models.attacked_outcome(fate, text=True, count=COUNT)


def prefix(n):
    return [0, 0, *range(1, n + 1)]


def prompts(outcome, kind="hard", pattern=prefix, rows=slice(None), optimiser=torch.optim.Adam, lr=0.1, decay=0.1):
    y = outcome.task.tokens(["a seven", "the red number seven", "seven"])[rows]
    return Prompts(outcome.model, y, pattern, kind, optimiser, lr, decay)


def pull(condition):
    """A loss (B,) that has a gradient in every state."""
    weights = torch.linspace(-1, 2, condition.states[0].numel()).view_as(condition.states[0])
    return (condition.states * weights + condition.states.square()).flatten(1).sum(dim=1)


def bisected(v):
    """The simplex's projection as the released code finds it: shift until the clipped sum is one."""
    low, high = v.min() - 1, v.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (v - middle).clamp(0, 1).sum() > 1 else (low, middle)
    return (v - low).clamp(0, 1)


def adam(value, grad, lr):
    """Adam's first step."""
    return value - lr * grad / (grad.abs() + 1e-8)


# ---- where free tokens stand ---------------------------------------------------------------------------------------


def test_a_prefix_is_what_opened_and_filled_make():
    outcome = world()
    y = outcome.task.tokens(["a seven", "a drawing of the number seven in red " + "a " * 20])
    moved, number = arranged(outcome.model, y, prefix)
    assert torch.equal(moved, open_prompts(outcome.model, y, 2))
    assert number.tolist() == [[-1, 0, 1, *[-1] * (y.shape[1] - 3)]] * 2
    assert (moved == outcome.task.tokenizers[0].eos_token_id).any(dim=1).all(), "the end is cut"


@pytest.mark.parametrize(
    ("form", "n", "expected"),
    [
        ("k", 6, [0, 1, 2, 3, 0, 4, 5, 6, 0]),
        ("k", 4, [0, 1, 2, 3, 0, 4]),
        ("k", 1, [0, 1]),
        ("prefix", 2, [0] * 5 + [1, 2]),
        ("n", 0, [0] * 5),
    ],
)
def test_p4d_has_free_tokens_where_the_paper_has(form, n, expected):
    assert P4D(form=form, size=5).pattern(n) == expected


def test_prompts_of_different_lengths_have_free_places_of_their_own():
    outcome = world()
    y = outcome.task.tokens(["a seven", "a photo of a red seven"])
    moved, number = arranged(outcome.model, y, P4D(form="k").pattern)
    assert [row[row >= 0].tolist() for row in number] == [[0], [0, 1, 2]]
    for old, new, free in zip(y, moved, number, strict=True):
        kept = new[free < 0]
        assert torch.equal(kept, old[: len(kept)])


def test_more_free_tokens_than_there_is_room_for_are_cut():
    outcome = world()
    y = outcome.task.tokens([""])
    moved, number = arranged(outcome.model, y, P4D(size=100).pattern)
    assert int(number.max()) + 1 == y.shape[1] - 2
    assert moved[0, -1] == outcome.task.tokenizers[0].eos_token_id


def test_timesteps_are_the_published_ones_and_scale_with_the_schedule():
    assert evenly(50, 1000) == list(range(10, 1000, 20))
    assert evenly(5, 1000) == [100, 300, 500, 700, 900]
    assert evenly(50, 100) == list(range(1, 100, 2))
    assert evenly(50, 20) == list(range(20))
    assert [int(replace(P4D(), timesteps=2, steps=6).times(s, 1, 100)[0]) for s in range(1, 7)] == [25] * 3 + [75] * 3


def test_without_a_schedule_timesteps_are_drawn_for_each_target():
    torch.manual_seed(0)
    t = P4D().times(1, 5000, 100)
    assert t.min() == 0 and t.max() == 99 and abs(t.float().mean() - 49.5) < 2


# ---- one step ------------------------------------------------------------------------------------------------------


def test_a_relaxed_step_is_straight_through_adam_and_the_projection():
    outcome = world("known")
    searched = prompts(outcome, "relaxed")
    rows, table = allowed(outcome.model), searched.table
    uniform = torch.full((3, 2, len(rows)), 1 / len(rows))
    torch.manual_seed(5)
    picked = torch.multinomial(uniform.view(6, -1), 1).view(3, 2)
    torch.manual_seed(5)
    searched.step(pull, torch.arange(3))
    ids = outcome.task.tokens(["a seven", "the red number seven", "seven"])
    for b in range(3):
        one_hot = torch.eye(len(rows))[picked[b]].requires_grad_()
        states = torch.cat([table[ids[b, :1]], one_hot @ table[rows], table[ids[b, 1:-2]]])
        condition = outcome.model.embed(ids[b : b + 1])._replace(states=states[None])
        (grad,) = torch.autograd.grad(pull(condition).sum(), one_hot)
        moved = adam(uniform[b], grad.clamp(-1, 1) + 0.1 * uniform[b], 0.1)
        expected = torch.stack([bisected(v) for v in moved])
        assert torch.allclose(searched.free[b], expected, atol=1e-5)


def test_a_hard_step_moves_embeddings_by_the_gradient_at_the_nearest_tokens():
    outcome = world("known")
    searched = prompts(outcome, "hard", optimiser=torch.optim.AdamW)
    searched.free.data = torch.randn(searched.free.shape, generator=torch.Generator().manual_seed(0))
    before = searched.free.data.clone()
    searched.step(pull, torch.arange(3))
    rows, table = allowed(outcome.model), searched.table
    weights = torch.linspace(-1, 2, 16 * 10).view(16, 10)
    for b in range(3):
        for place in range(2):
            cosines = [float(torch.cosine_similarity(before[b, place], table[row], dim=0)) for row in rows]
            at = table[rows[int(np.argmax(cosines))]]
            grad = weights[1 + place] + 2 * at
            assert torch.allclose(
                searched.free[b, place], adam(before[b, place] * (1 - 0.1 * 0.1), grad, 0.1), atol=1e-5
            )


def test_a_soft_step_moves_embeddings_by_their_own_gradient():
    searched = prompts(world("known"), "soft", decay=0.0)
    before = searched.free.data.clone()
    searched.step(pull, torch.arange(3))
    weights = torch.linspace(-1, 2, 16 * 10).view(16, 10)
    expected = adam(before, weights[1:3] + 2 * before, 0.1)
    assert torch.allclose(searched.free.data, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_prompts_are_searched_each_by_itself(kind):
    outcome = world("known")
    together = prompts(outcome, kind)
    for step in range(4):
        together.step(pull, torch.arange(3) if step < 2 else torch.tensor([0, 2]))
    for b, steps in ((0, 4), (2, 4)):
        alone = prompts(outcome, kind, rows=slice(b, b + 1))
        alone.free.data = prompts_start(outcome, kind)[b : b + 1].clone()
        together_again = prompts(outcome, kind)
        together_again.free.data = prompts_start(outcome, kind)
        for _ in range(steps):
            alone.step(pull, torch.arange(1))
            together_again.step(pull, torch.tensor([0, 2]))
        assert torch.allclose(alone.free[0], together_again.free[b], atol=1e-6)


def prompts_start(outcome, kind):
    torch.manual_seed(11)
    return prompts(outcome, kind).free.data.clone()


def test_p4d_is_the_distance_to_what_the_original_predicts():
    outcome = world("known")
    y = outcome.task.inputs(outcome.plan[:2])
    x_t, t = torch.randn(2, *outcome.model.shape), torch.tensor([20, 70])
    goal, other = outcome.original.eps(x_t, t, y), outcome.task.tokens(["red", "red"])
    assert apart(goal, outcome.model, x_t, t, outcome.model.embed(y)).tolist() == [0, 0]
    found = apart(goal, outcome.model, x_t, t, outcome.model.embed(other))
    eps = outcome.model.eps(x_t, t, other)
    expected = [
        sum((a - b) ** 2 for a, b in zip(e.flatten(), g.flatten(), strict=True)) / 40
        for e, g in zip(eps, goal, strict=True)
    ]
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)


# ---- what a prompt says --------------------------------------------------------------------------------------------


def test_a_found_prompt_is_asked_as_its_text_is_read():
    outcome, task = world(), world().task
    searched = prompts(outcome, "hard")
    glued = task.tokenizers[0].convert_tokens_to_ids("b")
    searched.free.data[:] = torch.nn.functional.normalize(torch.randn(3, 2, 10), dim=2)
    searched.tokens = lambda likeliest=True: torch.full((3, 2), glued)
    asked = searched.found(task, torch.arange(3))
    assert torch.equal(asked, task.tokens(["bba seven", "bbthe red number seven", "bbseven"]))
    assert torch.equal(reread(task, asked), asked)


@pytest.mark.parametrize("kind", KINDS)
def test_only_soft_prompts_have_no_tokens(kind):
    outcome = world("known")
    searched, seen = prompts(outcome, kind), []
    searched.step(lambda condition: (seen.append(condition), pull(condition))[1], torch.arange(3))
    assert (seen[0].ids is None) == (kind == "soft")
    if kind != "soft":
        assert torch.equal(seen[0].states, outcome.model.embed(seen[0].ids).states)


def test_both_encoders_of_xl_have_the_same_tokens(tmp_path):
    from tests.support import tiny_sd
    from unlearnbench.models.loading import load_stable_diffusion

    model = load_stable_diffusion(tiny_sd.save(tmp_path / "xl", "sdxl")).requires_grad_(False).eval()
    y = model.tokens(["a photo of a cat", "one"])
    for kind in KINDS:
        searched = Prompts(model, y, prefix, kind, torch.optim.Adam, 0.1, 0.1)
        seen, before = [], searched.free.data.clone()
        searched.step(lambda c, seen=seen: (seen.append(c), pull(c) + c.pooled.sum(dim=1))[1], torch.arange(2))
        assert not torch.equal(before, searched.free.data)
        if kind == "soft":
            continue
        ids = seen[0].ids
        assert torch.equal(ids[:, 0, 1:3], ids[:, 1, 1:3])
        assert torch.equal(ids, fill_tokens(open_prompts(model, y, 2), ids[:, 0, 1:3]))
        assert torch.allclose(seen[0].states, model.embed(ids).states, atol=1e-6)
    both = torch.cat([encoder.get_input_embeddings().weight for encoder in model.text_encoders], dim=1)
    assert torch.equal(nearest(both[None, 70:72], both, allowed(model)), torch.tensor([[70, 71]]))


# ---- searches whose outcome is known -------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", FOUND, ids=lambda attack: attack.name)
@pytest.mark.parametrize(("fate", "share"), [("hidden", 1.0), ("lost", 0.0), ("known", 1.0)])
def test_what_is_hidden_is_found_and_what_is_lost_is_not(attack, fate, share):
    score = attack.measure(world(fate))
    assert (score.value, score.missing) == (share, 0)
    whole = 200 if attack.name == "unlearndiffatk" else 400
    assert {"known": (score.spent == 0), "lost": (score.spent == whole), "hidden": (score.spent > 0)}[fate].all()


@pytest.mark.parametrize("variant", ["hard", "soft", "k", "prefix"])
def test_every_variant_tells_hidden_from_lost(variant):
    attack = UnlearnDiffAtk() if variant in ("hard", "soft") else P4D()
    hidden, lost = ((attack.configured(variant, o.task).measure(o)) for o in (world("hidden"), world("lost")))
    assert hidden.value > 0.4 and lost.value == 0


@pytest.mark.parametrize("attack", [UDA, SHORT], ids=lambda attack: attack.name)
def test_nothing_is_searched_at_budget_0(attack):
    outcome = world()
    graded = counted(outcome.model)
    score = attack.measure(outcome, budget=0)
    assert score.value == 0 and score.spent.tolist() == [0] * COUNT and sum(graded) == 0


def test_a_filter_of_words_stops_searches_for_words_and_falls_to_embeddings():
    outcome = world("known")
    registry.load_method("prompt_filter")().wrap(outcome.model, outcome.task)
    attack = replace(FOUND[0], timesteps=2)
    with pytest.raises(Unsupported, match=f"no gradient for {COUNT} of {COUNT} conditions"):
        attack.measure(outcome)
    assert replace(attack, kind="soft").measure(outcome).value == 1


def counted(model):
    """Rows that the model predicts with a gradient, as they come."""
    rows, predict = [], model.predict

    def wrapped(x_t, t, condition):
        rows.append(len(x_t) if torch.is_grad_enabled() and condition.states.requires_grad else 0)
        return predict(x_t, t, condition)

    model.predict = wrapped
    return rows


def test_unlearndiffatk_spends_one_evaluation_an_iteration():
    outcome = world()
    graded = counted(outcome.model)
    score = UDA.measure(outcome)
    assert score.spent.tolist() == [6] * COUNT and sum(graded) == 6 * COUNT


def test_p4d_spends_one_evaluation_of_each_model_a_step():
    outcome = world()
    graded, asked, predict = counted(outcome.model), [], outcome.original.predict
    outcome.original.predict = lambda x_t, t, c: (asked.append(len(x_t)), predict(x_t, t, c))[1]
    score = SHORT.measure(outcome)
    drawing = COUNT * outcome.task.protocol.sampler.steps
    assert score.spent.tolist() == [8] * COUNT
    assert sum(graded) + sum(asked) - drawing == 8 * COUNT


def test_recovered_targets_are_not_searched_further():
    outcome = world("hidden")
    graded = counted(outcome.model)
    score = replace(FOUND[0], iterations=10).measure(outcome)
    assert score.value == 1 and len(set(score.spent)) > 1, "all were found at once: the test shows nothing"
    assert sum(graded) == score.spent.sum()


@pytest.mark.parametrize("attack", [UDA, replace(UDA, kind="hard"), SHORT], ids=str)
def test_the_model_is_left_as_it_was(attack):
    outcome = world()
    outcome.model.requires_grad_(True)
    before, guidance = deepcopy(outcome.model.state_dict()), outcome.model.guidance
    attack.measure(outcome)
    after = outcome.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(value.requires_grad and value.grad is None for value in outcome.model.parameters())
    assert outcome.model.guidance is guidance
    assert not any(module._forward_hooks for module in outcome.model.modules())


@pytest.mark.parametrize("attack", [UDA, SHORT], ids=lambda attack: attack.name)
def test_the_same_search_finds_the_same(attack):
    scores = [replace(attack, lr=0.1).measure(world("hidden")) for _ in range(2)]
    assert np.array_equal(scores[0].per_image, scores[1].per_image) and np.array_equal(scores[0].spent, scores[1].spent)


@pytest.mark.parametrize("attack", [UDA, SHORT], ids=lambda attack: attack.name)
def test_targets_in_smaller_groups_are_all_searched(attack):
    score = replace(attack, batch=3).measure(world())
    assert score.n == COUNT and score.spent.tolist() == [score.spent.max()] * COUNT


# ---- what cannot be done -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [UDA, SHORT], ids=lambda attack: attack.name)
def test_a_search_that_breaks_is_missing_and_not_safe(attack):
    outcome, predict = world(), world().model.predict
    outcome.model.predict = lambda x_t, t, c: predict(x_t, t, c) * (torch.nan if torch.is_grad_enabled() else 1)
    score = attack.measure(outcome)
    assert score.value is None and score.missing == COUNT and "not finite" in score.reason


class Blind(Guidance):
    """Lets no gradient through."""

    def __call__(self, *given):
        with torch.no_grad():
            return super().__call__(*given)


@pytest.mark.parametrize("attack", [UDA, SHORT], ids=lambda attack: attack.name)
def test_a_method_without_gradients_is_skipped(attack):
    outcome = world()
    outcome.model.guidance = Blind()
    with pytest.raises(Unsupported, match="no gradient"):
        attack.measure(outcome)


@pytest.mark.parametrize("attack", [UDA, SHORT], ids=lambda attack: attack.name)
def test_labels_have_no_text_to_search_in(attack):
    with pytest.raises(Unsupported, match="class labels"):
        attack.measure(toy_models.attacked_outcome("known"))


# ---- settings ------------------------------------------------------------------------------------------------------


def test_the_built_in_settings_are_as_long_as_the_codes():
    uda, p4d = UnlearnDiffAtk(), P4D()
    assert (uda.k, uda.timesteps, uda.iterations, uda.lr, uda.decay) == (5, 50, 40, 0.01, 0.1)
    assert (p4d.form, p4d.size, p4d.spacing, p4d.steps, p4d.every, p4d.lr, p4d.decay) == (
        "n",
        16,
        3,
        3000,
        50,
        0.1,
        0.1,
    )
    task = world().task
    assert uda.configured("full", task) == uda and p4d.configured("full", task) == p4d
    assert uda.configured("", task).timesteps * uda.configured("", task).iterations == 100


def test_targets_are_drawn_at_their_own_guidance():
    outcome = world("known")
    items = [item._replace(guidance=scale) for item, scale in zip(outcome.plan, (0.0, 4.0, 4.0, 7.0), strict=False)]
    x = sample_targets(outcome, items)
    scales = (outcome.model.sampler.guidance, 4.0, 4.0, 7.0)
    for row, item, scale in zip(x, items, scales, strict=True):
        sampler = Sampler(steps=10, guidance=scale)
        alone = outcome.model.sample(outcome.task.inputs([item]), [item.seed], sampler=sampler)[0]
        assert torch.allclose(row, alone, atol=1e-5)
    given = sample_targets(outcome, items, sampler=Sampler(steps=10, guidance=2.0))
    assert not torch.allclose(given[3], x[3])
