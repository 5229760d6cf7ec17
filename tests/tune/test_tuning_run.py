"""`tune` and `run --preset tuned` from the command line, on a small digits-class with real runs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import shutil

import pytest
import torch
from typer.testing import CliRunner

from tests.support import launches
from tests.support.small_world import small_protocol
from unlearnbench.cli import app
from unlearnbench.launch import plan
from unlearnbench.launch.options import Where
from unlearnbench.launch.worker import work
from unlearnbench.pipeline import cell_state
from unlearnbench.pipeline.scoring import metrics_for
from unlearnbench.records.schema import read_record, write_record
from unlearnbench.records.tuning import read_tuning, write_tuning
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.tune import launch, trials
from unlearnbench.tune.search import Budget
from unlearnbench.verification.validate import find_problems

pytest.importorskip("optuna", reason="the extra [tune] is not installed")
MIX = '''"""Mix: what the forgotten label means is drawn towards what its substitute means; 0.6 and more is enough."""

from dataclasses import dataclass

import torch

from unlearnbench import Diverged, Method


@dataclass(frozen=True)
class Mix(Method):
    """e_f <- (1 - share) e_f + share e_m, after `passes` passes of eight images."""

    space = {"share": (0.0, 1.0)}
    presets = {"published": {"digits-class": {"share": 1.0, "passes": 100}}}
    share: float = 0.0
    passes: int = 2

    def unlearn(self, model, task, prepared=None):
        """At once."""
        y = task.names("forget")
        with torch.no_grad():
            for _ in range(self.passes):
                model(torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.long), y.expand(8))
            rows = model.embedding.weight
            rows[y] = rows[y].lerp(rows[task.substitute(y)], self.share)
        return model
'''
DIVERGES = MIX.replace("        return model\n", '        raise Diverged(3, "the loss")\n')
TASK = ("--task", "digits-class")


def small_selection():
    """The selection protocol with a few images and steps."""
    changes = {"sampler": small_protocol().sampler, "forget_images": 20, "retain_images": 4, "chunk": 28}
    return dataclasses.replace(DigitsClass.protocols["selection"], **changes)


@pytest.fixture(scope="module")
def tiny():
    """Few images and sampling steps, and a retrain that draws the next digit, more or less, by its seed."""

    def retrained(task, seed, which="both"):
        model = task.pretrained()
        y = task.names("forget")
        with torch.no_grad():
            rows = model.embedding.weight
            rows[y] = rows[y].lerp(rows[task.substitute(y)], 0.9 + 0.05 * (seed % 3))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DigitsClass.protocols, "default", small_protocol())
        patch.setitem(DigitsClass.protocols, "selection", small_selection())
        patch.setattr(DigitsClass, "train", retrained)
        yield


@pytest.fixture(scope="module")
def world(tiny, tmp_path_factory):
    """A folder with two methods' files."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "mix.py").write_text(MIX)
    (folder / "breaks.py").write_text(DIVERGES)
    return folder


def looked_at(task):
    """The metrics that tuning goes by."""
    return {name: metrics_for(task)[name] for name in ("ua", "ra", "fid")}


