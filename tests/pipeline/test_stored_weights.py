"""Weights in the store: what is kept of them, that they come back bit for bit, and from the right original alone."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support.small_world import comparable
from unlearnbench import registry
from unlearnbench.errors import Damaged, UserError
from unlearnbench.hashing import state_hash
from unlearnbench.pipeline import runner, stored_weights
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.fingerprint import drafted, weight_parts
from unlearnbench.pipeline.stored_weights import START, changes, starting_state, unchanged_names, whole_state
from unlearnbench.pipeline.unlearning import unlearn
from unlearnbench.storage.store import DATA, META, Store
from unlearnbench.storage.weights import load_state
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.verification.conformance import TinyWords


def cell(method, task=None, **settings):
    return Cell(registry.load_method(method)(**settings), task or DigitsClass("3"))


def entry(store):
    (folder,) = (store.root / "weights").iterdir()
    return folder


@pytest.mark.parametrize(
    ("method", "settings", "kept"),
    [
        ("original", {}, lambda names: not names),
        ("uce", {}, lambda names: names and all("attn2.to_k" in n or "attn2.to_v" in n for n in names)),
        ("esd", {"steps": 1, "sampler_steps": 2, "part": "xattn"}, lambda names: all("attn2" in n for n in names)),
        ("spm", {"steps": 1, "sampler_steps": 2}, lambda names: all("adapter" in n for n in names)),
    ],
)
def test_only_what_changed_is_stored_and_all_of_it_comes_back(method, settings, kept, tmp_path):
    one, store = cell(method, TinyWords(), **settings), Store(tmp_path)
    made, facts = runner.unlearned(one, drafted(one, {}), store)
    plain, _ = unlearn(one)
    stored = load_state(entry(store) / DATA)
    assert kept(set(stored)) and len(stored) < len(made)
    bytes = sum(value.numel() * value.element_size() for value in stored.values())
    assert bytes == facts["cost"]["stored_size"], "the metric says what the store keeps"
    again, read = runner.unlearned(one, drafted(one, {}), store)
    assert state_hash(again) == state_hash(made) == state_hash(plain) and read == facts
    assert START not in facts


def test_tensors_are_compared_bit_for_bit():
    start = {
        "zero": torch.zeros(2),
        "kind": torch.ones(2),
        "shape": torch.ones(2),
        "gone": torch.ones(1),
        "same": torch.ones(1),
    }
    state = {
        "zero": torch.tensor([0.0, -0.0]),
        "kind": torch.ones(2, dtype=torch.float16),
        "shape": torch.ones(2, 1),
        "same": torch.ones(1),
        "scalar": torch.tensor(3),
    }
    stored, facts = changes(state, {"a": 1}, unchanged_names(state, start), "o")
    assert set(stored) == {"zero", "kind", "shape", "scalar"}
    back = whole_state(stored, facts[START], start, "o")
    assert state_hash(back) == state_hash(state) and torch.signbit(back["zero"]).tolist() == [False, True]


def test_another_original_is_refused():
    start, state = {"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.zeros(2), "b": torch.ones(2)}
    stored, facts = changes(state, {}, unchanged_names(state, start), "c" * 64)
    with pytest.raises(UserError, match=r"of the original cccccccccccc, and the original here is dddddddddddd: give"):
        whole_state(stored, facts[START], start, "d" * 64)
    for other in ({"a": start["a"], "b": torch.full((2,), 1.5)}, {"a": start["a"]}):
        with pytest.raises(Damaged, match="the original's files have changed since"):
            whole_state(stored, facts[START], other, "c" * 64)


def test_whole_states_of_earlier_versions_are_read(tmp_path):
    one, store = cell("gradient_ascent", steps=1, batch_size=4), Store(tmp_path)
    draft = drafted(one, {})
    state, facts = unlearn(one)
    store.stage("weights", weight_parts(one, draft), lambda: (state, facts))
    assert set(load_state(entry(store) / DATA)) == set(state), "as they were written then"
    found, read = runner.unlearned(one, draft, store)
    assert state_hash(found) == state_hash(state) and read == facts


def test_the_entry_of_another_process_is_taken(tmp_path, monkeypatch):
    one, store = cell("gradient_ascent", steps=1, batch_size=4), Store(tmp_path)
    draft, parts = drafted(one, {}), weight_parts(one, drafted(one, {}))
    state, facts = unlearn(one)
    other = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}

    def make():
        kept = unchanged_names(other, starting_state(one))
        Store(tmp_path).stage("weights", parts, lambda: changes(other, facts, kept, parts["original"]))
        return state, facts

    found, _ = stored_weights.stored_weights(one, store, parts, make)
    assert state_hash(found) == state_hash(other) and draft.weights["original"] == parts["original"]


@pytest.mark.usefixtures("small")
def test_a_record_is_the_same_from_the_store_and_its_weights_hash_is_of_the_whole_state(tmp_path):
    one, store = cell("gradient_ascent", steps=1, batch_size=4), Store(tmp_path / "store")
    first = runner.run_cell(one, store, tmp_path / "results")
    first.path(tmp_path / "results").unlink()
    again = runner.run_cell(one, store, tmp_path / "results")
    assert comparable(first) == comparable(again)
    about = json.loads((entry(store) / META).read_text())["facts"][START]
    assert about["whole"] == first.weights["unlearned"] and about["original"] == first.weights["original"]
