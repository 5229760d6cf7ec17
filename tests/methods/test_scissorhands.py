"""Scissorhands: masks, new weights, projections and updates worked out in NumPy, and its settings against its code."""

import numpy as np
import pytest
import torch

from tests.support.tiny_model import (
    NULL,
    Adam,
    Linear,
    TinyTask,
    assert_weights,
    combine,
    denoising,
    dot,
    draw,
    eps,
    squared,
    weights,
)
from unlearnbench.methods import scissorhands
from unlearnbench.methods.scissorhands import Scissorhands
from unlearnbench.verification.conformance import TinyDigits

Mask = dict[str, np.ndarray]


def unlearn(method, task, seed=7, model=None):
    torch.manual_seed(seed)
    model = model or task.pretrained()
    return method.unlearn(model, task, method.prepare(model, task))


def scaled(g, factor):
    return {name: factor * value for name, value in g.items()}


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


def test_caps_of_a_conformance_check_hold():
    """Two batches at most for each loop, whatever the settings."""
    model, task = Linear(0), TinyTask(limit=2)
    unlearn(Scissorhands(batch_size=3), task, model=model)
    assert model.forwards <= 10
