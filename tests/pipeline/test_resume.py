"""A run killed at any point goes on with the same command, and ends in the record of a run that was never stopped."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.support.small_world import comparable, debris, read_only, small_protocol, write_nudge
from unlearnbench import cli
from unlearnbench.pipeline import checkpoints, runner, timing
from unlearnbench.pipeline.checkpoints import RunCheckpoints
from unlearnbench.records import schema
from unlearnbench.storage import store as store_module
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_class import DigitsClass

POINTS = {
    "during weights": ("during", "weights", 1),
    "after weights": ("after", "weights", 1),
    "during the second chunk": ("during", "samples", 2),
    "during judging": ("during", "judged", 1),
    "during the record": ("during", "seed-0.json", 1),
}
"""When, what, and for which time; the original is there already.

"During" something all before it is finished, as just before it, and half a file is left besides.
"""
STEPS = {"during training": ("after", "step", 4)}
TRAINED = ["finetune", "--set", "steps=6", "--set", "batch_size=4"]


def die_at(when: str, what: str, which: int) -> None:
    """From now on, this process kills itself at that point."""
    seen, now = [], [""]

    def die(at, name):
        if at == "before":
            seen.append(name)
        if (at, name) == (when, what) and seen.count(name) == which:
            os.kill(os.getpid(), signal.SIGKILL)

    real_write, real_save = Store._write, store_module.save_state
    real_replace, real_fsync = schema.replace_file, os.fsync
    real_reached = RunCheckpoints.reached

    def reached(*words):
        seen.append("step")
        real_reached(*words)
        die("after", "step")

    def write(self, folder, *words):
        now[:] = [folder.parent.name]
        die("before", now[0])
        written = real_write(self, folder, *words)
        die("after", now[0])
        return written

    def save(state, path):
        real_save(state, path)
        os.truncate(path, path.stat().st_size // 2) if when == "during" else None
        die("during", now[0])
        real_save(state, path)

    def replace(path, content):
        now[:] = [path.name]
        die("before", path.name)
        real_replace(path, content)

    def fsync(handle):
        die("during", now[0])
        real_fsync(handle)

    checkpoints.EVERY, RunCheckpoints.reached = 0.0, reached
    Store._write, store_module.save_state, schema.replace_file, os.fsync = write, save, replace, fsync


def run(folder: Path, words: Sequence[str]) -> None:
    """The command, in that folder."""
    os.chdir(folder)
    os.environ["UNLEARNBENCH_CACHE"] = str(folder / "store")
    sys.argv = ["unlearnbench", "run", "--results", "here", "--method", *words]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code


def run_and_die(folder: Path, words: Sequence[str], point: tuple[str, str, int]) -> None:
    """What a process of its own does."""
    die_at(*point)
    run(folder, words)


def run_original_then_die_at_every_point(home: Path) -> None:
    """Fork a process for every point from this one, which has imported what runs need and holds the original's images.

    It has trained nothing: autograd's threads do not survive a fork.
    """
    torch.set_num_threads(1)
    DigitsClass.protocols["default"] = small_protocol()
    timing.timed_beside_original = lambda cell, weights: 1.0
    run(home / "base", ["original"])
    gc.collect()
    gc.freeze()  # or each process copies all pages when it collects garbage
    processes, ends = multiprocessing.get_context("fork"), {}
    for words, points in (([str(home / "nudge.py")], POINTS), (TRAINED, STEPS)):
        for name, point in points.items():
            shutil.copytree(home / "base", home / name)
            process = processes.Process(target=run_and_die, args=(home / name, words, point))
            process.start()
            process.join()
            ends[name] = process.exitcode
    (home / "ends.json").write_text(json.dumps(ends))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders in which a run was killed, one a point, and how each ended; the original is there already.

    Each is a process that kills itself, so that no clock decides.
    """
    home = tmp_path_factory.mktemp("killed")
    write_nudge(home)
    (home / "base").mkdir()
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    process = processes.Process(target=run_original_then_die_at_every_point, args=(home,))
    process.start()
    process.join()
    return home, json.loads((home / "ends.json").read_text())


