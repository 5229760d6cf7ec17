"""BlindSpot, SFRon and Scissorhands: masks, new weights, projections and updates worked out in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.tiny_model import (
    NULL,
    Adam,
    Linear,
    T,
    TinyTask,
    assert_weights,
    combine,
    denoising,
    dot,
    draw,
    eps,
    moved,
    squared,
    weights,
)
from unlearnbench import Batch, Diffusion
from unlearnbench.diffusion.model import Condition
from unlearnbench.methods import blindspot, scissorhands
from unlearnbench.methods.blindspot import BlindSpot
from unlearnbench.methods.scissorhands import Scissorhands
from unlearnbench.methods.sfron import SFRon
from unlearnbench.techniques.activations import recorded_outputs
from unlearnbench.verification.conformance import TinyDigits

Mask = dict[str, np.ndarray]


def unlearn(method, task, seed=7, model=None):
    torch.manual_seed(seed)
    model = model or task.pretrained()
    return method.unlearn(model, task, method.prepare(model, task))


def scaled(g, factor):
    return {name: factor * value for name, value in g.items()}


def length(g):
    return np.sqrt(dot(g, g))


def clipped(g, clip):
    return scaled(g, min(1, clip / length(g))) if clip else g


def dropped(y, share):
    """Labels with some replaced by the null class, drawn as the methods do."""
    return np.where((torch.rand(len(y)) >= share).numpy(), y, NULL) if share else y


def noised_loss(w, batch, drop):
    """The denoising loss with dropped conditions, and its gradient."""
    t, noise, x_t = draw(batch.x0)
    return squared(w, x_t, t, dropped(batch.y.numpy(), drop), noise)


# ---- BlindSpot ---------------------------------------------------------------------------------------------------


class Deep(Diffusion):
    """eps = V (A x + E[y]): three modules own weights, in the order A, E, V."""

    def __init__(self, seed=0):
        super().__init__(Linear().alpha_bar, (1, 2, 2))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.A, self.E, self.V = nn.Linear(4, 5, bias=False), nn.Embedding(4, 5), nn.Linear(5, 4, bias=False)

    def embed(self, y):
        return Condition(self.E(y), ids=y)

    def null(self, n):
        return self.embed(torch.full((n,), NULL))

    def predict(self, x_t, t, condition):
        return self.V(self.A(x_t.flatten(1)) + condition.states).view_as(x_t)

    def parts(self):
        return {"full": list(self.parameters())}


class DeepTask(TinyTask):
    def architecture(self, seed):
        return Deep(seed)

    def pretrained(self):
        return Deep(0)


def deep(w, x, y):
    """Activations of A and E, and the output."""
    h, e = x @ w["A.weight"].T, w["E.weight"][y]
    return h, e, (h + e) @ w["V.weight"].T


def deep_gradient(w, x, y, goals):
    """Of the summed mean squared distances of activations and output from `goals`, weighted; by hand."""
    h, e, out = deep(w, x, y)
    found = {"h": h, "e": e, "out": out}
    g = {key: sum(weight * 2 * (found[key] - goal) / goal.size for weight, goal in goals[key]) for key in goals}
    inward = g.get("out", 0 * out) @ w["V.weight"]
    E = np.zeros_like(w["E.weight"])
    np.add.at(E, y, inward + g.get("e", 0))
    return {
        "A.weight": (inward + g.get("h", 0)).T @ x,
        "E.weight": E,
        "V.weight": g["out"].T @ (h + e) if "out" in g else np.zeros_like(w["V.weight"]),
    }


def blind_by_hand(task, method, batch_loss):
    """The blind model's weights, drawn and trained as in `prepare`."""
    w, adam = weights(task.architecture(int(torch.randint(2**31, ())))), Adam(method.blind_lr)
    for batch in task.batches(method.blind_steps, method.batch_size, "retain"):
        w = adam.step(w, batch_loss(w, batch))
    return w


def deep_denoising(w, batch):
    _, noise, x_t = draw(batch.x0)
    return deep_gradient(w, x_t, batch.y.numpy(), {"out": [(1, noise)]})


