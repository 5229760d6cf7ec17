"""Closed-form edits against a least-squares solver that knows nothing of them, and UCE's limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tiny_model import Linear, TinyTask
from tests.support.tiny_sd import TOKENS
from tests.support.tiny_text import TinyText
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.fingerprint import definitions
from unlearnbench.methods.uce import UCE
from unlearnbench.techniques.closed_form import Term, aligned, edit, solved, states


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def task(request, tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp(request.param) / "model", request.param)


def uce(task, **settings):
    model = task.pretrained()
    return UCE(**settings).unlearn(model, task)


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


@pytest.mark.parametrize("guide", ["substitute", "null"])
@pytest.mark.parametrize("tokens", ["last", "all"])
@pytest.mark.parametrize("preserve_null", [False, True])
def test_uce_solves_every_projection(task, guide, tokens, preserve_null):
    """By hand: "seven" and "one" are one token each, at 1; the empty prompt's is the start, at 0."""
    settings = {"erase_scale": 2.0, "preserve_scale": 0.3, "lamb": 0.1}
    model = uce(task, guide=guide, tokens=tokens, preserve_null=preserve_null, **settings)
    before = task.pretrained()
    seven, other = text_states(before, ["seven", "one" if guide == "substitute" else ""])
    kept = text_states(before, ["three", "cat"])
    at = 1 if guide == "substitute" else 0
    if tokens == "last":
        c_e, c_g, c_p = seven[1:2], other[at : at + 1], kept[:, 1]
    else:
        c_e, c_g, c_p = seven[1:], other[at : at + TOKENS - 1], kept.reshape(-1, kept.shape[-1])
    if preserve_null:
        empty = text_states(before, [""])[0]
        c_p = np.concatenate([c_p, empty[:1] if tokens == "last" else empty])
    terms = [(c_e, c_g, 2.0), (c_p, c_p, 0.3)]
    for W0, W in zip(projections(before), projections(model), strict=True):
        expected = least_squares(W0, terms, 0.1)
        np.testing.assert_allclose(W, expected, atol=1e-6)
        assert np.abs(expected - W0).max() > 1e-3


@pytest.mark.parametrize(("null", "kept"), [(False, 2), (True, 3)])
def test_scale_of_kept_prompts_is_their_share_unless_given(task, null, kept):
    found = UCE(preserve_scale=None, preserve_null=null).terms(task.pretrained(), task)
    assert found[1].scale == pytest.approx(1 / kept)
    many = TinyText.__new__(TinyText)
    many.__dict__.update(task.__dict__)
    many.concepts = ("seven", *["cat"] * 30)
    assert UCE(preserve_scale=None).terms(task.pretrained(), many)[1].scale == 0.1


def test_uce_changes_keys_and_values_alone(task):
    before, after = task.pretrained().state_dict(), uce(task).state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert changed


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_nothing_moves_where_nothing_is_erased(task, tokens):
    before, after = task.pretrained().state_dict(), uce(task, erase_scale=0.0, tokens=tokens).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_a_large_lamb_keeps_the_weights(task):
    for W0, W in zip(projections(task.pretrained()), projections(uce(task, lamb=1e9)), strict=True):
        np.testing.assert_allclose(W, W0, atol=1e-6)


def test_a_large_erase_scale_sends_the_concept_to_its_guide_and_a_large_preserve_scale_keeps_the_others(task):
    seven, one, three = text_states(task.pretrained(), ["seven", "one", "three"])[:, 1]
    model = uce(task, erase_scale=1e7, preserve_scale=1e7, lamb=1e-2)
    for W0, W in zip(projections(task.pretrained()), projections(model), strict=True):
        np.testing.assert_allclose(W @ seven, W0 @ one, atol=1e-4)
        np.testing.assert_allclose(W @ three, W0 @ three, atol=1e-4)
        assert np.abs(W0 @ seven - W0 @ one).max() > 1e-2


def test_a_task_that_retains_nothing_by_name_has_no_second_term(task):
    alone = TinyText.__new__(TinyText)
    alone.__dict__.update(task.__dict__)
    alone.names = lambda which: task.names("forget")[: which == "forget"]
    assert len(UCE().terms(task.pretrained(), alone)) == 1
    assert len(UCE().terms(task.pretrained(), task)) == 2


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


def test_the_shared_code_counts_as_the_methods_own():
    assert "edit" in {one.name for one in definitions([UCE])}


def test_a_model_without_cross_attention_is_not_edited():
    with pytest.raises(Unsupported, match="no part 'xattn'"):
        UCE().unlearn(Linear(0), TinyTask())
    with pytest.raises(Unsupported, match="no part 'xattn'"):
        edit(Linear(0), [], 0.5)