@pytest.fixture
def one_thread():
    """Equal to the last bit is promised at an equal number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(killed, tmp_path_factory):
    return {"folder": tmp_path_factory.mktemp("whole")}


def whole(cli, monkeypatch, uninterrupted, method):
    """The record of a run that nothing stopped."""
    if "record" not in uninterrupted:
        folder = uninterrupted["folder"]
        monkeypatch.setenv("UNLEARNBENCH_CACHE", str(folder / "store"))
        assert cli("run", "--method", method, "--results", folder / "here").code == 0
        uninterrupted["record"] = read_only(folder / "here")
    return uninterrupted["record"]


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_goes_on(cli, small, one_thread, monkeypatch, killed, uninterrupted, point):
    folder, ends = killed
    assert ends[point] == -signal.SIGKILL
    here, store = folder / point / "here", folder / point / "store"
    kept = {path: path.read_bytes() for path in store.rglob("data.safetensors") if ".new-" not in str(path)}
    assert not [path for path in here.rglob("seed-0.json") if "nudge" in path.parts]
    expected = whole(cli, monkeypatch, uninterrupted, folder / "nudge.py")

    unlearned = []
    real = runner.unlearn
    monkeypatch.setattr("unlearnbench.pipeline.runner.unlearn", lambda *words: unlearned.append(words) or real(*words))
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(store))
    said = cli("run", "--method", folder / "nudge.py", "--results", here)
    assert said.code == 0, said.err
    assert comparable(read_only(here)) == comparable(expected)
    assert len(unlearned) == (1 if point == "during weights" else 0), "what was finished is not made again"
    assert {path: path.read_bytes() for path in kept} == kept
    assert read_only(here).revision == 1


def test_training_that_was_killed_goes_on_at_its_step(cli, small, one_thread, monkeypatch, killed, fresh_store):
    folder, ends = killed
    assert ends["during training"] == -signal.SIGKILL
    here, store = folder / "during training" / "here", folder / "during training" / "store"
    words = ["run", "--method", *TRAINED, "--results"]
    assert cli(*words, "whole").code == 0
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(store))
    said = cli(*words, here)
    assert said.code == 0, said.err
    assert "finetune goes on after step 4, where it was stopped" in said.out + said.err
    assert comparable(read_only(here)) == comparable(read_only(Path("whole")))
    assert list((store / "checkpoints").iterdir()) == []


def test_what_a_kill_leaves_behind_is_no_record_and_no_entry(cli, small, killed, tmp_path):
    folder, _ = killed
    shutil.copytree(folder / "during the record" / "here", tmp_path / "here")
    assert debris(tmp_path / "here"), "the point is well chosen: a temporary file is left"
    assert cli("leaderboard", "here", "--format", "csv").out.count("\n") >= 2


@pytest.mark.parametrize("point", ["unlearning", "sampling", "judging"])
def test_ctrl_c_says_how_to_go_on(cli, small, one_thread, monkeypatch, tmp_path, killed, point):
    path = write_nudge(tmp_path)
    for name in ("here", "store"):
        shutil.copytree(killed[0] / "base" / name, tmp_path / name)
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "store"))
    place = {"unlearning": "runner.unlearn", "sampling": "judging.sample_images", "judging": "measuring.judged"}[point]

    def stop(*words):
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
    with monkeypatch.context() as patch:
        patch.setattr(f"unlearnbench.pipeline.{place}", stop)
        said = cli("run", "--method", path, "--results", "here")
    signal.signal(signal.SIGINT, before)
    assert said.code == 130
    assert said.errors == ["stopped: finished work is kept; run the same command again to continue"]
    assert "Traceback" not in said.out + said.err
    assert debris(tmp_path) == []
    assert cli("run", "--method", path, "--results", "here").code == 0
    assert read_only(tmp_path / "here").status == "ok"
