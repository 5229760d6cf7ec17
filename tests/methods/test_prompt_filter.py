"""The filter shows the substitute on direct prompts; whatever looks past the prompt finds the concept untouched."""

import pytest
import torch

from tests.support.fidelity import Fidelity
from unlearnbench import Sampler
from unlearnbench.hashing import digest, state_hash
from unlearnbench.methods.original import Original
from unlearnbench.methods.prompt_filter import PromptFilter
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.fingerprint import sample_parts
from unlearnbench.pipeline.unlearning import loaded, unlearn
from unlearnbench.verification.conformance import TinyDigits

FIDELITY = Fidelity(
    "prompt_filter",
    "none",
    departs="A control of this project, hence without presets: the substitute's condition in place of the concept's.",
)
LABELS = torch.arange(10)
SEEDS = list(range(20, 30))


def filtered(task):
    return PromptFilter().wrap(task.pretrained(), task).eval()


def sampled(model, y, **words):
    with torch.inference_mode():
        return model.sample(y, SEEDS, **words)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("forget", ["3", "9"])
def test_the_forgotten_label_shows_the_substitute_and_the_others_themselves(forget, guidance):
    task, digit = TinyDigits(forget), int(forget)
    original, sampler = task.pretrained().eval(), Sampler(steps=3, guidance=guidance)
    asked = torch.where(digit == LABELS, (digit + 1) % 10, LABELS)
    plain, swapped = (sampled(original, y, sampler=sampler) for y in (LABELS, asked))
    found = sampled(filtered(task), LABELS, sampler=sampler)
    assert torch.equal(found, swapped)
    same = (found == plain).flatten(1).all(dim=1)
    assert same.tolist() == [label != digit for label in range(10)]


def test_the_weights_and_what_they_predict_are_the_originals():
    task = TinyDigits("3")
    original = task.pretrained().eval()
    model = PromptFilter().unlearn(filtered(task), task, PromptFilter().prepare(filtered(task), task))
    assert state_hash(model.state_dict()) == state_hash(original.state_dict())
    x_t, t = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((10,), 500)
    with torch.inference_mode():
        assert torch.equal(model.eps(x_t, t, LABELS), original.eps(x_t, t, LABELS))


def test_an_embedding_without_its_label_looks_past_the_filter():
    task = TinyDigits("3")
    original, model = task.pretrained().eval(), filtered(task)
    bare = model.embed(LABELS)._replace(ids=None)
    assert torch.equal(sampled(model, bare), sampled(original, LABELS))
    assert not torch.equal(sampled(model, model.embed(LABELS)), sampled(original, LABELS))


def test_copies_keep_the_filter():
    model = filtered(TinyDigits("3"))
    assert torch.equal(sampled(model.frozen(), LABELS), sampled(model, LABELS))


def test_stored_weights_come_back_with_the_filter_of_their_concept():
    cell = Cell(PromptFilter(), TinyDigits("3"))
    state, facts = unlearn(cell)
    assert facts["cost"]["trained_parameters"] == facts["cost"]["stored_size"] == 0
    assert torch.equal(sampled(loaded(cell, state), LABELS), sampled(filtered(cell.task), LABELS))


def test_samples_of_two_concepts_never_share_a_key():
    """The weights are the same; what is drawn from them is not."""

    def key(method, forget):
        task = TinyDigits(forget)
        return digest(sample_parts(Cell(method, task), task.pretrained().state_dict()))

    filters = {key(PromptFilter(), forget) for forget in ("3", "5")}
    originals = {key(Original(), forget) for forget in ("3", "5")}
    assert len(filters) == 2 and len(originals) == 1 and not filters & originals
    assert key(PromptFilter(), "3") in filters
