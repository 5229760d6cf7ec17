"""What the tests of attacks declare about the papers' code: every preset's settings have a source, and a test."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields
from pathlib import Path

import pytest

from tests.support.fidelity import Fidelity
from unlearnbench.registry import load_attacks

WITHOUT = (
    Fidelity(
        "concept_inversion",
        "Pham et al., ICLR 2024",
        departs="No preset: its schedule and templates are described in its docstring; the paper's code was not run "
        "beside it.",
    ),
    Fidelity(
        "latent_probe",
        "Lu et al., NeurIPS 2025, and others that its docstring names",
        departs="No preset: each probe is a variant; the papers' code was not run beside them.",
    ),
    Fidelity(
        "prompt_ladder",
        "Wei, Nakashima and Garcia, arXiv 2512.17320",
        departs="No preset: the levels are theirs, the prompts are this suite's, since theirs are not at hand.",
    ),
    Fidelity("relearn", "none", departs="No preset: no paper's schedule is followed."),
    Fidelity(
        "sequential",
        "Zhang et al., NeurIPS 2024 (UnlearnCanvas)",
        departs="No preset: the question is theirs, the concepts and counts are this suite's.",
    ),
)
WITH = ("unlearndiffatk", "p4d", "ring_a_bell")


def declared(name):
    return importlib.import_module(f"tests.metrics.test_{name}").FIDELITY


def test_every_attack_declares_what_it_follows():
    assert {each.method for each in WITHOUT} | set(WITH) == set(load_attacks())
    for each in WITHOUT:
        assert each.departs and not load_attacks()[each.method].presets
    for name in WITH:
        assert declared(name).method == name and declared(name).departs


@pytest.mark.parametrize("name", WITH)
def test_every_setting_of_a_preset_has_its_source(name):
    attack, said = load_attacks()[name], declared(name)
    sources = {(each.preset, each.task, each.field): each for each in said.constants}
    assert len(sources) == len(said.constants)
    settings = {
        (preset, task, field): value
        for preset, tasks in attack.presets.items()
        for task, values in tasks.items()
        for field, value in values.items()
    }
    assert {key: each.value for key, each in sources.items()} == settings
    assert {field for _, _, field in settings} <= {field.name for field in fields(attack)}
    for each in said.constants:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{7,} \S+:[1-9]\d*", each.source), each.source


@pytest.mark.parametrize("name", WITH)
def test_every_difference_is_held_by_a_test(name):
    tests = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    said = declared(name)
    assert {each.preset for each in said.differences} == set(load_attacks()[name].presets)
    for each in said.differences:
        assert f"def {each.held_by}(" in tests, each.held_by
        assert each.note if each.measured is None else 0 <= each.measured <= 1e-5


@pytest.mark.parametrize("name", WITH)
def test_no_preset_of_a_paper_is_for_any_task(name):
    for tasks in load_attacks()[name].presets.values():
        assert not any("*" in task for task in tasks)