@pytest.mark.parametrize(("lam", "k"), [(0.0, 3), (0.6, 1), (0.6, 2), (0.6, 9)])
def test_blindspot_follows_output_and_activations_of_the_blind_model(lam, k):
    task, w = DeepTask(), weights(Deep(0))
    method = BlindSpot(steps=4, lr=0.03, batch_size=5, lam=lam, k=k, blind_steps=3, blind_lr=0.05)
    model = unlearn(method, task)
    torch.manual_seed(7)
    b = blind_by_hand(task, method, deep_denoising)
    keys = {1: ["e"], 2: ["h", "out"], 9: ["h", "e", "out"]}.get(k, [])
    adam = Adam(0.03)
    for forget, retain in task.paired_batches(4, 5):
        _, _, x_t = draw(forget.x0)
        y = forget.y.numpy()
        wanted = dict(zip(("h", "e", "out"), deep(b, x_t, y), strict=True))
        goals = {key: [(lam, wanted[key])] for key in keys}
        goals["out"] = [(1, wanted["out"]), *goals.get("out", [])]
        g = deep_gradient(w, x_t, y, goals)
        w = adam.step(w, combine(g, deep_denoising(w, retain), 1))
    assert_weights(model, w, 2e-5)
    assert moved(model, weights(Deep(0))) > 0.05


def test_blindspot_weighs_the_terms_of_mixed_batches_by_their_share():
    """The linear model owns its weights itself, so that its one activation is its output."""
    task, w = TinyTask(), weights(Linear(0))
    method = BlindSpot(steps=8, lr=0.03, batch_size=3, lam=0.5, mixed=True, drop=0.3, clip=0.2, blind_steps=2)
    model = unlearn(method, task)
    torch.manual_seed(7)
    b, adam, shares = weights(task.architecture(int(torch.randint(2**31, ())))), Adam(method.blind_lr), set()
    for batch in task.batches(2, 3, "retain"):
        b = adam.step(b, clipped(noised_loss(b, batch, 0.3)[1], 0.2))
    adam = Adam(0.03)
    for batch in task.batches(8, 3, "all"):
        gone = batch.y == 1
        share, y = gone.float().mean().item(), batch.y[gone].numpy()
        shares.add(share)
        g = scaled(w, 0)
        if share:
            t, _, x_t = draw(batch.x0[gone])
            wanted = eps(b, x_t, t, dropped(y, 0.3))
            g = scaled(squared(w, x_t, t, dropped(y, 0.3), wanted)[1], 1.5 * share)
        if share < 1:
            rest = Batch(batch.x0[~gone], batch.y[~gone])
            g = combine(g, noised_loss(w, rest, 0.3)[1], 1 - share)
        w = adam.step(w, clipped(g, 0.2))
    assert_weights(model, w)
    assert 0.0 in shares and len(shares) > 2, "a batch without forget images is among them"


def test_blindspot_of_the_released_code_follows_itself_and_so_only_fine_tunes():
    task, w = TinyTask(), weights(Linear(0))
    settings = {**BlindSpot.preset("released", "any"), "steps": 5, "lr": 0.03, "batch_size": 4, "drop": 0.0}
    method = BlindSpot.configured({**settings, "clip": None})
    model = unlearn(method, task)
    torch.manual_seed(7)
    for batch in task.batches(method.blind_steps, 4, "retain"):
        draw(batch.x0)
    adam = Adam(0.03)
    for batch in task.batches(5, 4, "all"):
        gone = batch.y == 1
        if gone.any():
            draw(batch.x0[gone])
        g = scaled(w, 0)
        if not gone.all():
            g = denoising(w, Batch(batch.x0[~gone], batch.y[~gone]))[1]
        w = adam.step(w, scaled(g, 1 - gone.float().mean().item()))
    assert_weights(model, w)


def test_the_blind_model_starts_fresh_or_from_the_original_and_is_frozen():
    task, model = TinyTask(), Linear(0)
    fresh = BlindSpot(blind_steps=1, blind_lr=1e-6).prepare(model, task)
    same = BlindSpot(blind_steps=1, blind_lr=1e-6, start="original").prepare(model, task)
    assert moved(fresh, weights(model)) > 0.1
    assert 0 < moved(same, weights(model)) < 1e-4
    assert not any(value.requires_grad for value in [*fresh.parameters(), *same.parameters()])
    assert all(value.requires_grad for value in model.parameters())
    assert_weights(model, weights(Linear(0)), 0)


class Partly(Linear):
    """Its embedding is no part of the denoiser, as a text encoder is not."""

    def parts(self):
        return {"full": [self.W, self.b], "text_encoder": [self.E]}


