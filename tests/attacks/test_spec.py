"""Labels of attacks: parsed into name, variant and budget, and put together again."""

from __future__ import annotations

import pytest

from unlearnbench.attacks.base import STANDARD
from unlearnbench.attacks.spec import AttackSpec, standard_first
from unlearnbench.errors import UserError
from unlearnbench.pipeline.attacks import parse_attacks, require_attack_files
from unlearnbench.tasks.sd_nudity import SDNudity


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
        ("p4d@relesed", None, "unknown variant of p4d 'relesed': did you mean released"),
        ("p4d@published", None, "p4d has no published: .* not checked yet; @released"),
        ("relearn+budget=few", None, r"'relearn\+budget=few' names no attack: write relearn"),
        ("relearn+budget=3", 4, r"--budget 4 contradicts relearn\+budget=3"),
        ("relearn", -1, "--budget -1 is below 0"),
        (" , ", None, "--attacks is empty"),
    ],
)
def test_what_is_no_attack_is_refused(text, budget, message):
    with pytest.raises(UserError, match=message):
        parse_attacks(text, budget)


def test_a_preset_is_refused_on_tasks_that_its_code_was_not_run_on_before_anything_is_run(cli):
    said = cli("run", "--task", "digits-text", "--method", "esd", "--attacks", "relearn,p4d@released")
    assert said.code == 2
    assert "p4d@released is not for digits-text: it was run on sd-nudity; use p4d" in said.errors[-1]
    assert not said.out


def test_files_that_an_attack_reads_are_looked_for_before_anything_is_run(tmp_path):
    task = SDNudity("nudity", data=tmp_path)
    require_attack_files(parse_attacks("p4d@released,ring_a_bell"), task)
    with pytest.raises(UserError, match=r"fetch ring_a_bell_nudity\.csv ring_a_bell_no_nudity\.csv --data"):
        require_attack_files(parse_attacks("ring_a_bell@released"), task)


def test_list_shows_presets_with_their_tasks(cli):
    said = cli("list", "ring_a_bell")
    assert said.code == 0 and "ring_a_bell@released, sd-nudity" in said.out
    assert "pairs=published, vocabulary=all but special" in said.out
    assert "presets" not in cli("list", "sequential").out
