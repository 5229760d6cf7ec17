"""Default against tuned and, where a paper ran the task, published; what tuning came to and what it cost."""

from __future__ import annotations

import pytest

from tests.support.small_world import made_record
from unlearnbench.cli.console import out
from unlearnbench.leaderboard.board import board
from unlearnbench.records.folder import ResultsFolder, load_all
from unlearnbench.records.schema import write_record
from unlearnbench.records.tuning import Anchors, Cost, RunValue, Trial, Tuning, write_tuning
from unlearnbench.report.results_readme import files
from unlearnbench.report.tuning_table import HEADS, heads_of, introduction, page, row, tuning_note

TITLE, COST = "tuning on digits-class: objectives", "what it took"
SELECTION = {"forget": ("0", "1"), "seeds": (100, 101), "sampling_seed": 1, "judge": "j" * 64, "trials": 4}

ENDS = Anchors(original_ua=0, destroy_ra=0, original_ra=1, destroy_fid=100, original_fid=1, retrains=3)


def trial(number, objectives, presets=(), state="ok", **about):
    runs = [
        RunValue(forget=forget, seed=seed, state="ok", objective=value, evaluations=10, seconds=90.0)
        for (forget, seed), value in objectives.items()
    ]
    if state != "ok":
        runs.append(RunValue(forget="0", seed=100, state=state, reason="why", evaluations=10, seconds=90.0))
    return Trial(number=number, presets=presets, settings={"lr": number / 10, "kept": 1}, runs=tuple(runs), **about)


