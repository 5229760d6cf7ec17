"""Attacks: what a search costs each target, what is censored and what is missing; settings, targets, refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch

from unlearnbench import Attack, Look, registry
from unlearnbench.attacks.base import STANDARD, Ledger
from unlearnbench.compute.precision import Resources
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.testing import toy_models
from unlearnbench.training import Diverged
from unlearnbench.verification.selfcheck_attacks import check_attack

ATTACKS = registry.load_attacks()
NAN = math.nan


@dataclass(frozen=True)
class Scripted(Attack):
    """Gives looks that were written down."""

    title = "scripted"
    variants = {"small": {"targets": 4}, "few": {"targets": 2}}
    script: tuple = ()
    targets: int = 4
    batch: int = 4

    def looks(self, outcome, items) -> Iterator[Look]:
        for spent, hits, *parts in self.script:
            if isinstance(hits, Exception):
                raise hits
            yield Look(spent, torch.tensor(hits, dtype=torch.float), *parts)

    def known(self):
        yield from ()


def measured(*script, budget=None, **settings):
    return Scripted(script=script, **settings).measure(toy_models.attacked_outcome("known", count=8), budget)


def test_a_target_costs_what_was_spent_until_its_first_success():
    score = measured((0, [0, 0, 0, 1]), (10, [0, 1, 0, 0]), (20, [0, 0, 1, 0]))
    assert score.value == 0.75
    assert score.spent.tolist() == [20, 10, 20, 0]
    assert score.per_image.tolist() == [0, 1, 1, 1]
    assert (score.n, score.missing, score.limit) == (4, 0, 20)


def test_a_target_that_is_never_recovered_is_censored_not_dropped():
    score = measured((0, [0] * 4), (100, [0, 0, 0, 1]))
    assert (score.value, score.n, score.missing) == (0.25, 4, 0)
    assert score.spent[:3].tolist() == [100] * 3
    assert score.interval[0] < 0.25 < score.interval[1]


def test_costs_may_differ_between_targets():
    score = measured((0, [0] * 4), (torch.tensor([5.0, 6, 7, 8]), [1, 0, 1, 0]))
    assert score.spent.tolist() == [5, 6, 7, 8]
    assert score.limit == 8


def test_nothing_beyond_the_budget_counts():
    script = (0, [0] * 4), (10, [1, 0, 0, 0]), (20, [1, 1, 0, 0]), (30, [1, 1, 1, 1])
    score = measured(*script, budget=20)
    assert score.value == 0.5
    assert score.limit == 20


def test_at_budget_0_nothing_is_searched():
    score = measured((0, [1, 0, 0, 0]), (10, RuntimeError("it searched")), budget=0)
    assert (score.value, score.limit, score.missing) == (0.25, 0, 0)


def test_a_budget_below_0_is_refused_with_the_remedy():
    with pytest.raises(UserError, match="budget -1 is below 0: give 0, which searches nothing"):
        measured((0, [1] * 4), budget=-1)


@pytest.mark.parametrize("error", [RuntimeError("torn"), Diverged(0, "the loss"), ZeroDivisionError("x")])
def test_a_search_that_fails_leaves_the_others_missing_and_has_no_value(error):
    """The one it had found before would be all that counts: 100 %."""
    score = measured((0, [0] * 4), (10, [1, 0, 0, 0]), (20, error))
    assert (score.value, score.n, score.missing) == (None, 4, 3)
    assert "3 of 4 targets are missing" in score.reason
    assert score.per_image[0] == 1
    assert np.isnan(score.per_image[1:]).all()


def test_a_search_that_fails_once_all_is_found_has_lost_nothing():
    score = measured((0, [0] * 4), (10, [1] * 4), (20, RuntimeError("torn")))
    assert (score.value, score.missing) == (1.0, 0)


def test_the_limit_of_a_budget_does_not_depend_on_how_early_targets_were_found():
    early = measured((0, [0] * 4), (20, [1] * 4), (100, [1] * 4), budget=70)
    late = measured((0, [0] * 4), (20, [1, 1, 1, 0]), (40, [1, 1, 1, 0]), (100, [1] * 4), budget=70)
    assert (early.limit, late.limit) == (70, 70)
    assert (early.value, late.value) == (1.0, 0.75)


def test_numbers_that_are_not_finite_are_unknown():
    assert measured((0, [0] * 4, {"steps": NAN, "share": 0.5})).parts == {"steps": None, "share": 0.5}


def test_of_several_concepts_each_has_its_turn():
    outcome = toy_models.attacked_outcome("known", count=8)
    plan = [item._replace(concept="b") if i >= 4 else item for i, item in enumerate(outcome.plan)]
    outcome.plan[:] = plan
    assert [item.concept for item in Scripted(targets=5).aims(outcome)] == ["3", "b", "3", "b", "3"]


def test_a_search_that_fails_before_its_first_look_has_no_value():
    score = measured((0, RuntimeError("torn")))
    assert (score.value, score.missing) == (None, 4)
    assert "RuntimeError: torn" in score.reason


@pytest.mark.parametrize("error", [Unsupported("no gradient"), UserError("a wrong setting")])
def test_what_the_user_must_know_is_raised(error):
    with pytest.raises(type(error)):
        measured((0, [0] * 4), (10, error))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_too_little_memory_is_told_in_one_line(error):
    with pytest.raises(UserError, match=r"the attack test_attack ran out of memory: .*--memory"):
        measured((0, [0] * 4), (10, error))


def test_a_target_whose_last_look_could_not_be_judged_is_missing():
    score = measured((0, [0, 0, NAN, 0]), (10, [NAN, 0, 0, NAN]), (20, [NAN, 0, 0, 1]))
    assert (score.value, score.missing) == (pytest.approx(1 / 3), 1)
    assert np.isnan(score.per_image).tolist() == [True, False, False, False]
    assert "the judge failed" in score.reason


def test_later_parts_take_the_place_of_earlier_ones():
    score = measured((0, [0] * 4, {"steps": None, "share": 0.5}), (1, [0] * 4, {"steps": 3.0}))
    assert score.parts == {"steps": 3.0, "share": 0.5}


def test_targets_are_searched_for_in_groups_of_the_batch():
    sizes = []

    @dataclass(frozen=True)
    class Grouped(Scripted):
        def looks(self, outcome, items):
            sizes.append(len(items))
            yield Look(0, torch.ones(len(items)))

    score = Grouped(targets=7, batch=3).measure(toy_models.attacked_outcome("known", count=8))
    assert sizes == [3, 3, 1]
    assert (score.n, score.value) == (7, 1.0)


def test_one_search_for_all_sees_all():
    class Together(Scripted):
        together = True

        def looks(self, outcome, items):
            yield Look(0, torch.full((len(items),), float(len(items) == 7)))

    assert Together(targets=7, batch=3).measure(toy_models.attacked_outcome("known", count=8)).value == 1.0


def test_every_method_meets_the_same_random_numbers():
    class Random(Scripted):
        def looks(self, outcome, items):
            yield Look(0, (torch.rand(len(items)) < 0.5).float())

    torch.manual_seed(0)
    first = Random(targets=8, batch=8).measure(toy_models.attacked_outcome("known", count=8))
    torch.manual_seed(1)
    second = Random(targets=8, batch=8).measure(toy_models.attacked_outcome("lost", count=8))
    assert first.per_image.tolist() == second.per_image.tolist()
    assert 0 < first.value < 1


def test_without_targets_there_is_no_value():
    outcome = toy_models.attacked_outcome("known", count=8)
    outcome.plan.clear()
    score = Scripted().measure(outcome)
    assert (score.value, score.reason) == (None, "no targets")


def test_what_a_task_lacks_is_said():
    attack = Scripted()
    assert attack.unaddressed(DigitsClass("3")) is None
    type(attack).needs = frozenset({"text"})
    try:
        assert attack.unaddressed(DigitsText("seven")) is None
        assert "asked by class labels" in attack.unaddressed(DigitsClass("3"))
        with pytest.raises(Unsupported, match="asked by class labels"):
            attack.measure(toy_models.attacked_outcome("known"))
        type(attack).needs = frozenset({"a moon"})
        assert "needs a moon, which digits-class does not have" in attack.unaddressed(DigitsClass("3"))
    finally:
        del type(attack).needs


def test_miniatures_take_the_small_schedule_and_named_ones_win():
    attack, task = Scripted(targets=9), DigitsClass("3")
    assert attack.configured("", task).settings()["targets"] == 4
    assert attack.configured("few", task).settings()["targets"] == 2
    task.name = "another"
    assert attack.configured("", task).settings()["targets"] == 9
    with pytest.raises(UserError, match=r"unknown variant of .* 'large': .*few"):
        attack.configured("large", task)


def test_the_ledger_ends_once_every_cost_is_beyond_the_budget():
    ledger = Ledger(2, 10)
    assert ledger.enter(Look(torch.tensor([5.0, 15.0]), torch.tensor([0.0, 1.0])))
    assert not ledger.enter(Look(torch.tensor([11.0, 15.0]), torch.tensor([1.0, 1.0])))
    assert ledger.values()[0] == 0
    assert math.isnan(ledger.values()[1])  # never looked at within the budget


# ---- the attacks there are -----------------------------------------------------------------------------------------


def test_the_fixed_ensemble_can_be_run():
    for label in STANDARD:
        name, _, variant = label.partition("@")
        assert name in ATTACKS
        assert not variant or variant in ATTACKS[name].variants


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_know_their_own_answers(name):
    found = list(check_attack(ATTACKS[name]))
    assert [(f.subject, f.case, f.found, f.expected) for f in found if not f.passed] == []
    assert len(found) >= 7  # two cases at least


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_described(name):
    attack = ATTACKS[name]
    assert attack.title and attack.box in ("white", "black") and attack.spends
    assert (attack.axis, attack.better, attack.stored) == ("robustness", "lower", "share")
    assert len((type(attack).__doc__ or "").split()) > 20
    for variant in attack.variants:
        assert attack.configured(variant, DigitsClass("3")).settings() != {}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_at_budget_0_is_plain_sampling(name):
    text = "text" in ATTACKS[name].needs
    for fate, share in (("known", 1.0), ("lost", 0.0)):
        outcome = toy_models.attacked_outcome(fate, text=text)
        attack = ATTACKS[name].configured("", outcome.task)
        if attack.unaddressed(outcome.task) or attack.again:
            pytest.skip("it uses the method again: tests of its own")
        score = attack.measure(outcome, 0)
        assert (score.value, score.limit) == (share, 0)


# ---- precision -----------------------------------------------------------------------------------------------------

QUICK = {"steps": 2, "every": 1, "iterations": 2, "after": (1,), "timesteps": 2, "population": 6, "most": 2}
BY_GRADIENTS = {"relearn", "concept_inversion", "unlearndiffatk", "p4d"}


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"sequential"}))
def test_every_attack_searches_and_draws_in_half_precision(name, monkeypatch):
    """In fp16, which has no room for gradients, an attack that searches by them only draws."""
    attack, outcome, seen = ATTACKS[name], toy_models.attacked_outcome("lost", text=True, count=2), set()
    attack = replace(attack, **{key: value for key, value in QUICK.items() if hasattr(attack, key)})
    kind, predict = type(outcome.model), type(outcome.model).predict

    def noted(self, *given):
        seen.add((torch.ones(1, 1) @ torch.ones(1, 1)).dtype)
        return predict(self, *given)

    monkeypatch.setattr(kind, "predict", noted)
    searched = {torch.float32} if name in BY_GRADIENTS else set()
    for precision, dtypes in (("bf16", {torch.bfloat16}), ("fp16", {torch.float16} | searched)):
        seen.clear()
        chosen = Resources(precision)
        with chosen.training("cpu"):
            score = attack.measure(replace(outcome, drawing=partial(chosen.drawing, "cpu")))
        assert (score.value, score.missing, score.n) == (0, 0, 2) and seen == dtypes
