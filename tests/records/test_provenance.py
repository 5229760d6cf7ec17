"""Where a record comes from, told to a reader; the command that repeats it repeats it."""

from __future__ import annotations

import shlex
from itertools import pairwise

import pytest

from tests.support.small_world import made_record, write_nudge
from unlearnbench import registry
from unlearnbench.attacks.base import STANDARD
from unlearnbench.cli.arguments import parse_settings
from unlearnbench.records.provenance import details, hardware, repeat_command, verification
from unlearnbench.records.schema import AttackRecord, Selection, read_record

CHANGED = {"precision": "bf16", "memory": ["slices"], "compile": True}


def made_attack(budget=None):
    about = {"status": "ok", "value": 0.0, "n": 1, "recovered": (False,), "spent": (1.0,), "limit": 1.0}
    return AttackRecord(**about, budget=budget, box="white", unit="steps", settings={}, code_hash="c", key="k")


def words(record):
    return shlex.split(repeat_command(record))


def test_a_plain_run_needs_no_more_than_task_concept_method_and_seed():
    assert (
        repeat_command(made_record("esd", 2))
        == "unlearnbench run --task digits-class --forget 3 --method esd --seeds 2"
    )


def test_everything_that_is_not_the_default_is_given():
    record = made_record(
        method_changes={"preset": "published", "overrides": {"part": "xattn", "lr": 1e-05}},
        protocol_changes={"name": "smoke"},
        environment={"precision": "bf16", "memory": ["checkpointing", "slices"], "compile": True},
        attacks={"relearn+budget=5": made_attack(5.0)},
    )
    assert words(record)[10:] == shlex.split(
        "--protocol smoke --preset published --set lr=1e-05 --set part=xattn --precision bf16 "
        "--memory checkpointing,slices --compile --attacks relearn --budget 5"
    )


def test_overrides_come_back_as_they_were():
    cls = registry.load_method("uce")
    given = cls.configured({"lamb": "0.25", "preserve_null": "true"}).given(["lamb", "preserve_null"])
    again = words(made_record("uce", method_changes={"overrides": given}))
    settings = parse_settings([word for flag, word in pairwise(again) if flag == "--set"])
    assert cls.configured(settings).given(settings) == {"lamb": 0.25, "preserve_null": True}


def test_the_standard_attacks_are_named_together_and_other_budgets_are_commands_of_their_own():
    attacks = {name: made_attack() for name in (*STANDARD, "relearn@5")}
    assert words(made_record(attacks=attacks))[-2:] == ["--attacks", "standard,relearn@5"]
    attacks["relearn+budget=7"] = made_attack(7.0)
    first, second = repeat_command(made_record(attacks=attacks)).split(" && ")
    assert first.endswith("--attacks standard,relearn@5")
    assert second.endswith("--seeds 0 --attacks relearn --budget 7")


@pytest.mark.parametrize("name", ["a b", "x; rm -rf ~", "$(reboot)", "<script>alert(1)</script>", "it's"])
def test_no_text_leaves_its_quotes(name):
    assert f"guide={name}" in words(made_record("uce", method_changes={"overrides": {"guide": name}}))
    assert shlex.split(verification(registry.PACKAGE / name / "seed-0.json"))[:2] == ["unlearnbench", "verify"]


def test_own_concepts_and_own_weights_are_asked_for_as_files():
    own = made_record(
        protocol_changes={"settings": {"concepts": [{"name": "mine", "prompts": ["secret"]}]}},
        seeds={"pretraining": 4, "unlearning": 0, "sampling": 0},
        forget="mine",
    )
    assert "--concept mine.toml" in repeat_command(own) and "--forget" not in repeat_command(own)
    assert "--pretrained pretrained/digits-class" in repeat_command(own)
    assert "secret" not in str(details(own))
    assert ("protocol settings", "own concepts 1") in details(own)


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"device": "Xeon", "device_type": "cpu", "threads": 1, "precision": "float32"}, "Xeon, 1 thread, fp32"),
        ({"device": "Xeon", "device_type": "cpu", "threads": 8}, "Xeon, 8 threads, fp32"),
        ({"device": "H200", "device_type": "cuda", "threads": 8, **CHANGED}, "H200, bf16, slices, compiled"),
        ({}, "unknown device, fp32"),
    ],
)
def test_hardware_in_one_line(environment, text):
    assert hardware(made_record(environment=environment)) == text


def test_details_say_what_is_known_and_leave_out_what_is_not():
    told = dict(details(made_record(status="diverged", step=3, reason="not finite", environment={})))
    assert told["status"] == "diverged at step 3: not finite"
    assert told["protocol"] == f"default, hash {'a' * 12}"
    assert told["judge"] == f"digits-cnn 1, hash {'j' * 12}, threshold 0.5"
    assert told["seeds"] == "pretraining 0, unlearning 0, sampling 0"
    assert told["settings"] == "lr 0.1"
    assert told["weights"] == f"original {'o' * 12}, unlearned {'u' * 12}"
    assert not {"commit", "versions", "data", "tuned on", "given", "attacks"} & set(told)
    chosen = Selection(forget=("1",), seeds=(9,), sampling_seed=5, judge="j", trials=20)
    tuned = made_record(
        method_changes={"division": "tuned", "selection": chosen},
        environment={"commit": "c" * 40, "dirty": True, "packages": {"torch": "2.15.0"}, "python": "3.11.7"},
    )
    told = dict(details(tuned))
    assert told["commit"] == f"{'c' * 12}, with uncommitted changes"
    assert told["versions"] == "python 3.11.7, torch 2.15.0"
    assert "trials 20" in told["tuned on"]


def test_details_say_what_stages_and_attacks_computed_in():
    numerics = {
        "unlearning": {"autocast": None, "tf32": []},
        "sampling": {"autocast": "float16", "tf32": []},
    }
    attack = made_attack().model_copy(update={"made_with": {"numerics": {"search": {"autocast": None, "tf32": None}}}})
    attacks = {"relearn": attack, "p4d": attack, "old": made_attack()}
    told = dict(details(made_record(environment={"precision": "fp16", "numerics": numerics}, attacks=attacks)))
    assert told["computed in"] == "unlearning float32 without TF32, sampling float16"
    assert told["attacks computed in"] == "search float32"
    rounded = {"unlearning": {"autocast": None, "tf32": ["convolutions", "products"]}}
    told = dict(details(made_record(environment={"numerics": rounded})))
    assert told["computed in"] == "unlearning float32 with TF32 convolutions and products"
    assert "computed in" not in dict(details(made_record(environment={"numerics": "strange"})))


@pytest.mark.usefixtures("small")
def test_the_command_of_a_record_finds_that_very_record(cli, tmp_path):
    first = cli("run", "--method", write_nudge(tmp_path), "--set", "size=0.125", "--seeds", "1")
    assert first.code == 0, first.err
    (path,) = (tmp_path / "results").glob("*/*/*/nudge*/seed-1.json")
    before = path.read_bytes()
    again = cli(*shlex.split(repeat_command(read_record(path)))[1:])
    assert (again.code, again.out) == (0, first.out)
    assert path.read_bytes() == before
