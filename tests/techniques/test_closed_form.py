"""Closed-form edits against a least-squares solver that knows nothing of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tiny_model import Linear
from tests.support.tiny_sd import TOKENS
from tests.support.tiny_text import TinyText
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.techniques.closed_form import Term, aligned, edit, solved, states


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def task(request, tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp(request.param) / "model", request.param)


def projections(model):
    return [linear.weight.detach().double().numpy() for pair in model.kv() for linear in pair]


def text_states(model, prompts):
    """(n, L, D) from the encoders themselves."""
    ids = model.tokens(prompts)
    with torch.no_grad():
        if len(model.text_encoders) == 1:
            return model.text_encoders[0](ids).last_hidden_state.double().numpy()
        both = [
            encoder(ids[:, k], output_hidden_states=True).hidden_states[-2]
            for k, encoder in enumerate(model.text_encoders)
        ]
    return torch.cat(both, dim=-1).double().numpy()


def least_squares(W0, terms, lamb):
    """min over W of sum s || W c - W0 g ||^2 + lamb || W - W0 ||^2 as one stacked system for W^T."""
    left, right = [np.sqrt(lamb) * np.eye(W0.shape[1])], [np.sqrt(lamb) * W0.T]
    for c, g, scale in terms:
        left.append(np.sqrt(scale) * c)
        right.append(np.sqrt(scale) * g @ W0.T)
    return np.linalg.lstsq(np.concatenate(left), np.concatenate(right), rcond=None)[0].T


@pytest.mark.parametrize("lamb", [1e-3, 0.5, 20.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_solution_is_that_of_least_squares(lamb, dtype, tolerance):
    rng = np.random.default_rng(0)
    W0 = rng.normal(size=(5, 8)).astype(np.float32).astype(float)
    terms = [(rng.normal(size=(n, 8)), rng.normal(size=(n, 8)), scale) for n, scale in ((3, 1.0), (20, 0.2))]
    kept = rng.normal(size=(4, 8))
    terms.append((kept, kept, 0.7))
    ours = solved(torch.tensor(W0, dtype=dtype), [Term(*map(torch.tensor, term[:2]), term[2]) for term in terms], lamb)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.double(), least_squares(W0, terms, lamb), atol=tolerance)


@pytest.mark.parametrize("lamb", [0.0, -1.0])
def test_an_open_solution_is_refused(lamb):
    with pytest.raises(UserError, match=f"lamb={lamb} leaves the solution open"):
        solved(torch.eye(2), [], lamb)


def test_prompts_are_aligned_at_their_last_subject_token(task):
    model = task.pretrained()
    long, short = "a photo of a seven", "one"
    a, b = text_states(model, [long])[0], text_states(model, [short])[0]
    y, other = model.tokens([long]), model.tokens([short])
    for tokens, n in (("last", 1), ("all", TOKENS - 5)):
        with torch.no_grad():
            ours = aligned(model, y, other, tokens)
        np.testing.assert_allclose(ours[0], a[5 : 5 + n], atol=1e-6)
        np.testing.assert_allclose(ours[1], b[1 : 1 + n], atol=1e-6)
    with torch.no_grad():
        np.testing.assert_allclose(states(model, y, "last"), a[5:6], atol=1e-6)
        assert states(model, torch.cat([y, other]), "all").shape == (2 * TOKENS, a.shape[1])


def test_a_model_without_cross_attention_is_not_edited():
    with pytest.raises(Unsupported, match="no part 'xattn'"):
        edit(Linear(0), [], 0.5)


def test_projections_share_one_factorisation_and_are_solved_bit_for_bit(task, monkeypatch):
    model, real, calls = task.pretrained(), torch.linalg.solve, []
    y, other = model.tokens(["a photo of a seven"]), model.tokens(["one"])
    with torch.no_grad():
        terms = [Term(*aligned(model, y, other, "all"), 1.0), Term(*[states(model, other, "all")] * 2, 0.3)]
        alone = [solved(linear.weight, terms, 0.5) for pair in model.kv() for linear in pair]
        monkeypatch.setattr(torch.linalg, "solve", lambda *a, **b: calls.append(1) or real(*a, **b))
        edit(model, terms, 0.5)
    assert len(calls) == 1 < len(alone)
    assert all(map(torch.equal, alone, (linear.weight for pair in model.kv() for linear in pair)))
