"""Searches against known answers: states near a concept's, weights of words, words in place of names."""

import numpy as np
import pytest
import torch

from tests.support.tiny_model import Linear
from tests.support.tiny_text import TinyText
from unlearnbench.diffusion.model import Condition
from unlearnbench.techniques.concept_search import (
    distances,
    embed_word,
    gumbel_weights,
    mean_word,
    mixed_words,
    near_states,
    slots,
    spread_over,
)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def model(request, tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp(request.param) / "model", request.param).original


# ---- near states -----------------------------------------------------------------------------------------------------


def test_the_search_ends_nearer_to_the_target_within_its_radius():
    model, y, t = Linear(0), torch.tensor([1, 1, 2]), torch.tensor([3, 5, 7])
    x_t, target = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    c = model.embed(y)
    torch.manual_seed(0)
    found = near_states(model, x_t, t, c, target, 0.2, 20)
    far = lambda c: (model.eps(x_t, t, c) - target).square().mean()  # noqa: E731
    assert far(found) < far(c) - 0.02
    assert (found.states - c.states).abs().max() <= 0.2 + 1e-6
    assert found.states.max() <= c.states.max() and found.states.min() >= c.states.min()
    (grad,) = torch.autograd.grad(found.states.sum(), model.E)
    assert grad[1].tolist() == [2.0] * 4, "the embedding keeps its gradient"
    assert near_states(model, x_t, t, c, target, 0.2, 0) is c


# ---- words of a vocabulary -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", [1, 2, 5])
def test_weights_of_words_by_hand(mix):
    logits = torch.tensor([[0.3, -0.2, 0.9, 0.0]] * 3)
    torch.manual_seed(1)
    found = gumbel_weights(logits, 0.5, mix).numpy()
    torch.manual_seed(1)
    u = torch.rand(3, 4).double().numpy()
    soft = np.exp((logits.double().numpy() - np.log(-np.log(u))) / 0.5)
    soft /= soft.sum(axis=1, keepdims=True)
    for row, given in zip(soft, found, strict=True):
        kept = np.sort(row)[::-1][: min(mix, 4)].min()
        expected = np.where(row >= kept, 1.0 if mix == 1 else row, 0.0)
        np.testing.assert_allclose(given, expected / expected.sum(), atol=1e-5)


def test_words_come_as_often_as_their_logits_say():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(20_000, -1)
    torch.manual_seed(0)
    often = gumbel_weights(logits, 1.0, 1).mean(dim=0)
    torch.testing.assert_close(often, logits[0].softmax(dim=0), rtol=0, atol=0.015)


def test_one_word_has_the_gradient_of_the_softmax():
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    (gumbel_weights(logits, 2.0, 1) @ torch.tensor([[1.0], [5.0], [0.0]]).double()).sum().backward()
    torch.manual_seed(3)
    u = torch.rand(1, 3, dtype=torch.float64).numpy()[0]
    s = np.exp(-np.log(-np.log(u)) / 2)
    s, g = s / s.sum(), np.array([1.0, 5.0, 0.0])
    np.testing.assert_allclose(logits.grad[0], s * (g - s @ g) / 2, atol=1e-8)


def test_mixtures_are_means_of_all_that_a_word_gives(model):
    words = model.embed(model.tokens(["seven", "cat"]))
    found = mixed_words(words, torch.tensor([[0.25, 0.75], [0.0, 1.0]]))
    torch.testing.assert_close(found.states[0], words.states[0] / 4 + 3 * words.states[1] / 4)
    torch.testing.assert_close(found.states[1], words.states[1])
    assert found.ids is None
    if words.pooled is not None:
        torch.testing.assert_close(found.pooled[0], words.pooled[0] / 4 + 3 * words.pooled[1] / 4)
        assert torch.equal(found.extra["time_ids"], words.extra["time_ids"])
    assert mixed_words(Condition(torch.eye(3)), torch.eye(3)[:2]).states.tolist() == torch.eye(3)[:2].tolist()


def test_distances_are_over_all_text_states(model):
    y = model.tokens(["cat", "seven", "red seven"])
    found = distances(model, y, model.tokens(["seven"]), size=2)
    with torch.no_grad():
        states = [model.embed(row[None]).states for row in y]
    assert found[1] == pytest.approx(0, abs=1e-5)
    for k in (0, 2):
        assert found[k].item() == pytest.approx((states[k] - states[1]).square().sum().sqrt().item(), rel=1e-4)


def test_words_spread_over_distances():
    values = torch.tensor([1.0, 1.1, 0.9, 5.0, 5.2, 9.0])
    assert {values[k].item() for k in spread_over(values, 3)} <= {1.0, 5.0, 5.2, 9.0}
    assert len(spread_over(values, 3)) == 3
    assert spread_over(values, 6).tolist() == list(range(6))


# ---- a new word ------------------------------------------------------------------------------------------------------


def test_a_known_word_in_place_of_a_name_gives_the_prompt_that_says_it(model):
    y = model.tokens(["a photo of a red seven", "red seven in a red seven", "three"])
    names = model.tokens(["red seven"])
    rows, slot = slots(model, y, names)
    assert slot.sum(dim=1).tolist() == [1, 2, 0]
    word = [words[0, 1] for words in model.words(model.tokens(["cat"]))]
    with torch.no_grad():
        found = embed_word(model, rows, slot, word)
        expected = model.embed(model.tokens(["a photo of a cat", "cat in a cat", "three"]))
    torch.testing.assert_close(found.states, expected.states, rtol=0, atol=1e-5)
    if expected.pooled is not None:
        torch.testing.assert_close(found.pooled, expected.pooled, rtol=0, atol=1e-5)


def test_a_word_starts_at_the_mean_of_tokens(model):
    found = mean_word(model, model.tokens(["red seven"]))
    for value, words in zip(found, model.words(model.tokens(["red seven"])), strict=True):
        torch.testing.assert_close(value, words[0, 1:3].mean(dim=0))
    assert all(value.isfinite().all() for value in mean_word(model, model.tokens([""])))