def test_the_blind_model_shares_what_the_denoiser_does_not_own(monkeypatch):
    monkeypatch.setattr(TinyTask, "architecture", lambda self, seed: Partly(seed))
    model = Partly(0)
    blind = BlindSpot(blind_steps=2, batch_size=3).prepare(model, TinyTask())
    assert torch.equal(blind.E, model.E)
    assert blind.E.data_ptr() != model.E.data_ptr()
    assert not torch.equal(blind.W, model.W)


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_hooks_are_gone_after_the_block_and_after_an_error():
    model = Deep(0)
    modules = {name: model.get_submodule(name) for name in ("V", "A")}
    with recorded_outputs(modules) as kept:
        assert hooks(model) == 2
        model.eps(torch.zeros(3, 1, 2, 2), torch.zeros(3).long(), torch.ones(3).long())
    assert [(name, x.shape) for name, x in kept] == [("A", (3, 5)), ("V", (3, 4))]
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), recorded_outputs(modules):
        model.eps(torch.zeros(3, 1, 9, 9), torch.zeros(3).long(), torch.ones(3).long())
    assert hooks(model) == 0


def test_unlearning_leaves_no_hooks_on_a_network():
    task = TinyDigits()
    model = unlearn(BlindSpot(batch_size=4), task)
    assert hooks(model) == 0


def test_modules_are_evenly_spaced_among_those_that_own_trained_weights():
    assert blindspot.owners(Deep(0)) == ["A", "E", "V"]
    assert blindspot.owners(Linear(0)) == [""]
    names = blindspot.owners(TinyDigits().pretrained())
    assert names[0] == "unet.conv_in" and "embedding" in names and "unet" not in names
    letters = list("abcdefghij")
    assert blindspot.evenly(letters, 1) == ["f"]
    assert blindspot.evenly(letters, 2) == ["c", "h"]
    assert blindspot.evenly(letters, 5) == ["b", "d", "f", "h", "j"]
    assert blindspot.evenly(letters, 99) == letters
    assert blindspot.evenly(letters, 0) == []


