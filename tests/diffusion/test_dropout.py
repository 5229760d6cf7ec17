"""Dropout while images are drawn: at its rate, of each image's own, whatever the batch."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from unlearnbench import Sampler
from unlearnbench.diffusion import dropout
from unlearnbench.diffusion.dropout import dropping, kept
from unlearnbench.models.ddpm import ConditionalDDPM

SEEDS = [3, 2**63 + 5, 70]
SHAPE = (8, 16, 16)


class Given(nn.Module):
    """Multiplies by masks that were drawn before, in order: dropout worked out without hooks."""

    def __init__(self, masks, p):
        super().__init__()
        self.masks, self.p = iter(masks), p

    def forward(self, x):
        return x * next(self.masks) / (1 - self.p)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ConditionalDDPM(width=8).eval()


def drawn(model, seeds, on=True, steps=3, guidance=3.0):
    y = torch.tensor([seed % 10 for seed in seeds])
    sampler = Sampler(steps, eta=1.0, guidance=guidance)
    with torch.no_grad():
        if not on:
            return model.sample(y, seeds, sampler=sampler)
        with dropping(model, seeds):
            return model.sample(y, seeds, sampler=sampler)


def test_a_tenth_is_dropped_and_every_mask_is_of_its_own():
    masks = {
        (seed, call, layer, part): kept([seed], call, layer, part, SHAPE, 0.1, "cpu")[0]
        for seed in SEEDS
        for call in (0, 1)
        for layer in (0, 1)
        for part in (0, 1)
    }
    shares = [(~mask).float().mean().item() for mask in masks.values()]
    deviation = (0.1 * 0.9 / 2048) ** 0.5
    assert all(abs(share - 0.1) < 5 * deviation for share in shares)
    rows = torch.stack([mask.flatten() for mask in masks.values()]).double()
    assert (rows.corrcoef() - torch.eye(len(rows))).abs().max() < 0.12, "five deviations of 2,048 numbers"
    together = kept(SEEDS, 1, 1, 0, SHAPE, 0.1, "cpu")
    assert all(torch.equal(row, masks[seed, 1, 1, 0]) for row, seed in zip(together, SEEDS, strict=True))


def test_the_network_computes_what_its_dropout_layers_make_of_these_masks(model):
    x, t, y, seeds = torch.randn(2, 3, 32, 32), torch.full((2,), 500), torch.tensor([1, 2]), [8, 9]
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p > 0]
    assert len(layers) == 22, "one in each residual block: 8 down, 2 in the middle, 12 up"
    by_hand, shapes = copy.deepcopy(model), {}
    for name in layers:
        note = partial(lambda name, module, given, output: shapes.update({name: given[0].shape[1:]}), name)
        by_hand.get_submodule(name).register_forward_hook(note)
    with torch.no_grad():
        plain = by_hand(x, t, y)
        for layer, name in enumerate(layers):
            parent, _, own = name.rpartition(".")
            masks = [kept(seeds, call, layer, 0, shapes[name], 0.1, "cpu") for call in (0, 1)]
            setattr(by_hand.get_submodule(parent), own, Given(masks, 0.1))
        expected = [by_hand(x, t, y) for _ in range(2)]
        with dropping(model, seeds):
            found = [model(x, t, y) for _ in range(2)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3) and not torch.allclose(found[0], plain, atol=1e-3)


def test_an_image_is_the_same_in_any_batch_and_in_any_order(model):
    together = drawn(model, SEEDS)
    for index, seed in enumerate(SEEDS):
        torch.testing.assert_close(drawn(model, [seed])[0], together[index], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(drawn(model, SEEDS[::-1]), together.flip(0), rtol=1e-3, atol=1e-3)
    off = drawn(model, SEEDS, on=False)
    assert (together - off).abs().mean() > 0.01


def test_masks_do_not_depend_on_how_many_are_drawn_at_once(model, monkeypatch):
    together = drawn(model, SEEDS)
    monkeypatch.setattr(dropout, "AT_ONCE", 1)
    assert torch.equal(drawn(model, SEEDS), together)


def test_afterwards_the_model_is_as_it_was_also_after_an_error(model):
    off = drawn(model, SEEDS, on=False)
    model.train()  # whatever mode a method left it in
    drawn(model, SEEDS)
    assert torch.equal(drawn(model, SEEDS), drawn(model.eval(), SEEDS))
    with pytest.raises(ValueError, match="a batch of 2 is no multiple of 3 images"), dropping(model, SEEDS):
        model(torch.randn(2, 3, 32, 32), torch.tensor([5, 5]), torch.tensor([0, 1]))
    assert torch.equal(drawn(model, SEEDS, on=False), off)


def test_both_conditions_of_guidance_have_masks_of_their_own():
    layer = nn.Dropout(0.5).eval()
    with dropping(layer, [1, 2]):
        found = layer(torch.ones(4, 64))
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(found[:2], found[2:]) and not torch.equal(found[0], found[1])
