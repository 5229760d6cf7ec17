"""What `run` prints in each of its forms, where it writes, and which records it takes over."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.support.small_world import ROOT, made_record, read_only, write_method, write_nudge
from unlearnbench import registry
from unlearnbench.launch.driver import Left
from unlearnbench.launch.worker import work
from unlearnbench.leaderboard import run_summary
from unlearnbench.records.schema import read_record, write_record

pytestmark = pytest.mark.usefixtures("small")


def test_json_is_one_document_and_progress_is_on_stderr(cli, tmp_path):
    needy = write_method(tmp_path, "return model", "needy", fields='requires = frozenset({"xattn", "concept"})')
    words = ("run", "--method", write_nudge(tmp_path), "--method", needy, "--results", "here")
    said = cli(*words, "--format", "json")
    assert said.code == 0 and "[3/3] needy" in said.err
    document = json.loads(said.out)
    ok, skipped = document["runs"]
    record = read_record(tmp_path / ok["record"])
    assert ok["scores"]["ua"]["value"] == record.scores["ua"].value and ok["measured_here"] is None
    assert (ok["method"], ok["seed"], ok["status"]) == ("nudge", 0, "ok")
    assert skipped["status"] == "skipped" and "xattn" in skipped["reason"]
    assert {"digits-text", "sd-object"} <= set(skipped["fitting_tasks"]) and ok["fitting_tasks"] == []
    assert [one["method"] for one in document["original"]] == ["original"] and document["failed"] == []
    assert document["next"][0] == "unlearnbench leaderboard --results here"

    quiet = cli(*words, "--quiet")
    assert quiet.err == ""
    assert quiet.out.splitlines() == [one["record"] for one in document["runs"]]

    old = cli(*words[:-2], "--out", "here")
    assert old.code == 0 and "note: --out is deprecated: write --results here" in old.err
    assert "these tasks have it: digits-text" in old.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "--method", "esd", "--format", "yaml"), "unknown format 'yaml'"),
        (("run", "--method", "esd", "--format", "json", "--dry-run"), "leave out --format"),
        (("run", "--method", "esd", "--results", "a", "--out", "b"), "--results a and --out b are two folders"),
        (("leaderboard", "a", "--results", "b"), "--results b and the argument a are two folders"),
    ],
)
def test_what_does_not_fit_together_is_one_line(cli, tmp_path, words, said):
    found = cli(*words)
    assert found.code == 2 and said in found.errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("width", [20, 80])
def test_the_next_step_is_one_line_at_any_width(monkeypatch, capsys, tmp_path, width):
    from unlearnbench.cli import console

    monkeypatch.setattr(console.out, "_width", width)
    results = tmp_path / "a folder" / "of records"
    console.show_next(results, [made_record("esd")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["next:", *(f"  {line}" for line in run_summary.next_steps(results, [made_record("esd")]))]
    assert f"--results '{results}'" in lines[1]
    assert run_summary.next_steps(results, [made_record("esd").model_copy(update={"status": "diverged"})]) == []


def test_records_are_looked_up_in_the_folder_that_is_named(cli, tmp_path):
    for method in ("original", "esd"):
        record = made_record(method, scores={"ua": 0.5})
        write_record(record, record.path(tmp_path / "mine"))
    place = "digits-class/default/3"
    said = cli("diff", f"{place}/original", f"{place}/esd", "--results", "mine")
    assert said.code == 0 and "A: mine/digits-class/default/3/original/seed-0.json" in said.out
    assert cli("compare", f"{place}/original", f"{place}/esd", "--results", "mine").code == 0
    assert cli("diff", f"{place}/original", f"{place}/esd").code == 2


@pytest.fixture
def shipped(cli, tmp_path, monkeypatch):
    """A checkout's folder with the controls of digit 3, and a store that has nothing of them.

    What stands for retrain is another method's record under its name: to train takes minutes.
    """
    made = tmp_path / "made"
    assert cli("run", "--method", write_nudge(tmp_path, "other"), "--results", "made").code == 0
    record = read_only(made)
    method, old = record.method.model_copy(update={"name": "retrain"}), record.path(made)
    for seed in range(3):
        seeds = {**record.seeds, "unlearning": seed}
        retrain = record.model_copy(update={"method": method, "seeds": seeds})
        write_record(retrain, retrain.path(made))
        for suffix in (".parquet", ".png"):
            shutil.copy(old.with_suffix(suffix), retrain.path(made).with_suffix(suffix))
    shutil.rmtree(old.parent)
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "another-store"))
    monkeypatch.setattr("unlearnbench.pipeline.shipped.shipped_results", lambda: made)
    return made


def test_shipped_controls_serve_runs_in_any_folder(cli, tmp_path, shipped, monkeypatch):
    unlearned = []
    real = __import__("unlearnbench.pipeline.runner", fromlist=["unlearn"]).unlearn

    def counted(cell, *more):
        unlearned.append(cell.method.name)
        return real(cell, *more)

    monkeypatch.setattr("unlearnbench.pipeline.runner.unlearn", counted)
    words = ("run", "--method", write_nudge(tmp_path), "--results", "mine")
    said = cli(*words)
    assert said.code == 0, said.err
    assert unlearned == ["nudge"], "the original's record is there"
    for name, seeds in (("original", "0"), ("retrain", "0, 1, 2")):
        assert f"{name} · forget 3 · seed {seeds}: using the record shipped with this checkout" in said.err
        for suffix in (".json", ".parquet"):
            place = f"digits-class/default/3/{name}/seed-0{suffix}"
            assert (tmp_path / "mine" / place).read_bytes() == (shipped / place).read_bytes()
    assert re.search(r"^ *metric .* retrain", said.out, re.M) and "--method retrain" not in said.out
    assert (tmp_path / "mine/digits-class/default/3/nudge/seed-0.png").is_file()
    again = cli(*words)
    assert unlearned == ["nudge"] and "using the record" not in again.err


def test_what_scores_lack_is_said_once_with_the_reason(cli, tmp_path, shipped):
    for path in shipped.glob("digits-class/default/3/retrain/seed-*.json"):
        write_record(read_record(path).model_copy(update={"engine_hash": "0" * 64}), path)
    words = ("--method", write_nudge(tmp_path), "--method", write_nudge(tmp_path, "twice"), "--results", "mine")
    for count in (2, 4):
        said = [line for line in cli("run", *words[:count], *words[4:]).out.splitlines() if "no scores" in line]
        assert len(said) == 1 and "the shipped retrain is of another engine version" in said[0]
        assert "--method retrain,destroy" in said[0] and "--force" not in said[0], "nothing stands in their place"


def test_shipped_controls_serve_runs_as_jobs_too(cli, tmp_path, shipped, monkeypatch):
    begun = []

    def in_this_process(every, todo, where, store, results, shown):
        begun.extend(job.name for job in todo)
        return Left({job.id: work(job, store, results.resolve(), tmp_path / "log") for job in todo}, ())

    monkeypatch.setattr("unlearnbench.launch.plan.launched", in_this_process)
    said = cli("run", "--method", write_nudge(tmp_path), "--results", "mine", "--jobs", "1")
    assert said.code == 0, said.err
    assert begun == ["nudge · forget 3 · seed 0"], "the original's record is there"
    for name, seeds in (("original", "0"), ("retrain", "0, 1, 2")):
        assert f"{name} · forget 3 · seed {seeds}: using the record shipped with this checkout" in said.err
        place = f"digits-class/default/3/{name}/seed-0.json"
        assert (tmp_path / "mine" / place).read_bytes() == (shipped / place).read_bytes()
    assert re.search(r"^ *metric .* retrain", said.out, re.M)


def test_controls_of_other_conditions_are_not_taken_over(cli, tmp_path, shipped):
    path = shipped / "digits-class/default/3/original/seed-0.json"
    record = read_record(path)
    other = {"weights": {**record.weights, "original": "0" * 64}, "key": "0" * 64}
    write_record(record.model_copy(update=other), path)
    said = cli("run", "--method", "original", "--results", "mine")
    assert said.code == 0
    assert "original · forget 3 · seed 0: using" not in said.err
    assert read_record(tmp_path / "mine/digits-class/default/3/original/seed-0.json").weights == record.weights


def test_a_checkout_says_that_its_own_records_are_used(cli, monkeypatch):
    monkeypatch.chdir(ROOT)
    said = cli("leaderboard", "--task", "digits-text", "--forget", "nothing")
    assert said.code == 2
    assert said.err.startswith("note: using results, the records shipped with this checkout\n")


def test_a_score_that_is_missing_is_named_with_its_reason(cli, tmp_path, monkeypatch):
    def fail(self, outcome, budget=None):
        raise ZeroDivisionError("no logarithm of nothing")

    monkeypatch.setattr(type(registry.load_metrics()["entropy"]), "measure", fail)
    said = cli("run", "--method", write_nudge(tmp_path), "--results", "here")
    assert "unreliable: entropy: ZeroDivisionError: no logarithm of nothing" in said.err
