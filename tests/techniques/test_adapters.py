"""Adapters beside layers, and what the text encoder is asked by methods that search in it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.support import tiny_sd
from unlearnbench.methods.spm import SPM
from unlearnbench.models.loading import load_stable_diffusion
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.unlearning import unlearn
from unlearnbench.techniques.adapters import LowRank, adapters, attach, switch, trained
from unlearnbench.verification.conformance import TinyWords


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def model(request, tmp_path_factory):
    return load_stable_diffusion(tiny_sd.save(tmp_path_factory.mktemp(request.param) / "model", request.param)).eval()


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Conv2d(4, 6, 3, 2, 1)], ids=["linear", "convolution"])
def test_low_rank_adds_the_product_to_the_weight(layer):
    adapter = LowRank(layer, 2, alpha=4.0)
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(3, 5) if isinstance(layer, nn.Linear) else torch.randn(3, 4, 8, 8)
    product = 2.0 * (adapter.up.weight.flatten(1) @ adapter.down.weight.flatten(1)).view_as(layer.weight)
    merged = copy.deepcopy(layer)
    merged.weight.data += product
    attach(layer, adapter)
    torch.testing.assert_close(layer(x), merged(x))
    adapter.gate = torch.tensor([0.0, 1.0, 0.5])
    plain = nn.functional.linear(x, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else None
    if plain is not None:
        torch.testing.assert_close(layer(x)[0], plain[0])
        torch.testing.assert_close(layer(x)[2], (plain[2] + merged(x)[2]) / 2)


def test_a_fresh_adapter_changes_nothing_and_can_be_switched_off(model):
    twin = copy.deepcopy(model)
    for layer in [layer for pair in twin.kv() for layer in pair]:
        attach(layer, LowRank(layer, 1))
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), model.tokens(["a red seven", "cat"])
    with torch.no_grad():
        plain = model.eps(x, t, y)
        torch.testing.assert_close(twin.eps(x, t, y), plain)
        for adapter in adapters(twin).values():
            nn.init.normal_(adapter.up.weight)
        changed = twin.eps(x, t, y)
        assert not torch.allclose(changed, plain)
        torch.testing.assert_close(copy.deepcopy(twin).eps(x, t, y), changed)
        switch(twin, 0.0)
        torch.testing.assert_close(twin.eps(x, t, y), plain)
        switch(twin, torch.tensor([1.0, 0.0]))
        torch.testing.assert_close(twin.eps(x, t, y), torch.stack([changed[0], plain[1]]))
    assert set(dict(model.named_parameters())) < set(dict(twin.named_parameters()))
    assert len(trained(twin)) == 2 * len(adapters(twin)) == 4 * len(twin.kv())


def test_mentioned_finds_each_token_of_each_name(model):
    y = model.tokens(["a red seven", "cat", "xyz seven", ""])
    found = model.mentioned(y, model.tokens(["seven", "red seven", "xyz"]))
    ids = y[:, 0] if y.dim() == 3 else y
    assert found.sum(dim=1).tolist() == [2, 0, 4, 0]
    assert found[2, 1:5].all() and found[0, 2:4].all()
    assert not model.mentioned(y, model.tokens([""])).any()
    assert found.shape == ids.shape


def test_embeddings_given_in_place_of_tokens(model):
    y = model.tokens(["a red seven", "cat"])
    words = [given.detach().requires_grad_() for given in model.words(y)]
    plain, given = model.embed(y), model.embed(y, words)
    torch.testing.assert_close(given.states, plain.states)
    given.states.sum().backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in words)
    other = model.embed(y, [part + 1 for part in words])
    assert not torch.allclose(other.states, plain.states)
    torch.testing.assert_close(model.embed(y).states, plain.states)  # nothing is left behind


def test_the_runner_seeds_what_wrap_draws():
    states = []
    for seed in (0, 0, 1):
        torch.rand(3)  # whatever was drawn before must not matter
        states.append(unlearn(Cell(SPM(steps=1, sampler_steps=2), TinyWords(seed=seed)))[0])
    changed = [name for name in states[0] if name.endswith("adapter.down.weight")]
    assert changed and all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(torch.equal(states[0][name], states[2][name]) for name in changed)


def test_attention_maps_are_differentiable_beside_checkpointing(model):
    twin = copy.deepcopy(model).train()
    x, t, y = torch.randn(1, 4, 8, 8), torch.tensor([3]), model.tokens(["a red seven"])
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            twin.unet.enable_gradient_checkpointing()
        with twin.attention() as maps:
            twin.eps(x, t, y)
        loss = sum(each.square().sum() for layer in maps.values() for each in layer)
        found.append(torch.autograd.grad(loss, list(twin.select("xattn").values()), allow_unused=True))
        assert twin.unet.is_gradient_checkpointing == checkpointing
    for plain, again in zip(*found, strict=True):
        assert (plain is None) == (again is None)
        if plain is not None:
            torch.testing.assert_close(plain, again)


def test_tokens_that_are_not_known_are_told_row_by_row(model):
    known = model.embed(model.tokens(["a red seven", "cat"]))
    joined = known.join(known._replace(ids=None))
    assert torch.equal(joined.ids[:2], known.ids) and (joined.ids[2:] == -1).all()
    assert known._replace(ids=None).join(known._replace(ids=None)).ids is None