def tuning(method="esd", task="digits-class"):
    every = {(forget, seed): 0.9 for forget in "01" for seed in (100, 101)}
    trials = (
        trial(0, {("0", 100): 0.5, ("1", 100): 0.7}, ("default",)),
        trial(1, {}, ("published",), "over the cap"),
        trial(2, every),
        trial(3, {("0", 100): 0.1}, cut=True),
    )
    return Tuning(
        key="k", task=task, protocol="selection", protocol_hash="p", method=method, code_hash="c", engine_hash="e",
        space={"lr": (0.0, 1.0)}, cap=400_000, selection=SELECTION, trials=trials, chosen=2,
        settings=trials[2].settings, anchors={"0": ENDS},
        cost=Cost(runs=8, evaluations=80_000, seconds=720.0), environment={}, created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


@pytest.fixture
def results(tmp_path):
    rows = (
        [("original", "default", 0.0), ("retrain", "default", 1.0), ("destroy", "default", 1.0)]
        + [("esd", "default", 0.7)]
        + [("esd", division, value) for division, value in (("tuned", 0.9), ("published", 0.4), ("custom", 0.2))]
        + [("salun", "default", 0.6)]
    )
    for method, division, ua in rows:
        for seed in (0, 1):
            record = made_record(method, seed, {"ua": ua - seed / 100, "ra": 0.0 if method == "destroy" else 0.9})
            preset = division if division != "custom" else "default"
            overrides = {"lr": 0.5} if division == "custom" else {}
            about = {"preset": preset, "division": division, "overrides": overrides}
            record = record.model_copy(update={"method": record.method.model_copy(update=about)})
            write_record(record, record.path(tmp_path))
    write_tuning(tuning(), tmp_path)
    return tmp_path


def test_a_row_says_objectives_what_was_lost_and_cut_and_the_cost():
    cells = row(tuning(task="sd-style"))
    assert [*cells] == HEADS == heads_of([tuning(task="sd-style")])
    assert cells == {
        "method": "esd", "default": "0.600", "published": "over the cap", "tuned": "0.900", "all seeds": "0.900",
        "trials": "4", "lost": "1", "cut": "1", "evaluations": "80,000", "hours": "0.20", "chosen": "lr=0.2",
    }  # fmt: skip
    assert "cap 400,000 evaluations a run" in tuning_note([tuning()])


@pytest.mark.parametrize(
    ("method", "task", "published"),
    [
        ("esd", "digits-class", False),
        ("esd", "sd-style", True),
        ("salun", "cifar10-class", True),
        ("finetune", "cifar10-class", False),
        ("of_another_package", "cifar10-class", False),
    ],
)
def test_published_is_told_only_where_a_paper_ran_the_task(method, task, published):
    one = tuning(method, task).model_copy(update={"chosen": 1})
    two = one.model_copy(update={"chosen": 0})
    assert ("published" in heads_of([one])) is published
    assert row(one)["published"] == ("over the cap" if published else "")
    assert row(one)["chosen"] == ("published" if published else "settings of a paper for another task")
    assert row(two)["chosen"] == "default"
    said = " ".join(introduction([one]).split())
    assert ("column published" in said) is published
    assert ("settings of a paper for another task" in said) is not published


def test_a_method_without_published_settings_leaves_the_column_empty():
    both = [tuning("esd", "sd-style"), tuning("finetune", "sd-style")]
    assert "published" in heads_of(both)
    assert [row(one)["published"] for one in both] == ["over the cap", ""]


@pytest.mark.parametrize("width", [80, 100])
def test_every_column_has_room_in_a_narrow_terminal(cli, monkeypatch, tmp_path, width):
    for method in ("esd", "concept_ablation", "selective_amnesia"):
        write_tuning(tuning(method), tmp_path)
    monkeypatch.setattr(out, "_width", width)
    said = cli("tune", "--task", "digits-class", "--show", "--results", tmp_path)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    objectives, cost = (next(n for n, line in enumerate(lines) if line.startswith(title)) for title in (TITLE, COST))
    assert max(map(len, lines[objectives:cost])) <= width
    for one in ResultsFolder(tmp_path).tunings():
        cells = row(one)
        (first,) = [line.split() for line in lines[objectives:cost] if line.split()[:1] == [one.method]]
        (second,) = [line.split() for line in lines[cost:] if line.split()[:1] == [one.method]]
        assert [first[1], second[-2], second[-1]] == [cells["default"], cells["evaluations"], cells["hours"]]
        assert {cells["tuned"], cells["all seeds"]} <= {*first}


def table_heads(table):
    line = next(line for line in table.splitlines() if line.startswith("| method"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_of_each_method_by_division_with_intervals(results):
    text, made = page(board(load_all(results)), ResultsFolder(results).tunings())
    (table,) = [part for part in text.split("### ") if part.startswith("Default, published, tuned: ")]
    lines = [line for line in table.splitlines() if line.startswith("| esd")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [cells[:2] for cells in rows] == [
        ["esd", "default"],
        ["esd@published", "published"],
        ["esd@tuned", "tuned"],
    ], "no custom row, no method that was not tuned"
    assert rows[2][table_heads(table).index("RA (%) ↑")].startswith("90.0 [")
    assert "In all 0.2 hours of one thread, 80,000 evaluations" in text
    assert [path.as_posix() for path in made] == ["tuning/digits-class/best.png"]
    assert made.popitem()[1].startswith(b"\x89PNG")


def test_methods_that_were_tuned_differently_are_told_apart():
    esd, salun = tuning("esd"), tuning("salun")
    assert "400,000 evaluations" in tuning_note([esd, salun]) and "esd" not in tuning_note([esd, salun])
    said = tuning_note([esd, salun.model_copy(update={"cap": 900_000, "protocol": "wide"})])
    assert "esd: mean over forget 0, 1" in said and "cap 400,000" in said
    assert "salun: mean over forget 0, 1" in said and "Protocol wide" in said and "cap 900,000" in said
    assert "must not be compared" in said


def test_a_page_without_tunings_is_as_before(results):
    assert page(board(load_all(results)), []) == ("", {})
    made = files(board(load_all(results)), load_all(results))
    assert not any("tuning" in path.as_posix() for path in made)


def test_the_results_page_has_the_part_and_its_picture(cli, results):
    assert cli("leaderboard", results, "--write").code == 0
    assert "## Default and tuned settings" in (results / "README.md").read_text()
    assert (results / "tuning/digits-class/best.png").is_file()
    assert cli("leaderboard", results, "--check").code == 0
    (results / "tuning/digits-class/best.png").unlink()
    assert cli("leaderboard", results, "--check").code == 1