@pytest.fixture(scope="module")
def made(world):
    """Both of them tuned, with a cap that the published preset of `mix` goes over."""
    methods = f"{world / 'mix.py'},{world / 'breaks.py'}"
    words = ["tune", *TASK, "--forget", "0", "--trials", "4", "--method", methods, "--cap", "100", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARNBENCH_CACHE", str(world / "cache"))
        for module in (cell_state, trials):  # the others are not looked at while tuning
            patch.setattr(module, "metrics_for", looked_at)
        said = CliRunner().invoke(app, [*words, "--results", str(world / "results")])
    assert said.exit_code == 0, said.output
    return world / "results"


@pytest.fixture
def here(made, tmp_path):
    """A copy of what was tuned, in the folder that commands run in."""
    return shutil.copytree(made, tmp_path / "here")


@pytest.fixture
def report(cli, world, here):
    """Run `mix` as it was tuned, and give its record."""

    def run(*words):
        said = cli("run", "--method", world / "mix.py", "--preset", "tuned", "--results", "here", *words)
        assert said.code == 0, said.err
        return read_record(next(here.glob("digits-class/default/*/mix@tuned*/seed-*.json")))

    return run


def tuning(results, method="mix"):
    return read_tuning(results / f"tuning/digits-class/{method}.json")


# ---- tune ----------------------------------------------------------------------------------------------------------


def test_both_methods_have_the_same_number_of_trials_and_the_same_cap(made):
    mix, breaks = tuning(made), tuning(made, "breaks")
    assert len(mix.trials) == len(breaks.trials) == 4
    assert mix.cap == breaks.cap == 100
    assert mix.selection == breaks.selection
    assert (mix.selection.forget, mix.selection.seeds, mix.selection.sampling_seed) == (("0",), (100, 101, 102), 1)


def test_what_erases_and_keeps_is_chosen_over_the_default_which_does_nothing(made):
    found = tuning(made)
    assert found.settings["share"] > 0.4
    assert found.first(found.of("default")) < 0.2
    assert found.final(found.trials[found.chosen]) > found.first(found.of("default")) + 0.15


def test_a_trial_over_the_cap_is_stopped_there_and_charged_for_it(made):
    published = tuning(made).of("published")
    assert published.state == "over the cap"
    assert published.evaluations == 8 * (100 // 8 + 1)
    assert published.runs[0].reason == "stopped at 104 evaluations: over the cap of 100"
    assert tuning(made).of("default").evaluations == 2 * 8 * len(tuning(made).of("default").runs)


def test_diverged_trials_count_and_nothing_is_chosen_among_them(made):
    found = tuning(made, "breaks")
    states = {trial.state for trial in found.trials if not trial.presets}
    assert states == {"diverged"}
    assert (found.chosen, found.settings) == (None, None)
    assert found.of("default").runs[0].reason == "the loss is not finite at step 3"
    assert found.of("default").evaluations == 16


def test_the_objective_is_the_worst_part_of_the_score(made):
    found = tuning(made)
    for run in (run for trial in found.trials for run in trial.runs if run.state == "ok"):
        ends = found.anchors[run.forget]
        assert ends.retrains == 3
        assert run.erasure == pytest.approx((run.ua - ends.original_ua) / (1 - ends.original_ua))
        by_ra = (run.ra - ends.destroy_ra) / (ends.original_ra - ends.destroy_ra)
        by_fid = math.log(run.fid / ends.destroy_fid) / math.log(ends.original_fid / ends.destroy_fid)
        assert run.utility == pytest.approx(min(by_ra, by_fid))
        assert run.objective == pytest.approx(min(run.erasure, run.likeness, run.utility))


def test_the_same_command_again_answers_at_once_and_keeps_the_file(cli, world, here, monkeypatch):
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(world / "nothing"))
    before = (here / "tuning/digits-class/mix.json").read_bytes()
    words = ("tune", *TASK, "--forget", 0, "--trials", 4, "--cap", 100, "--device", "cpu", "--results", "here")
    said = cli(*words, "--method", world / "mix.py")
    assert (said.code, said.err) == (0, "")
    assert (here / "tuning/digits-class/mix.json").read_bytes() == before
    assert not (world / "nothing").exists()


def test_runs_are_dropped_when_a_method_is_tuned_and_trials_kept(made, world):
    assert (world / "cache/tuning/digits-class/mix/trials.log").is_file()
    assert not (world / "cache/tuning/digits-class/mix/runs").exists()


def test_the_table_and_the_figure(cli, here, tmp_path):
    said = cli("tune", *TASK, "--show", "--out", "here", "--plot", "best.svg")
    assert said.code == 0
    row, cost = (line.split() for line in said.out.splitlines() if line.strip().startswith("mix "))
    found = tuning(here)
    chosen = found.trials[found.chosen]
    assert row[1] == f"{found.first(found.trials[0]):.3f}"
    assert "published" not in said.out, "no paper ran the digits, whatever a method's file says"
    assert row[2:4] == [f"{found.first(chosen):.3f}", f"{found.final(chosen):.3f}"]
    assert cost[1] == f"{len(found.trials)}"
    assert "breaks" in said.out
    drawn = (tmp_path / "best.svg").read_text()
    assert "best objective so far" in drawn
    assert "mix" in drawn


def test_methods_tuned_as_jobs_come_to_the_same(cli, made, world, tmp_path, monkeypatch):
    cache = shutil.copytree(world / "cache", tmp_path / "cache")  # with weights and images of the controls
    shutil.rmtree(cache / "tuning")
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(cache))
    monkeypatch.setattr(plan, "backend", lambda where, *about: launches.Here(*about))
    for module in (cell_state, trials):
        monkeypatch.setattr(module, "metrics_for", looked_at)
    methods = f"{world / 'mix.py'},{world / 'breaks.py'}"
    words = ("tune", *TASK, "--forget", "0", "--trials", "4", "--method", methods, "--cap", "100", "--device", "cpu")
    said = cli(*words, "--jobs", 2, "--results", "there")
    assert said.code == 0, said.err
    assert re.findall(r"^\[\d/\d\] (.*): done", said.err, re.M) == [
        "original · forget 0 · seed 100",
        *(f"retrain · forget 0 · seed {seed}" for seed in (100, 101, 102)),
        "destroy · forget 0 · seed 100",
        *("mix · tune", "breaks · tune"),
    ]
    timed = {"created", "environment", "content_hash"}
    for method in ("mix", "breaks"):
        one, other = (tuning(folder, method).model_dump(exclude=timed) for folder in (made, tmp_path / "there"))
        for values in (one, other):
            values["cost"].pop("seconds")
            for run in (run for trial in values["trials"] for run in trial["runs"]):
                run.pop("seconds")
        assert one == other
    again = cli(*words, "--jobs", 2, "--results", "there")
    assert (again.code, again.err) == (0, "")


