"""Gates, and what they are found from, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tiny_text import TinyText
from unlearnbench.diffusion.schedulers import Scheduled
from unlearnbench.techniques.adapters import adapters, attach
from unlearnbench.techniques.gates import (
    ConceptGate,
    OutputMoments,
    act_late,
    pooled,
    principal_directions,
    share_in_span,
    watch_sampling,
)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp("gates") / "model")


def test_moments_are_those_of_all_that_came():
    x = np.random.default_rng(0).normal(size=(4, 5, 3))
    found = OutputMoments()
    for part in (x[:1], x[1:]):
        found.add(torch.tensor(part))
    rows = x.reshape(-1, 3)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), atol=1e-12)


def test_principal_directions_and_likeness():
    rng = np.random.default_rng(1)
    A, x, origin = rng.normal(size=(6, 6)), rng.normal(size=(2, 4, 6)), rng.normal(size=6)
    basis = principal_directions(torch.tensor(A @ A.T), 2)
    U = np.linalg.svd(A @ A.T)[0][:, :2]
    np.testing.assert_allclose(basis.mT @ basis, U @ U.T, atol=1e-10)
    off = x - origin
    expected = ((off @ U) ** 2).sum(-1) / (off**2).sum(-1)
    np.testing.assert_allclose(share_in_span(torch.tensor(x), torch.tensor(origin), basis), expected, atol=1e-12)
    assert expected.min() > 0 and expected.max() < 1
    assert share_in_span(torch.tensor(origin), torch.tensor(origin), basis) == 0


def filled(gate, seed=0):
    rng = np.random.default_rng(seed)
    for name, value in gate.state_dict().items():
        value.copy_(torch.tensor(rng.normal(size=value.shape)))
        if name == "basis":
            value.copy_(torch.linalg.qr(value.mT)[0].mT)
    gate.threshold.copy_(torch.tensor([0.2, 0.25]))
    gate.slope.fill_(20.0)
    return {name: value.double().numpy() for name, value in gate.state_dict().items()}


def by_hand(x, p, eta):
    """What is added at one position: that of the concept whose gate is widest open."""
    open_, added = [], []
    for k in range(len(p["slope"])):
        u = (x - p["origin"][k]) / np.linalg.norm(x - p["origin"][k])
        s = 1 / (1 + np.exp(-p["slope"][k] * (((p["basis"][k] @ u) ** 2).sum() - p["threshold"][k])))
        new = eta * (p["target"][k] + p["up"][k].T @ p["down"][k] @ (x - p["source"][k]))
        open_.append(s)
        added.append((1 - s) * x + s * new - x)
    return added[int(np.argmax(open_))], int(np.argmax(open_))


def test_a_gate_replaces_what_looks_like_a_concept():
    gate = ConceptGate(6, concepts=2, gate_rank=2, rank=3, eta=1.5).double()
    p, x = filled(gate), np.random.default_rng(3).normal(size=(2, 7, 6))
    expected, which = zip(*(by_hand(row, p, 1.5) for row in x.reshape(-1, 6)), strict=True)
    found = gate(torch.tensor(x))
    np.testing.assert_allclose(found, np.reshape(expected, x.shape), atol=1e-10)
    assert set(which) == {0, 1}, "either counts somewhere"
    gate.gate = torch.tensor([0.0, 1.0])
    np.testing.assert_allclose(gate(torch.tensor(x)), np.reshape(expected, x.shape) * [[[0]], [[1]]], atol=1e-10)


def test_a_gate_adds_nothing_at_first():
    x = torch.randn(2, 5, 8) * 100
    assert (ConceptGate(8, concepts=2, gate_rank=1, rank=2)(x) == 0).all()


def test_gates_act_only_late_in_sampling(task):
    model = task.pretrained()
    layer = model.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_out[0]
    attach(layer, ConceptGate(16, 1, 1, 1), after=True)
    act_late(model, 0.2)
    (gate,) = adapters(model).values()
    y = task.original.tokens(["seven", "cat", "one"])
    with torch.no_grad():
        model.eps(torch.randn(3, 4, 8, 8), torch.tensor([981, 800, 799]), y)
        assert gate.gate.tolist() == [0, 0, 1]
        model.eps(torch.randn(3, 4, 8, 8), torch.tensor(300), y)
        assert gate.gate.tolist() == [1, 1, 1]


def test_sampling_is_watched_at_some_steps_for_the_prompt_alone(task):
    model, seen = task.pretrained(), []
    layer = {"out": model.unet.conv_out}
    y, sampler = task.original.tokens(["a red seven"]), Scheduled(steps=4, guidance=3.0)
    watch_sampling(model, y, [5, 6], sampler, [1, 2], layer, lambda name, x: seen.append((name, x)))
    with torch.no_grad():
        for (name, x), step in zip(seen, (1, 2), strict=True):
            x_t = task.original.sample(y.repeat(2, 1), [5, 6], sampler=sampler, until=4 - step)
            t = task.original.timesteps(sampler)[step].expand(2)
            torch.testing.assert_close(x, task.original(x_t, t, y.repeat(2, 1)), rtol=0, atol=1e-5)
            assert name == "out"


def test_outputs_are_averaged_over_squares():
    x = torch.randn(2, 4 * 8, 3)
    levels = list(pooled(x, (4, 16, 32), 4))
    assert [level.shape[1] for level in levels] == [32, 8, 2]
    assert torch.equal(levels[0], x)
    image = x.view(2, 4, 8, 3)
    torch.testing.assert_close(levels[1][:, 0], image[:, :2, :2].mean(dim=(1, 2)))
    torch.testing.assert_close(levels[2][:, 1], image[:, :, 4:].mean(dim=(1, 2)))
