"""The plot command, on records made by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.leaderboard.test_robustness import attack
from tests.support.small_world import made_record
from unlearnbench.hashing import file_hash
from unlearnbench.records.schema import write_record

SCORES = {"ua": 0.5, "ra": 0.8, "unlearn_time": 3.0}


def kept(results, record, values=None):
    """A record written where it belongs, with a table by image."""
    path = record.path(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is not None:
        frame = pd.DataFrame({"group": "retain", "concept": "1", "ra": pd.array(values, dtype="Float64")})
        frame.to_parquet(path.with_suffix(".parquet"), index=False)
        record = record.model_copy(update={"images": file_hash(path.with_suffix(".parquet"))})
    write_record(record, path)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for forget in ("3", "8"):
        for name in ("original", "esd", "salun"):
            attacks = {"relearn": attack([True, False], [5, 100])} if forget == "3" else {}
            record = made_record(name, 0, SCORES, forget=forget, attacks=attacks)
            kept(folder, record, [1.0, 1.0, 1.0, 1.0 if name == "original" else 0.0])
    kept(folder, made_record("esd", 0, SCORES, task="other-task", forget="a b"))
    return folder


@pytest.fixture
def plot(cli):
    """Draw, and say what was printed."""

    def call(*words):
        said = cli("plot", *words)
        assert (said.code, said.errors) == (0, []), said
        return said.out

    return call


@pytest.fixture
def refused(cli):
    """The one line that a command is refused with."""

    def call(*words):
        said = cli("plot", *words)
        assert said.code == 2 and len(said.errors) == 1, said
        return said.errors[0].removeprefix("unlearnbench: ")

    return call


@pytest.mark.parametrize("kind", ["pareto", "cost", "attacks"])
def test_one_table_becomes_a_file(plot, results, tmp_path, kind):
    path = tmp_path / "new" / f"{kind}.pdf"
    said = plot(kind, results, "--task", "digits-class", "--forget", "3", "--out", path)
    assert said.startswith(f"wrote {path}: ") and "digits-class, default, forget 3" in said
    assert path.read_bytes().startswith(b"%PDF")


def test_the_matrix_is_of_all_forget_concepts(plot, results, tmp_path):
    path = tmp_path / "m.svg"
    plot("matrix", results, "--task", "digits-class", "--out", path)
    text = path.read_text()
    assert text.count(">−25<") == 4, "two methods, two forget concepts"
    plot("matrix", results, "--task", "digits-class", "--forget", "3", "--methods", "esd", "--out", path)
    assert path.read_text().count(">−25<") == 1


def test_only_the_methods_that_were_named_are_drawn(plot, results, tmp_path):
    path = tmp_path / "p.svg"
    plot("pareto", results, "--task", "digits-class", "--forget", "3", "--methods", "esd", "--out", path)
    assert ">esd<" in path.read_text() and ">salun<" not in path.read_text()


def test_several_tables_and_none_chosen_are_listed(refused, results):
    assert refused("pareto", results) == (
        "these records make 3 tables: choose one with --task digits-class --forget 3 or "
        "--task digits-class --forget 8 or --task other-task --forget 'a b'"
    )
    line = refused("cost", results, "--task", "digits-class")
    assert line == "these records make 2 tables: choose one with --forget 3 or --forget 8"
    line = refused("matrix", results)
    assert line == "these records make 2 tables: choose one with --task digits-class or --task other-task"


def test_protocols_of_one_name_are_told_apart_by_their_hash(plot, refused, tmp_path):
    for name, letter in (("esd", "a"), ("salun", "b")):
        kept(tmp_path, made_record(name, 0, SCORES, protocol_changes={"hash": letter * 64}))
    assert refused("cost", tmp_path).endswith("choose one with --protocol aaaaaaaa or --protocol bbbbbbbb")
    plot("cost", tmp_path, "--protocol", "bbbbbbbb", "--out", "c.svg")
    assert ">salun<" in (tmp_path / "c.svg").read_text()


OTHER = ["--task", "other-task"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--out", "f.gif"], "cannot write a figure to f.gif: its name must end in .pdf, .svg or .png"),
        (["--task", "digits-clas"], "unknown task among the records 'digits-clas': did you mean digits-class"),
        (["--forget", "9"], "unknown concept among the records '9'"),
        (["--protocol", "defalt"], "unknown protocol among the records 'defalt'"),
        ([*OTHER, "--methods", "esdd"], "unknown method among the records 'esdd': did you mean esd"),
        ([*OTHER, "--methods", ","], "--methods is empty"),
        ([*OTHER, "--x", "raa"], "unknown metric 'raa'"),
        ([*OTHER, "--x", "fid"], "no values of fid here: name another metric"),
    ],
)
def test_bad_words_are_one_line(refused, results, tmp_path, words, line):
    assert line in refused("pareto", results, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "words", "line"),
    [
        ("attacks", ["--forget", "8"], "no record here was attacked"),
        ("matrix", OTHER, "no effects to show"),
        ("cost", ["--forget", "3", "--x", "ra"], "--x and --y are for pareto: leave them out of cost"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(refused, results, kind, words, line):
    assert line in refused(kind, results, *words)


def test_an_empty_folder_says_how_to_fill_it(refused, tmp_path):
    line = refused("pareto", tmp_path)
    assert line.startswith(f"no records below {tmp_path}: make some with `unlearnbench run")


def test_a_place_that_cannot_be_written_is_one_line(refused, results, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused("cost", results, *OTHER, "--out", tmp_path / "file" / "f.pdf")
    assert line.startswith("cannot write ") and line.endswith("name another with --out")