@pytest.mark.parametrize("shape", [(3, 4, 2, 5), (3, 6, 4), (3, 4)])
def test_attention_maps(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mean = (x.numpy() ** 2).mean(axis=1 if len(shape) == 4 else -1).reshape(3, -1)
    expected = mean / np.sqrt((mean**2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(blindspot.attention(x), expected, rtol=1e-5)


def test_maps_do_not_see_the_size_of_activations():
    """A model whose first layer is twice as large has other values and the same maps."""
    model, guide = Deep(0), Deep(0)
    with torch.no_grad():
        guide.A.weight *= 2
    batch = next(TinyTask().batches(1, 4, "forget"))

    def distance(compare):
        torch.manual_seed(0)
        return BlindSpot(lam=1e3, k=3, compare=compare).follow(model, guide, batch).item()

    assert distance("values") > 100 * distance("maps") > 0


# ---- SFRon -------------------------------------------------------------------------------------------------------


def fisher_by_hand(w, task, side, count, size, guidance, clip):
    total = scaled(w, 0)
    for batch in task.batches(count, size, side):
        t, noise, x_t = draw(batch.x0)
        y, null = batch.y.numpy(), np.full(len(t), NULL)
        r = (1 - guidance) * eps(w, x_t, t, null) + guidance * eps(w, x_t, t, y) - noise
        g = 2 * r / r.size
        E = np.zeros_like(w["E"])
        np.add.at(E, y, guidance * g)
        np.add.at(E, null, (1 - guidance) * g)
        grad = clipped({"W": g.T @ x_t, "E": E, "b": t / T @ g}, clip)
        total = {name: total[name] + grad[name] ** 2 / count for name in w}
    return total


def saliency_by_hand(w, task, counts, size, threshold, guidance=1.0, clip=None) -> Mask:
    f, r = (
        fisher_by_hand(w, task, side, count, size, guidance, clip)
        for side, count in zip(("forget", "retain"), counts, strict=True)
    )
    return {name: f[name] >= threshold * r[name] for name in w}


@pytest.mark.parametrize(
    ("settings", "counts", "size", "guidance", "clip"),
    [
        ({}, (6, 10), 1, 1.0, None),
        ({"fisher_samples": 4}, (4, 4), 1, 1.0, None),
        ({"fisher_samples": None, "fisher_batch": 4}, (2, 3), 4, 1.0, None),
        ({"fisher_batch": 3, "fisher_guidance": 3.0, "fisher_clip": 0.5}, (2, 4), 3, 3.0, 0.5),
    ],
)
@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_sfron_masks_by_the_ratio_of_fishers(settings, counts, size, guidance, clip, threshold):
    torch.manual_seed(7)
    mask = SFRon(threshold=threshold, **settings).prepare(Linear(0), TinyTask())
    torch.manual_seed(7)
    expected = saliency_by_hand(weights(Linear(0)), TinyTask(), counts, size, threshold, guidance, clip)
    for name, value in expected.items():
        np.testing.assert_array_equal(mask[name], value, err_msg=name)
    kept = sum(value.sum() for value in expected.values())
    assert 8 <= kept < 36, "row 1 of E has no retain gradient; something else is left out"


def sfron_by_hand(w, task, mask, method):
    adam = Adam(method.lr)
    for k, (forget, retain) in enumerate(task.paired_batches(method.steps, method.batch_size)):
        t, noise, x_t = draw(forget.x0)
        y = dropped(forget.y.numpy(), method.drop)
        singles = [squared(w, x_t[[i]], t[[i]], y[[i]], noise[[i]]) for i in range(len(t))]
        c = np.array([value for value, _ in singles]) ** -method.lam
        up = scaled(w, 0)
        for share, (_, grad) in zip(c / c.sum(), singles, strict=True):
            up = combine(up, grad, share)
        alpha = method.alpha_f * (1 + np.cos(np.pi * k / method.steps)) / 2
        w = adam.step(w, clipped({name: -alpha * mask[name] * up[name] for name in w}, method.clip))
        w = adam.step(w, clipped(scaled(noised_loss(w, retain, method.drop)[1], method.alpha_r), method.clip))
    return w


@pytest.mark.parametrize(
    "settings",
    [{}, {"lam": 0.0}, {"lam": 2.0, "alpha_f": 3.0, "alpha_r": 0.5}, {"clip": 0.3, "drop": 0.4, "alpha_f": 5.0}],
    ids=str,
)
def test_sfron_ascends_and_descends_by_turns(settings):
    task, w = TinyTask(), weights(Linear(0))
    method = SFRon(steps=4, lr=0.03, batch_size=3, threshold=2.0, **settings)
    model = unlearn(method, task)
    torch.manual_seed(7)
    mask = saliency_by_hand(w, task, (6, 10), 1, 2.0)
    assert_weights(model, sfron_by_hand(w, task, mask, method), 3e-5)
    assert moved(model, weights(Linear(0))) > 0.05


def test_sfron_ends_its_ascent_along_a_cosine():
    """What each step ascends by, read off the gradients it yields."""
    task, method = TinyTask(), SFRon(steps=4, batch_size=6, lam=0.0, alpha_f=2.0)
    model = Linear(0)
    ones = {name: torch.ones_like(value) for name, value in model.named_parameters()}
    torch.manual_seed(7)
    found = [{name: value.double().numpy() for name, value in g.items()} for g in method.turns(model, task, ones)]
    torch.manual_seed(7)
    for k, (forget, retain) in enumerate(task.paired_batches(4, 6)):
        up, down = denoising(weights(model), forget)[1], denoising(weights(model), retain)[1]
        alpha = 2 * (0.5 + 0.5 * np.cos(np.pi * k / 4))
        np.testing.assert_allclose(found[2 * k]["W"], -alpha * up["W"], atol=1e-5)
        np.testing.assert_allclose(found[2 * k + 1]["W"], down["W"], atol=1e-5)
    assert len(found) == 8


def test_sfron_counts_images_less_that_are_forgotten_already():
    batch = next(TinyTask().batches(1, 6, "forget"))

    def value(lam):
        torch.manual_seed(1)
        return SFRon(lam=lam).adaptive_loss(Linear(0), batch).item()

    torch.manual_seed(1)
    plain = denoising(weights(Linear(0)), batch)[0]
    assert value(0.0) == pytest.approx(plain, rel=1e-5)
    assert value(0.0) > value(0.5) > value(2.0) > 0


def test_sfron_without_salient_weights_only_fine_tunes():
    """A forget step then has no gradient, and Adam goes on by its momentum."""
    task, w = TinyTask(), weights(Linear(0))
    method = SFRon(steps=3, lr=0.03, batch_size=4, threshold=1e30)
    model = unlearn(method, task)
    torch.manual_seed(7)
    mask = saliency_by_hand(w, task, (6, 10), 1, 1e30)
    assert not mask["W"].any() and not mask["b"].any()
    assert mask["E"][[1, NULL]].all() and not mask["E"][[0, 2]].any(), "what no retain image moves"
    expected = sfron_by_hand(w, task, mask, method)
    assert_weights(model, expected)
    assert np.abs(expected["W"] - w["W"]).max() > 0.02


def test_sfron_with_threshold_zero_keeps_every_weight():
    mask = SFRon(threshold=0.0).prepare(Linear(0), TinyTask())
    assert all(value.all() for value in mask.values())


# ---- Scissorhands ------------------------------------------------------------------------------------------------


def sensitive_by_hand(w, task, count, size, share, absolute) -> Mask:
    total = scaled(w, 0)
    for batch in task.batches(count, size, "forget"):
        g = denoising(w, batch)[1]
        total = combine(total, {name: np.abs(g[name]) if absolute else g[name] for name in g}, 1)
    size_of = {name: np.abs(total[name] * w[name]) for name in w}
    least = np.sort(np.concatenate([value.ravel() for value in size_of.values()]))[-round(36 * share)]
    return {name: value >= least for name, value in size_of.items()}


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize(("batches", "absolute"), [(None, False), (5, True)])
def test_scissorhands_chooses_the_most_sensitive_weights(share, batches, absolute):
    method = Scissorhands(batch_size=4, share=share, batches=batches, absolute=absolute)
    torch.manual_seed(7)
    chosen = method.prepare(Linear(0), TinyTask())
    torch.manual_seed(7)
    expected = sensitive_by_hand(weights(Linear(0)), TinyTask(), batches or 2, 4, share, absolute)
    for name, value in expected.items():
        np.testing.assert_array_equal(chosen[name], value, err_msg=name)
    assert sum(value.sum() for value in chosen.values()) == round(36 * share)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 24)])
