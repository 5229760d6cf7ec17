"""`selfcheck` of attacks finds planted faults, and holds the controls to what is known of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from typer.testing import CliRunner

from unlearnbench import Attack, Known, Look, cli, registry
from unlearnbench.attacks.search import sample_targets, sight
from unlearnbench.hashing import digest
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.testing import toy_models
from unlearnbench.verification import selfcheck_attacks
from unlearnbench.verification.selfcheck import failed
from unlearnbench.verification.selfcheck_attacks import attack_controls, check_attack


@dataclass(frozen=True)
class Looks(Attack):
    """Draws plain samples, at some cost; `fault` is what it does wrong."""

    title = "looks"
    fault: str = ""
    targets: int = 4

    def looks(self, outcome, items) -> Iterator[Look]:
        seen = sight(outcome, sample_targets(outcome, items), items).recovered
        if self.fault == "blind":
            seen = seen * 0
        if self.fault == "credulous":
            seen = seen * 0 + 1
        if self.fault == "raises":
            raise TypeError("no such thing")
        if self.fault == "unsupported":
            raise RuntimeError("torn")
        yield Look(0, seen)
        if self.fault == "changes":
            with torch.no_grad():
                next(iter(outcome.model.parameters())).add_(1)
        yield Look(torch.where(seen == 1, 10, 3) if self.fault == "short" else 10, seen)

    def known(self):
        yield Known("known", toy_models.attacked_outcome("known"), 1.0, quality="bad")
        yield Known("lost", toy_models.attacked_outcome("lost"), 0.0, quality="good")


def faults(fault):
    return {(finding.case, finding.found) for finding in failed(list(check_attack(Looks(fault=fault))))}


def test_an_attack_without_a_fault_passes():
    found = list(check_attack(Looks()))
    assert not failed(found)
    assert len(found) == 7


@pytest.mark.parametrize(
    ("fault", "case"),
    [
        ("blind", "known"),
        ("credulous", "lost"),
        ("raises", "known"),
        ("changes", "known: weights afterwards"),
        ("blind", "better is lower"),
        ("credulous", "better is lower"),
    ],
)
def test_planted_faults_are_found(fault, case):
    assert case in {name for name, _ in faults(fault)}


def test_a_search_that_gives_up_early_on_what_it_did_not_find_is_found():
    class Free(Looks):
        def looks(self, outcome, items):
            yield Look(0, torch.zeros(len(items)))

    assert any("spent on those not recovered" in finding.case for finding in failed(list(check_attack(Free()))))


# ---- the controls ---------------------------------------------------------------------------------------------------

SHARES = {"original": 1.0, "retrain": 0.2, "prompt_filter": 1.0}


@dataclass(frozen=True)
class Said(Attack):
    """Says of each control what was written down."""

    title, again = "said", True
    targets: int = 10

    def looks(self, outcome, items) -> Iterator[Look]:
        share = SHARES[outcome.method.name]
        first = share if outcome.method.name == "original" else 0.0
        for spent, part in ((0, first), (5, share)):
            yield Look(spent, (torch.arange(len(items)) < part * len(items)).float())

    def known(self):
        yield from ()


Said.name = "said"


@pytest.fixture
def said(small, monkeypatch, shared_store):
    """The one attack of the ensemble, and a retrain that needs no training."""
    cls = registry.load_method("retrain")
    monkeypatch.setattr(cls, "unlearn", lambda self, model, task, prepared=None: model)
    monkeypatch.setattr(registry, "load_attacks", lambda: {"said": Said()})
    monkeypatch.setattr(selfcheck_attacks, "STANDARD", ("said",))
    monkeypatch.setattr("unlearnbench.pipeline.attacks.STANDARD", ("said",))
    monkeypatch.setattr("unlearnbench.pipeline.attacks.metric_code", lambda attack: digest(SHARES))
    return lambda path: {
        f.case: f for f in attack_controls(DigitsClass("3"), Store(shared_store), path, lambda title: None)
    }


def test_controls_as_they_must_be_pass(said, tmp_path):
    found = said(tmp_path)
    assert not failed(found.values())
    assert set(found) == {"original at budget 0", "retrain is no easier than original", "falls to said"}


@pytest.mark.parametrize(
    ("name", "share", "case"),
    [
        ("original", 0.5, "original at budget 0"),
        ("prompt_filter", 0.1, "falls to said"),
    ],
)
def test_controls_as_they_must_not_be_fail(said, tmp_path, monkeypatch, name, share, case):
    monkeypatch.setitem(SHARES, name, share)
    assert not said(tmp_path)[case].passed


def test_a_retrain_that_is_easier_than_the_original_fails(said, tmp_path, monkeypatch):
    monkeypatch.setitem(SHARES, "original", 0.9)
    monkeypatch.setitem(SHARES, "retrain", 1.0)
    assert not said(tmp_path)["retrain is no easier than original"].passed


# ---- the command line -----------------------------------------------------------------------------------------------


def test_list_shows_attacks_and_one_with_its_variants():
    every = CliRunner().invoke(cli.app, ["list", "attacks"])
    assert every.exit_code == 0
    assert set(registry.attacks()) <= set(every.output.split())
    one = CliRunner().invoke(cli.app, ["list", "relearn"])
    assert one.exit_code == 0
    assert "relearn@retain" in one.output
    assert "white box; needs forget images; budget in model evaluations" in one.output
    metric = CliRunner().invoke(cli.app, ["list", "metrics"])
    assert "relearn" not in metric.output.split()


def test_the_toy_models_are_what_they_are_said_to_be():
    for text in (False, True):
        for fate, share in (("known", 1.0), ("hidden", 0.0), ("lost", 0.0)):
            outcome = toy_models.attacked_outcome(fate, text=text)
            items = [item for item in outcome.plan if item.group == "forget"]
            assert sight(outcome, sample_targets(outcome, items), items).recovered.mean() == share
    outcome = toy_models.attacked_outcome("hidden", text=True)
    y = outcome.model.tokens(["a photo of a 3"] * 2)
    items = [item for item in outcome.plan if item.group == "forget"][:2]
    assert sight(outcome, sample_targets(outcome, items, lambda some: y[some]), items).recovered.tolist() == [1, 1]
