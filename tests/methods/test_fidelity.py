"""Presets say what the papers and their code say: every setting of "published" and "released" has its source."""

import re

import pytest

from tests.studies import fidelity
from unlearnbench import registry
from unlearnbench.fidelity import TABLE, fidelity_table, in_digits

DECLARED = {one.method: (module, one) for module, one in fidelity.declared()}
PAPER = re.compile(r"\b(paper|section|table|appendix|figure|eq)\b", re.IGNORECASE)
CODE = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{7,40} \S+:\d+")
METHODS = [name for name in registry.methods() if name in DECLARED]


def same(ours, theirs):
    """Equal values; lists and tuples alike, numbers to rounding."""
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float | int) and not isinstance(theirs, bool):
        return ours == pytest.approx(theirs, rel=1e-12)
    return ours == theirs and isinstance(ours, bool) == isinstance(theirs, bool)


def test_every_method_declares_how_faithful_it_is():
    assert set(registry.methods()) <= set(DECLARED)


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_a_paper_s_preset_has_its_source(name):
    cls, (_, declared) = registry.load_method(name), DECLARED[name]
    offered = {
        (preset, task, field): value
        for preset, tasks in cls.offered().items()
        if preset in fidelity.PRESETS
        for task, values in tasks.items()
        for field, value in values.items()
    }
    said = {(one.preset, one.task, one.field): one for one in declared.constants}
    assert offered.keys() - said.keys() == set(), "settings without a source"
    for key, one in said.items():
        preset, task, field = key
        value = offered.get(key, cls().settings()[field])  # what a preset leaves out is as built in
        assert task in cls.offered().get(preset, {}), f"{name} has no {preset} for {task}"
        assert same(value, one.value), f"{name}, {preset}, {task}: {field} is {value!r}, the source has {one.value!r}"
        assert CODE.search(one.source) or PAPER.search(one.source) or one.source.startswith("default: "), key


@pytest.mark.parametrize("name", METHODS)
def test_a_paper_s_preset_exists_only_for_tasks_that_it_ran(name):
    for preset, tasks in registry.load_method(name).offered().items():
        if preset in fidelity.PRESETS:
            assert not {"*", "digits-class", "digits-text"} & tasks.keys()
            assert all(task.startswith(("cifar10", "sd")) for task in tasks)


@pytest.mark.parametrize("name", METHODS)
def test_every_preset_was_compared_or_says_why_not(name):
    cls, (module, declared) = registry.load_method(name), DECLARED[name]
    for preset in cls.offered():
        if preset in fidelity.PRESETS:
            assert any(one.preset == preset for one in declared.differences), f"{name}: {preset} was not compared"
    for one in declared.differences:
        assert one.measured is not None or one.note, f"{name}, {one.preset}, {one.what}: neither a number nor a reason"
        assert callable(getattr(module, one.held_by, None)), f"{name}: no test {one.held_by} in {module.__name__}"
    if not declared.constants:
        assert declared.departs, f"{name} has no preset of a paper, and says no reason"


@pytest.mark.parametrize("name", METHODS)
def test_what_no_test_holds_is_experimental(name):
    cls, (module, declared) = registry.load_method(name), DECLARED[name]
    compared = bool(declared.differences) or not set(fidelity.PRESETS) & set(cls.offered())
    tested = any(test.startswith("test_") for test in vars(module))
    assert cls.experimental == (not (compared and tested))


def test_table_and_page_are_what_the_tests_declare():
    found = fidelity.rows()
    assert TABLE.read_text() == fidelity.as_json(found), "run `python -m tests.studies.fidelity`"
    assert fidelity.PAGE.read_text() == fidelity.page(found), "run `python -m tests.studies.fidelity`"


def test_list_shows_the_table(cli):
    said = cli("list", "fidelity")
    assert said.code == 0
    text = " ".join(said.out.split())
    for name, one in fidelity_table().items():
        assert f"{name}: " in text
        assert f"published, {one.tasks('published')}" in text


def test_differences_in_two_digits():
    values = (0.0, 1.5e-6, 2e-11, 0.11, 3.4)
    assert [in_digits(value) for value in values] == ["exact", "1.5e-6", "2.0e-11", "0.11", "3.4"]
