"""Which files of a results folder are records, tunings and leftovers, and that each record is read once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.small_world import made_record
from unlearnbench.cli.console import err
from unlearnbench.errors import Damaged
from unlearnbench.records import folder as folders
from unlearnbench.records.folder import ResultsFolder, load_all, methods_beside, record_files_below
from unlearnbench.records.schema import write_record
from unlearnbench.reporting import shown_by


@pytest.fixture
def results(tmp_path):
    made = [made_record("esd", 0), made_record("esd", 1), made_record("salun", 0), made_record("esd", 0, forget="5")]
    made += [made_record("esd", 0, task="other-task")]
    for record in made:
        write_record(record, record.path(tmp_path))
    return tmp_path


def test_records_of_a_task_a_concept_and_a_method(results):
    folder = ResultsFolder(results)
    assert len(folder.record_files()) == len(folder.records()) == 5
    assert {record.task for record in folder.records("other-task")} == {"other-task"}
    concept = folder.record_files(forget="3", label="esd")
    assert [path.name for path in concept if path.parts[-5] != "other-task"] == ["seed-0.json", "seed-1.json"]
    assert folder.record_files(label="es*") == [], "names are no patterns"
    assert [record.seeds["unlearning"] for record in load_all(results, concept[0].parent)] == [0, 1]


def test_misplaced_records_are_found_by_depth_alone(results):
    (results / "seed-7.json").write_text("{}")
    assert results / "seed-7.json" in record_files_below(results)
    assert results / "seed-7.json" not in ResultsFolder(results).record_files()


def test_leftovers_are_attachments_without_a_record(results):
    record = ResultsFolder(results).record_files(label="salun")[0]
    record.with_suffix(".png").write_bytes(b"")
    lost = [record.with_name(f"seed-9.{suffix}") for suffix in ("parquet", "png")]
    for path in lost:
        path.write_bytes(b"")
    assert ResultsFolder(results).orphans() == lost


def test_methods_of_one_table(results):
    own = ResultsFolder(results).record_files(task="digits-class", forget="3", label="esd")[0].parent
    (own.parent / "empty").mkdir()
    assert [path.name for path in methods_beside(own)] == ["esd", "salun"]


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    folder = ResultsFolder(tmp_path / "nowhere")
    assert (folder.record_files(), folder.records(), folder.tunings(), folder.orphans()) == ([], [], [], [])


def test_a_damaged_record_is_named(results):
    ResultsFolder(results).record_files()[0].write_text("{}")
    with pytest.raises(Damaged, match=r"seed-0\.json"):
        ResultsFolder(results).records()


def test_reading_reports_how_far_it_is(results):
    steps = []
    with shown_by(lambda what, done, total: steps.append((what, done, total))):
        ResultsFolder(results).records()
    assert steps[0][1:] == (0, 5) and steps[-1][1:] == (5, 5)


@pytest.mark.parametrize("words", [["leaderboard"], ["leaderboard", "--attacks"], ["plot", "pareto"]])
def test_a_command_reads_each_record_once(cli, results, monkeypatch, words):
    read: list[Path] = []
    plain = folders.read_record
    monkeypatch.setattr(folders, "read_record", lambda path: read.append(path) or plain(path))
    said = cli(*words, results)
    assert len(read) == len(set(read)) == 5, said.err
    assert err.is_terminal or "reading" not in said.err
