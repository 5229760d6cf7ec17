"""Labels of attacks: parsed into name, variant and budget, and put together again."""

from __future__ import annotations

import pytest

from unlearnbench.attacks.base import STANDARD
from unlearnbench.attacks.spec import AttackSpec, standard_first
from unlearnbench.errors import UserError
from unlearnbench.pipeline.attacks import parse_attacks


@pytest.mark.parametrize(
    ("label", "spec"),
    [
        ("relearn", AttackSpec("relearn")),
        ("latent_probe@0.9", AttackSpec("latent_probe", "0.9")),
        ("relearn+budget=0", AttackSpec("relearn", "", 0)),
        ("relearn@10+budget=1000000", AttackSpec("relearn", "10", 1_000_000)),
    ],
)
def test_a_label_is_parsed_and_put_together_again(label, spec):
    assert AttackSpec.parse(label) == spec
    assert spec.label == label


@pytest.mark.parametrize(
    "label", ["relearn+budget=", "relearn+budget=x", "relearn+budget=1.5", "relearn+budget=-1", "a@"]
)
def test_what_no_attack_has_for_its_label_is_not_put_together_again(label):
    assert AttackSpec.parse(label).label != label


def test_the_standard_ensemble_comes_first_and_in_its_order():
    assert standard_first(["z", STANDARD[3], "a", STANDARD[0], "a"]) == [STANDARD[0], STANDARD[3], "a", "z"]


def test_one_budget_holds_for_every_attack_and_standard_stands_for_the_ensemble():
    assert [spec.label for spec in parse_attacks("standard", 3)] == [f"{label}+budget=3" for label in STANDARD]
    assert parse_attacks("relearn, relearn+budget=2,relearn+budget=2") == [
        AttackSpec("relearn"),
        AttackSpec("relearn", "", 2),
    ]


@pytest.mark.parametrize(
    ("text", "budget", "message"),
    [
        ("relern", None, "unknown attack 'relern': did you mean relearn"),
        ("relearn@2000", None, "unknown variant of relearn '2000'"),
        ("relearn+budget=few", None, r"'relearn\+budget=few' names no attack: write relearn"),
        ("relearn+budget=3", 4, r"--budget 4 contradicts relearn\+budget=3"),
        ("relearn", -1, "--budget -1 is below 0"),
        (" , ", None, "--attacks is empty"),
    ],
)
def test_what_is_no_attack_is_refused(text, budget, message):
    with pytest.raises(UserError, match=message):
        parse_attacks(text, budget)