def test_scissorhands_never_chooses_weights_without_sensitivity(share, count):
    """Rows 0, 2 and null of E have no gradient on forget images."""
    chosen = Scissorhands(share=share, batch_size=6).prepare(Linear(0), TinyTask())
    assert sum(int(value.sum()) for value in chosen.values()) == count
    assert not chosen["E"][[0, 2, NULL]].any()


def test_scissorhands_draws_the_chosen_weights_anew_and_no_others():
    task, model, w = TinyTask(), Linear(0), weights(Linear(0))
    torch.manual_seed(7)
    chosen = Scissorhands(share=0.3, batch_size=6).prepare(model, task)
    torch.manual_seed(8)
    Scissorhands().trim(model, task, chosen)
    torch.manual_seed(8)
    fresh = weights(Linear(int(torch.randint(2**31, ()))))
    assert_weights(model, {name: np.where(chosen[name], fresh[name], w[name]) for name in w}, 0)
    assert all(value.requires_grad for value in model.parameters())


def test_scissorhands_of_the_released_code_draws_matrices_uniformly_and_empties_biases(monkeypatch):
    monkeypatch.setattr(TinyTask, "architecture", lambda self, seed: TinyDigits().architecture(1))
    model, plain = TinyDigits().pretrained(), TinyDigits().pretrained()
    fresh = dict(TinyDigits().architecture(1).named_parameters())
    everything = {name: torch.ones_like(value, dtype=torch.bool) for name, value in model.select("full").items()}
    some = {**everything, "unet.conv_in.weight": everything["unet.conv_in.weight"].clone()}
    some["unet.conv_in.weight"][3:] = False
    Scissorhands(init="kaiming").trim(model, TinyTask(), some)
    new = dict(model.named_parameters())
    assert not new["unet.conv_in.bias"].any()
    assert torch.equal(new["unet.conv_norm_out.weight"], fresh["unet.conv_norm_out.weight"])
    assert torch.equal(new["unet.conv_in.weight"][3:], plain.unet.conv_in.weight[3:])
    wide = new["unet.time_embedding.linear_1.weight"]
    bound = np.sqrt(6 / wide.shape[1])
    assert 0.95 * bound < wide.abs().max() <= bound
    assert wide.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.1)