def test_a_worker_with_other_code_does_not_tune(made, world, tmp_path):
    given = Budget(DigitsClass, ("0",), trials=2, cap=100)
    job = launch.job_of(given, str(world / "mix.py"), {}, {}, Where("local"))
    result = work(job.model_copy(update={"key": "0" * 64}), Store(tmp_path / "s"), tmp_path / "r", tmp_path / "log")
    assert result.state == "failed"
    assert "mix would be tuned with other code, weights or judge here than asked for" in result.reason


# ---- run --preset tuned --------------------------------------------------------------------------------------------


def test_a_tuned_row_has_the_chosen_settings_and_a_division_of_its_own(cli, here, report):
    record, found = report("--seeds", "0"), tuning(here)
    assert record.method.settings == found.settings
    assert (record.method.division, record.label()) == ("tuned", "mix@tuned")
    assert record.method.selection == found.selection
    assert find_problems(here) == []
    said = cli("leaderboard", "here", "--format", "csv", "--methods", "mix")
    (row,) = csv.DictReader(io.StringIO(said.out))
    assert (row["method"], row["division"]) == ("mix", "tuned")


def test_a_setting_on_top_makes_it_custom(report):
    record = report("--set", "passes=1")
    assert (record.method.division, record.label()) == ("custom", "mix@tuned+passes=1")


def test_a_tuned_record_can_be_verified_and_attacked_without_the_tuning(cli, world, here, report):
    record = report("--attacks", "latent_probe")
    shutil.rmtree(here / "tuning")
    path = record.path(here)
    assert set(record.attacks) == {"latent_probe"}
    said = cli("verify", path, "--method", world / "mix.py", "--device", "cpu")
    assert said.code == 0, said.out + said.err


def test_what_was_selected_on_cannot_be_reported(cli, world, here):
    run = ("run", "--method", world / "mix.py", "--preset", "tuned", "--results", "here")
    for words, what in (
        (("--forget", "0"), "--forget 0"),
        (("--seeds", "101"), "--seeds 101"),
        (("--protocol", "selection"), "the protocol's sampling seed 1"),
    ):
        said = cli(*run, *words)
        assert said.code == 2
        assert f"{what}: the tuned settings of mix were chosen on it; report on another" in said.err


def test_validate_names_settings_that_were_not_chosen_and_a_selection_that_overlaps(here, report):
    record = report()
    path = record.path(here)
    other = {**record.method.settings, "share": 0.123}
    write_record(record.model_copy(update={"method": record.method.model_copy(update={"settings": other})}), path)
    (problem,) = find_problems(here)
    assert problem.text.startswith("is tuned with other settings than those chosen: share 0.123 there and ")
    selection = record.method.selection.model_copy(update={"forget": ("3",)})
    write_record(record.model_copy(update={"method": record.method.model_copy(update={"selection": selection})}), path)
    said = [problem.text for problem in find_problems(here)]
    assert said[0] == "is tuned on what it reports: concept 3 was selected on"
    assert said[1].startswith("says that it was selected on other runs than ")


def test_validate_checks_the_seals_of_tunings_and_what_they_chose(here):
    path = here / "tuning/digits-class/mix.json"
    found = tuning(here)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "cap": 101}))
    assert [problem.text.split(" (")[0] for problem in find_problems(here)] == ["was changed after it was written"]
    finals = [trial.number for trial in found.trials if found.final(trial) is not None]
    worse = min(finals, key=lambda number: found.final(found.trials[number]))
    assert found.final(found.trials[worse]) < found.final(found.trials[found.chosen])
    write_tuning(found.model_copy(update={"chosen": worse, "settings": found.trials[worse].settings}), here)
    (problem,) = find_problems(here)
    assert problem.text.startswith("chose a trial of ")
