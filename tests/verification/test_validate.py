"""validate and schema: what is wrong in a folder, what a record must look like; diff on the command line."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from tests.support.small_world import ROOT, made_record, run_cell, small_protocol, write_nudge
from unlearnbench.records.schema import VERSION, MethodRecord, Selection, read_record, write_record
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.verification.validate import count_notes, find_problems, record_files, record_findings

pytestmark = pytest.mark.usefixtures("small")
OLD = ROOT / "tests/support/files/record-v1.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of two sound records, one of them with a grid."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DigitsClass.protocols, "default", small_protocol())
        for method in ("original", write_nudge(folder)):
            run_cell(method, folder / "store", folder / "here")
    return folder / "here"


@pytest.fixture
def here(made, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(made, tmp_path / "here")


@pytest.fixture
def path(here):
    return here / "digits-class/default/3/nudge/seed-0.json"


def reseal(path, **changes):
    return write_record(read_record(path).model_copy(update=changes), path)


def texts(here):
    return [problem.text for problem in find_problems(here)]


# ---- validate ------------------------------------------------------------------------------------------------------


def test_a_sound_folder(cli, here):
    assert find_problems(here) == []
    said = cli("validate", "here")
    note = "note: 1 record of a method that is not known here\n"
    assert (said.code, said.out, said.err) == (0, f"{note}2 records checked, 0 problems\n", "")


def test_an_edited_number_is_found_and_the_rest_still_checked(cli, here, path):
    raw = json.loads(path.read_text())
    raw["scores"]["ua"]["value"] = 0.999
    path.write_text(json.dumps(raw))
    other = here / "digits-class/default/3/original/seed-0.json"
    other.write_bytes(b"\xff")
    said = cli("validate", "here")
    assert said.code == 1
    lines = said.out.splitlines()
    assert lines[0].startswith("here/digits-class/default/3/nudge/seed-0.json: was changed after it was written")
    assert lines[1].startswith("here/digits-class/default/3/original/seed-0.json: is damaged")
    assert lines[2:] == ["2 records checked, 2 problems"]


def test_a_newer_schema_and_a_folder_in_place_of_a_record(here, path):
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "schema_version": VERSION + 1}))
    (path.parent / "seed-1.json").mkdir()
    found = texts(here)
    assert len(found) == 2
    assert found[0].startswith(f"has schema {VERSION + 1}")
    assert "directory" in found[1].lower()


def test_a_record_at_another_place_is_a_duplicate_too(here, path):
    copy = here / "digits-class/default/4/nudge/seed-0.json"
    copy.parent.mkdir(parents=True)
    for suffix in (".json", ".parquet", ".png"):
        shutil.copy(path.with_suffix(suffix), copy.with_suffix(suffix))
    assert texts(here) == [f"its contents belong at {path}: move it there", f"is the same run as {path}: delete one"]


@pytest.mark.parametrize("changes", [{"key": "another"}, {"created": "later"}], ids=["identity", "key"])
def test_duplicates_by_identity_and_by_key(here, path, changes):
    copy = path.with_name("seed-9.json")
    shutil.copy(path, copy)
    reseal(copy, images=None, **changes)
    assert f"is the same run as {path}: delete one" in texts(here)


def test_unknown_task_concept_and_protocol(here, path):
    record = read_record(path)
    reseal(path, task="digit-class")
    assert any(text.startswith("unknown task 'digit-class'") and "digits-class" in text for text in texts(here))
    reseal(path, task=record.task, forget="x")
    assert any(text.startswith("unknown concept 'x'") for text in texts(here))
    reseal(path, forget="3", protocol=record.protocol.model_copy(update={"name": "other"}))
    assert any(text.startswith("unknown protocol 'other'") for text in texts(here))


def test_a_protocol_that_means_something_else_here(here, path, monkeypatch):
    import dataclasses

    monkeypatch.setitem(DigitsClass.protocols, "default", dataclasses.replace(small_protocol(), k=7, chunk=25))
    found = texts(here)
    assert len(found) == 2, "one for each record"
    assert found[0].endswith(": chunk 20 there and 25 here, k 3 there and 7 here")


def test_protocol_settings_that_do_not_have_their_hash(here, path):
    record = read_record(path)
    settings = {**record.protocol.settings, "k": 9}
    reseal(path, protocol=record.protocol.model_copy(update={"settings": settings}))
    assert any("not that of the settings beside it" in text for text in texts(here))


def test_images_missing_changed_or_at_odds_with_the_scores(here, path):
    record = read_record(path)
    score = record.scores["ra"]
    reseal(path, scores={**record.scores, "ra": score.model_copy(update={"value": score.value - 0.01})})
    assert texts(here) == [f"ra is {score.value - 0.01}, but its per-image values give {score.value}"]
    write_record(record, path)
    table = path.with_suffix(".parquet")
    frame = pd.read_parquet(table)
    frame.assign(ua="x").to_parquet(table)
    assert "its hash does not fit" in texts(here)[0]
    import hashlib

    reseal(path, images=hashlib.sha256(table.read_bytes()).hexdigest())
    assert "has large_string in the column 'ua' in place of numbers" in texts(here)[0]
    table.unlink()
    assert texts(here) == ["its per-image values seed-0.parquet are missing: restore them, or run it again"]


def test_a_sample_grid_that_is_missing_or_no_picture(here, path):
    grid = path.with_suffix(".png")
    grid.write_bytes(b"no picture")
    assert any(text.startswith("its sample grid seed-0.png is no picture") for text in texts(here))
    grid.unlink()
    assert texts(here) == ["its sample grid seed-0.png is missing: run it again"]


def test_seeds_of_one_label_that_are_not_pooled_are_noted(here, path):
    record = read_record(path)
    changed = record.method.model_copy(update={"settings": {**record.method.settings, "other": 1}})
    made = record.model_copy(update={"seeds": {**record.seeds, "unlearning": 1}, "method": changed})
    write_record(made, path.with_name("seed-1.json"))
    found = [one for one in record_findings(here, record_files(here)) if one.note and "not pooled" in one.text]
    assert [one.path.name for one in found] == ["seed-1.json"]
    assert "seed-0.json" in found[0].text and "settings" in found[0].text
    write_record(record.model_copy(update={"seeds": made.seeds}), path.with_name("seed-1.json"))
    assert not [one for one in record_findings(here, record_files(here)) if one.note and "not pooled" in one.text]


def test_files_that_belong_to_no_record(here, path):
    for suffix in (".parquet", ".png"):
        (path.parent / f"seed-7{suffix}").write_bytes(b"x")
    (here / "plot.png").write_bytes(b"x")
    found = find_problems(here)
    assert [problem.path.name for problem in found] == ["seed-7.parquet", "seed-7.png"]
    assert all("has no record beside it" in problem.text for problem in found)


APART = Selection(forget=("0", "1"), seeds=(100, 101), sampling_seed=1, judge="e" * 64, trials=5)
OVERLAPS = [
    ({}, []),
    ({"forget": ("0", "3")}, ["concept 3"]),
    ({"seeds": (0, 1)}, ["unlearning seed 0"]),
    ({"sampling_seed": 0}, ["sampling seed 0"]),
    ({"judge": "own"}, ["judge "]),
    (
        {"forget": ("3",), "seeds": (0,), "sampling_seed": 0, "judge": "own"},
        ["concept 3", "unlearning seed 0", "sampling seed 0", "judge "],
    ),
]


def tune(path, selection):
    """Make the record one of tuned settings, and put it where such a one belongs."""
    record = read_record(path)
    method: MethodRecord = record.method.model_copy(
        update={"division": "tuned", "preset": "tuned", "selection": selection}
    )
    new = path.parents[1] / "nudge@tuned/seed-0.json"
    path.parent.rename(new.parent)
    return write_record(record.model_copy(update={"method": method}), new)


@pytest.mark.parametrize(("changes", "overlaps"), OVERLAPS)
def test_tuned_on_what_is_reported(here, path, changes, overlaps):
    own = read_record(path).judge.hash
    changes = {name: own if value == "own" else value for name, value in changes.items()}
    tune(path, APART.model_copy(update=changes))
    found = texts(here)
    assert len(found) == len(overlaps)
    for text, overlap in zip(found, overlaps, strict=True):
        assert text.startswith(f"is tuned on what it reports: {overlap}")


def test_tuned_without_saying_on_what(here, path):
    tune(path, None)
    assert texts(here) == ["is tuned, but does not say on what (method.selection is missing)"]


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_the_results_of_this_project_are_sound(every, monkeypatch):
    """A fifth of them each time; all of them in the slow tests."""
    monkeypatch.undo()  # they are of the whole protocol
    results = ROOT / "results"
    found = list(record_findings(results, record_files(results)[::every]))
    assert [each for each in found if each.note is None] == []
    assert not any("could not be made again" in group for group, _ in count_notes(found)), "their plans need no files"


@pytest.mark.parametrize("name", ["gone", "empty"])
def test_a_folder_without_records_is_bad_input(cli, tmp_path, name):
    (tmp_path / "empty").mkdir()
    said = cli("validate", name)
    assert (said.code, len(said.errors)) == (2, 1)
    assert f"no records below {name}" in said.err


# ---- the command line -------------------------------------------------------------------------------------------


def test_diff_on_the_command_line(cli, here, path):
    said = cli("diff", path, here / "digits-class/default/3/original")
    assert said.code == 0, said.err
    assert said.out.splitlines()[0] == f"A: {path}"
    assert said.out.splitlines()[1].endswith("original/seed-0.json")
    assert "hyper-parameter" in said.out
    assert cli("diff", path, path).out.splitlines()[2] == "identical"
    shutil.copytree(path.parent, here / "copy")
    reseal(here / "copy/seed-0.json", revision=2, created="later")
    assert cli("diff", path, here / "copy").out.splitlines()[2] == "no difference but times"
    assert "schema" not in cli("diff", OLD, path).out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("diff", "gone.json", "gone.json"), "no record at gone.json: give the path of a seed-*.json"),
        (("diff", "here", "here"), "2 records below here: name one of them, such as here/digits-class"),
        (("verify", "empty"), "no records below empty: give the path of a seed-*.json"),
        (("verify", "here/digits-class/default/3/nudge/seed-0.parquet"), "no record at here"),
        (("schema", "--out", "here"), "cannot write here"),
    ],
)
def test_bad_paths_are_one_line(cli, here, tmp_path, words, says):
    (tmp_path / "empty").mkdir()
    said = cli(*words)
    assert (said.code, len(said.errors)) == (2, 1)
    assert says in said.errors[0]


# ---- schema --------------------------------------------------------------------------------------------------------


def test_schema_is_versioned_and_names_every_field(cli, tmp_path):
    said = cli("schema")
    assert said.code == 0
    schema = json.loads(said.out)
    assert schema["version"] == schema["properties"]["schema_version"]["const"] == VERSION
    assert schema["$id"].endswith(f":{VERSION}")
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert set(schema["properties"]) == set(type(made_record()).model_fields)
    assert cli("schema", "--out", "a/schema.json").code == 0
    assert json.loads((tmp_path / "a/schema.json").read_text()) == schema
