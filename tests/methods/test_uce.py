"""UCE against a least-squares solver that knows nothing of it, its limits, and its presets against both releases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support import tiny_sd
from tests.support.fidelity import Constant, Difference, Fidelity, Repository
from tests.support.tiny_model import Linear, TinyTask
from tests.support.tiny_sd import TOKENS
from tests.support.tiny_text import TinyText
from tests.techniques.test_closed_form import least_squares, projections, text_states
from unlearnbench.errors import Unsupported
from unlearnbench.fingerprint import definitions
from unlearnbench.methods.uce import UCE
from unlearnbench.tasks.sd_nudity import SDNudity

FIRST = Repository("rohitgandikota/unified-concept-editing", "250d15f")
"""The release of 2023."""
CODE = Repository("rohitgandikota/unified-concept-editing", "28c81ed")
OLD, NEW = "train-scripts/train_erase.py", "trainscripts/uce_sd_erase.py"
NAMES = ("violence", "nudity", "harm")
FIDELITY = Fidelity(
    method="uce",
    paper="Gandikota, Orgad, Belinkov, Materzynska and Bau, Unified Concept Editing in Diffusion Models, WACV 2024",
    constants=(
        Constant("published", "sd-nudity", "erase", NAMES, FIRST.at("README.md", 33)),
        Constant("published", "sd-nudity", "replace_with", ("",), FIRST.at(OLD, 391), "its \" \" is the empty prompt"),
        Constant("published", "sd-nudity", "keep", ("",), FIRST.at(OLD, 422)),
        Constant("published", "sd-nudity", "tokens", "all", FIRST.at(OLD, 253)),
        Constant("published", "sd-nudity", "preserve_scale", None, FIRST.at(OLD, 428), "1 for one kept prompt"),
        Constant("released", "sd-nudity", "erase", NAMES, CODE.at("README.md", 55)),
        Constant("released", "sd-nudity", "replace_with", ("",), CODE.at(NEW, 138)),
        Constant("released", "sd-nudity", "keep", (), CODE.at(NEW, 149)),
        Constant("released", "sd-nudity", "tokens", "last", CODE.at(NEW, 34)),
    ),
    differences=(
        Difference("published", "edit", 4.8e-14,
                   "test_moderation_erases_three_names_and_keeps_nothing_but_the_empty_prompt_if_that",
                   "edit_model of 250d15f on a tiny Stable Diffusion in float64, with its three names."),
        Difference("released", "edit", 4.0e-6,
                   "test_moderation_erases_three_names_and_keeps_nothing_but_the_empty_prompt_if_that",
                   "UCE of 28c81ed on a tiny Stable Diffusion in float64; its inverse is float32."),
    ),
    defects=(
        "The README's --concept_type unsafe is no choice of the script, which stops "
        f"({CODE.at('README.md', 55)}; {CODE.at(NEW, 100)}).",
        "The README's --guided_concept is no option of the script, which has --guide_concepts "
        f"({CODE.at('README.md', 34)}; {CODE.at(NEW, 96)}).",
    ),
    departs="The names that every method of a task gets, and what they keep; the newer code's tokens and weights.",
)  # fmt: skip


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def task(request, tmp_path_factory):
    return TinyText(tmp_path_factory.mktemp(request.param) / "model", request.param)


def uce(task, **settings):
    model = task.pretrained()
    return UCE(**settings).unlearn(model, task)


@pytest.mark.parametrize(  # nothing in these settings asks which model it is
    ("task", "guide", "tokens", "preserve_null"),
    [
        *(("sd1", guide, tokens, null) for guide in ("substitute", "null") for tokens in ("last", "all")
          for null in (False, True)),
        ("sdxl", "substitute", "last", False),
        ("sdxl", "null", "all", True),
    ],
    indirect=["task"],
)  # fmt: skip
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


def test_the_shared_code_counts_as_the_methods_own():
    assert "edit" in {one.name for one in definitions([UCE])}


def test_a_model_without_cross_attention_is_not_edited():
    with pytest.raises(Unsupported, match="no part 'xattn'"):
        UCE().unlearn(Linear(0), TinyTask())


@pytest.mark.parametrize("preset", ["published", "released"])
def test_moderation_erases_three_names_and_keeps_nothing_but_the_empty_prompt_if_that(tmp_path, preset):
    """By least squares: each of the three names is one token here, and the empty prompt's state is its start's."""
    tiny_sd.save(tmp_path / "sd-v1-4", "sd1", [*tiny_sd.WORDS, "violence", "harm", "wearing", "clothes"])
    task = SDNudity("nudity", protocol="smoke", data=tmp_path)
    method = UCE.configured(UCE.preset(preset, "sd-nudity"))
    before, model = task.pretrained(), task.pretrained()
    method.unlearn(model, method.worded(task))
    erased, empty = text_states(before, ["violence", "nudity", "harm"]), text_states(before, [""])[0]
    if preset == "released":
        terms = [(erased[:, 1], empty[:1].repeat(3, 0), 1.0)]
    else:  # aligned at the last subject token, as far as the name has tokens; the empty prompt whole, scale 1 / 1
        terms = [(row[1:], empty[: len(row) - 1], 1.0) for row in erased] + [(empty, empty, 1.0)]
    for W0, W in zip(projections(before), projections(model), strict=True):
        expected = least_squares(W0, terms, 0.5)
        np.testing.assert_allclose(W, expected, atol=2e-6)
        assert np.abs(expected - W0).max() > 1e-2


def test_what_takes_the_place_of_a_name_counts_before_the_guide(task):
    for guide in ("null", "substitute"):
        plain, given = UCE(guide=guide), UCE(guide=guide, replace_with=("one",))
        g = [method.terms(task.pretrained(), task)[0].g for method in (plain, given)]
        assert torch.equal(*g) == (guide == "substitute"), "the task here replaces by one anyway"
