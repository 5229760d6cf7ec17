"""What is known of a launch, one driver to a folder, and what cannot be launched."""

from __future__ import annotations

import re
import time

import pytest
import torch

from tests.support import launches
from tests.support.launches import jobs
from unlearnbench.errors import UserError
from unlearnbench.launch import options, slurm
from unlearnbench.launch.journal import Journal, latest, sole_driver
from unlearnbench.launch.local import cards, cores
from unlearnbench.launch.options import Where, parse_time
from unlearnbench.launch.worker import Result
from unlearnbench.pipeline.request import LaunchRequest
from unlearnbench.reporting import told_by
from unlearnbench.storage.store import Store

# ---- the journal and `status` ---------------------------------------------------------------------------------------


@pytest.fixture
def launch(tmp_path, fresh_store):
    """A journal of four jobs."""
    found = jobs("uce", "rece", "mace")
    return found, Journal.begun(Store(), tmp_path / "here", "local", found, found)


def test_status_tells_done_running_failed_and_missing(cli, tmp_path, launch):
    found, journal = launch
    record = found[0].spec.path(tmp_path / "here")
    record.parent.mkdir(parents=True)
    record.touch()
    journal.end(Result(id=found[0].id, state="done"))
    journal.end(Result(id=found[1].id, state="failed", reason="no luck", where="node:1"))
    journal.report(found[2].id, {"what": "steps", "done": 3, "total": 60, "where": "node:2", "at": time.time()})
    assert [state for _, state, _ in journal.states()] == ["done", "failed", "running", "missing"]
    journal.report(found[3].id, {"slurm": "7_3", "at": 0})
    assert journal.numbers() == ["7_3"]
    assert journal.states()[3][1] == "missing"
    assert journal.states({"7_3"})[3][1] == "running", "the scheduler has it"
    said = cli("status", "--results", "here")
    assert said.code == 1
    assert "1 done, 1 running, 1 failed, 1 missing: 4 jobs by local" in said.out
    assert "no luck" in said.out
    assert "steps 3/60" in said.out
    journal.report(found[2].id, {"at": time.time() - 1000})
    assert journal.states()[2][1] == "missing", "it has said nothing for long"
    record.unlink()
    assert journal.states()[0][1] == "missing"


def test_status_needs_a_launch(cli, fresh_store):
    said = cli("status", "--results", "here")
    assert said.code == 2
    assert said.err.startswith("unlearnbench: nothing was launched to here")


def test_the_latest_launch_on_a_folder_is_shown(tmp_path, launch):
    found, first = launch
    assert latest(Store(), tmp_path / "here").folder == first.folder
    second = Journal.begun(Store(), tmp_path / "here", "ray", found[:2], found[:2])
    assert latest(Store(), tmp_path / "here").folder == second.folder
    assert latest(Store(), tmp_path / "elsewhere") is None


def test_the_same_jobs_again_have_the_same_journal_and_what_failed_is_forgotten(tmp_path, launch):
    found, journal = launch
    journal.end(Result(id=found[1].id, state="failed", reason="no luck"))
    again = Journal.begun(Store(), tmp_path / "here", "local", found, found[1:])
    assert again.folder == journal.folder
    assert again.ended(found[1].id) is None
    assert again.ended(found[0].id).where == "before"


