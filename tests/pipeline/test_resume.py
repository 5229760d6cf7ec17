"""A run killed at any point goes on with the same command, and ends in the record of a run that was never stopped."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.support.small_world import CHUNKS, ROOT, comparable, debris, python, read_only, write_nudge
from unlearnbench.pipeline import runner

POINTS = {
    "during weights": ("during", "weights", 1),
    "after weights": ("after", "weights", 1),
    "before the second chunk": ("before", "samples", 2),
    "during the second chunk": ("during", "samples", 2),
    "after all chunks": ("after", "samples", CHUNKS),
    "during judging": ("during", "judged", 1),
    "before the record": ("before", "seed-0.json", 1),
    "during the record": ("during", "seed-0.json", 1),
}
"""When, what, and for which time; the original is there already."""
STEPS = {"during training": ("after", "step", 4)}
TRAINED = ["finetune", "--set", "steps=6", "--set", "batch_size=4"]

# One process runs the original, which imports what runs need, and forks a child for every point; the child kills itself
# there, so that no clock decides.
DRIVER = """
import gc, json, os, pathlib, shutil, signal, sys

sys.path.insert(0, sys.argv[1])
from tests.support.small_world import small_protocol
import torch, PIL.Image
from unlearnbench import cli; from unlearnbench.records import schema as record; from unlearnbench.storage import store
from unlearnbench.tasks.digits_class import DigitsClass

torch.set_num_threads(1)
from unlearnbench import registry
from unlearnbench.launch import runs
from unlearnbench.pipeline import checkpoints, timing

DigitsClass.protocols["default"] = small_protocol()
timing.relative_time = lambda cell, model, original: 1.0
PIL.Image.preinit()
home, asked = pathlib.Path.cwd(), json.loads(sys.argv[2])


def die_at(when, what, which):
    seen = []

    def die(at, name):
        if at == "before":
            seen.append(name)
        if (at, name) == (when, what) and seen.count(name) == which:
            os.kill(os.getpid(), signal.SIGKILL)

    real_write, real_save = store.Store._write, store.save_state
    real_replace, real_fsync = record.replace_file, os.fsync
    real_reached = checkpoints.RunCheckpoints.reached
    now = [""]

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

    checkpoints.EVERY, checkpoints.RunCheckpoints.reached = 0.0, reached
    store.Store._write, store.save_state, record.replace_file, os.fsync = write, save, replace, fsync


def run(name, words):
    os.chdir(home / name)
    os.environ["UNLEARNBENCH_CACHE"] = str(home / name / "store")
    sys.argv = ["unlearnbench", "run", "--results", "here", "--method", *words]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code


def child(name, words, *point):
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    die_at(*point)
    run(name, words)
    os._exit(0)


(home / "base").mkdir()
run("base", ["original"])
gc.collect(), gc.freeze()
for words, points in asked:
    for name, point in points.items():
        shutil.copytree(home / "base", home / name)
        print(json.dumps([name, child(name, words, *point)]), flush=True)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders in which a run was killed, one a point, and how each ended."""
    folder = tmp_path_factory.mktemp("killed")
    write_nudge(folder)
    (folder / "driver.py").write_text(DRIVER)
    runs = [([str(folder / "nudge.py")], POINTS), (TRAINED, STEPS)]
    done = python("driver.py", str(ROOT), json.dumps(runs), cwd=folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return folder, dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


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
def test_ctrl_c_says_how_to_go_on(cli, small, one_thread, monkeypatch, tmp_path, fresh_store, point):
    path = write_nudge(tmp_path)
    assert cli("run", "--method", "original", "--results", "here").code == 0
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