def projected_by_hand(g, g_o, margin):
    if dot(g, g_o) >= 0:
        return g
    return combine(g, g_o, max(margin, -dot(g, g_o) / dot(g_o, g_o)))


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize(("forget", "lam"), [("relabel", 0.7), ("relabel", 0.0), ("ascent", 0.2)])
@pytest.mark.parametrize("margin", [0.0, 2.0])
def test_scissorhands_trims_and_repairs(project, forget, lam, margin):
    task, w = TinyTask(), weights(Linear(0))
    method = Scissorhands(
        steps=6, lr=0.03, batch_size=4, share=0.2, lam=lam, forget=forget, project=project, margin=margin
    )
    model = unlearn(method, task)
    torch.manual_seed(7)
    chosen = sensitive_by_hand(w, task, 2, 4, 0.2, False)
    fresh = weights(task.architecture(int(torch.randint(2**31, ()))))
    w = {name: np.where(chosen[name], fresh[name], w[name]) for name in w}
    if project:
        g_o = scaled(denoising(w, next(iter(task.batches(1, 4, "forget"))))[1], -1)
    adam, conflicts = Adam(0.03), 0
    for pair in task.paired_batches(6, 4):
        g = denoising(w, pair[1])[1]
        if forget == "ascent":
            g = combine(g, denoising(w, pair[0])[1], -lam)
        else:
            t, _, x_t = draw(pair[0].x0)
            y = pair[0].y.numpy()
            g = combine(g, squared(w, x_t, t, y, eps(w, x_t, t, (y + 1) % 3))[1], lam)
        if project:
            conflicts += dot(g, g_o) < 0
            g = projected_by_hand(g, g_o, margin)
        w = adam.step(w, g)
    assert_weights(model, w, 3e-5)
    assert conflicts or not project, "the projection is at work"


def test_a_gradient_is_projected_only_where_it_conflicts():
    g_o = {"W": torch.tensor([2.0, 0.0]), "b": torch.tensor([0.0])}
    along = {"W": torch.tensor([1.0, 3.0]), "b": torch.tensor([-1.0])}
    across = {"W": torch.tensor([0.0, 3.0]), "b": torch.tensor([1.0])}
    against = {"W": torch.tensor([-1.0, 3.0]), "b": torch.tensor([5.0])}
    assert scissorhands.projected(along, g_o, 9.0) is along
    assert scissorhands.projected(across, g_o, 9.0) is across
    none = {"W": torch.zeros(2), "b": torch.zeros(1)}
    assert scissorhands.projected(against, none) is against, "there is nothing to protect"
    found = scissorhands.projected(against, g_o)
    assert found["W"].tolist() == [0.0, 3.0] and found["b"].tolist() == [5.0]
    assert scissorhands.projected(against, g_o, 9.0)["W"].tolist() == [17.0, 3.0]


# ---- all three ---------------------------------------------------------------------------------------------------


def test_the_papers_and_codes_settings():
    def preset(cls, name):
        return cls.configured(cls.preset(name, "cifar10-class"))

    code = preset(SFRon, "released")
    assert (code.steps, code.lr, code.batch_size, code.clip, code.threshold) == (150, 1e-4, 128, 1.0, 1.0)
    assert (code.alpha_f / 3072, code.alpha_r / 3072, code.fisher_clip * 3072) == pytest.approx((10, 1, 1))
    paper = preset(SFRon, "published")
    assert (paper.steps, paper.alpha_f, paper.alpha_r, paper.clip, paper.fisher_batch) == (50, 10, 1, None, 1)
    code = preset(Scissorhands, "released")
    assert (code.share, code.lam, code.batches, code.project, code.lr) == (0.005, 0.1, 10, False, 1e-5)
    assert set(Scissorhands.presets) == {"default", "released"}
    code, authors = preset(BlindSpot, "released"), preset(BlindSpot, "published")
    assert (code.start, code.target, code.lam, code.mixed) == ("original", "self", 0, True)
    assert (authors.start, authors.target, authors.lam, authors.compare) == ("fresh", "blind", 50, "maps")


@pytest.mark.parametrize("cls", [BlindSpot, SFRon, Scissorhands])
def test_caps_of_a_conformance_check_hold(cls):
    """Two batches at most for each loop, whatever the settings."""
    model, task = Linear(0), TinyTask(limit=2)
    unlearn(cls(batch_size=3), task, model=model)
    assert model.forwards <= 10