def test_a_second_driver_is_refused(cli, tmp_path, fresh_store):
    (tmp_path / "here").mkdir()
    with sole_driver(tmp_path / "here"):
        said = cli("run", *launches.SMOKE, "--method", "uce", "--jobs", 1, "--results", "here")
    assert said.code == 2
    assert "another driver (" in said.err
    assert "is at work on here: wait for it, stop it, or name another folder with --results" in said.err
    with sole_driver(tmp_path / "here"):
        pass  # the first one let go


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--launcher", "rey"), "unknown launcher 'rey': did you mean ray?"),
        (("--jobs", 0), "--jobs 0 is below 1"),
        (("--threads", 0), "--threads 0 is below 1"),
        (("--shards", 0), "--shards 0 is below 1"),
        (("--shards", 2), "--shards 2 takes jobs: add --jobs 2"),
        (("--gpus", 1), "--gpus is for --launcher ray or slurm"),
        (("--jobs", 2, "--gpus", 2), "a job here takes one GPU at most"),
        (("--jobs", 2, "--partition", "long"), "--partition is for Slurm: add --launcher slurm"),
        (("--jobs", 2, "--time", "10"), "--time is for Slurm"),
        (("--jobs", 2, "--slurm", "mem=1G"), "--slurm is for Slurm"),
        (("--jobs", 2, "--slurm", "mem"), "--slurm mem: write key=value"),
        (("--jobs", 2, "--shards", 2, "--force"), "--force keeps a cell whole"),
        (("--jobs", 2, "--shards", 2, "--eval-every", 5), "--eval-every keeps a cell whole"),
        (("--jobs", 2, "--tracker", "tensorboard"), "--tracker shows what this process does"),
        (("--jobs", 1, "--gpus", 1, "--device", "cpu"), "--gpus 1 with --device cpu: leave one of them out"),
    ],
)  # fmt: skip
def test_what_cannot_be_launched_is_refused_in_one_line(cli, fresh_store, words, said):
    pytest.importorskip("tensorboard", reason="the extra [tracking] is not installed") if "--tracker" in words else None
    got = cli("run", *launches.SMOKE, "--method", "uce", *words)
    assert got.code == 2
    assert said in got.err
    assert len(got.err.strip().splitlines()) == 1


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_that_is_not_installed_names_its_extra(cli, fresh_store, monkeypatch, launcher, package):
    real = options.find_spec
    monkeypatch.setattr(options, "find_spec", lambda name: None if name == package else real(name))
    got = cli("run", *launches.SMOKE, "--method", "uce", "--launcher", launcher)
    assert got.code == 2
    assert f"--launcher {launcher} needs {package}: pip install 'unlearnbench[{launcher}]'" in got.err


def test_fewer_gpus_than_asked(cli, fresh_store, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cards(1) == ["0"]
    with pytest.raises(UserError, match="--jobs 2 on cuda takes a GPU each, and 1 are here: give --jobs 1"):
        cards(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert cards(2) == ["4", "6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="torch sees no CUDA device here"):
        cards(1)


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("1:30", 90), ("2-12:00", 3600), ("1-0", 1440)]
)  # fmt: skip
def test_time_limits_are_read_as_minutes(text, minutes):
    assert parse_time(text) == minutes


def test_help_and_guide_give_the_time_limit_that_holds_without_one(cli):
    said = " ".join(cli("run", "--help").out.split())
    assert re.search(rf"Time limit of a Slurm job[^\[]* \(hours:minutes\)[^\[]*\[default: {slurm.MINUTES}\]", said)
    assert f"without it, {slurm.MINUTES} minutes" in " ".join(cli("guide", "clusters").out.split())


@pytest.mark.parametrize("text", ["", "soon", "1:2:3", "-5", "0", "1-", "²"])
def test_what_is_no_time_limit_is_refused(text):
    with pytest.raises(UserError, match="--time"):
        parse_time(text)


def test_threads_are_shared_out():
    def checked(jobs, threads=None):
        return Where.of(LaunchRequest(launcher="local", jobs=jobs, threads=threads, device="cpu")).threads

    assert checked(1) == cores()
    assert checked(cores()) == 1
    assert checked(10 * cores()) == 1
    assert checked(1, 3) == 3
    assert Where.of(LaunchRequest(threads=2, device="cpu")) is None


@pytest.mark.parametrize(("device", "here", "gpus", "lines"), [
    ("auto", False, 0, 1), ("auto", True, 1, 0), ("cuda", False, 1, 0), ("cpu", False, 0, 0),
])  # fmt: skip
def test_a_head_node_without_a_gpu_says_that_auto_takes_the_cpu(monkeypatch, device, here, gpus, lines):
    monkeypatch.setattr(options, "_require_available", lambda launcher: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    said = []
    with told_by(said.append):
        assert Where.of(LaunchRequest(launcher="ray", device=device)).gpus == gpus
    assert len(said) == lines and all("--device cuda gives each a GPU" in line for line in said)
