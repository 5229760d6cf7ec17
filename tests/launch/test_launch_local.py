"""Jobs in worker processes of this machine: workers that die, methods at fault, a driver that is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.support import launches
from tests.support.launches import records, until
from tests.support.small_world import comparable, debris
from unlearnbench.cli import app
from unlearnbench.errors import UserError
from unlearnbench.launch import local, plan
from unlearnbench.launch.journal import Journal, latest
from unlearnbench.launch.local import Local
from unlearnbench.launch.options import Where
from unlearnbench.records.folder import load_all
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_text import DigitsText


@pytest.fixture(scope="module")
def plain(tmp_path_factory, small_text):
    """Records of one process."""
    folder = tmp_path_factory.mktemp("plain")
    words = ["run", *launches.SMOKE, "--threads", "1", "--method", "uce,negative_prompt", "--results", "here"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARNBENCH_CACHE", str(folder / "store"))
        patch.chdir(folder)
        patch.setitem(DigitsText.protocols, "smoke", small_text)  # as the workers have it
        said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    return records(folder)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Two workers at methods of which some kill them, one asks for too much memory and one is wrong."""
    folder = tmp_path_factory.mktemp("launched")
    makers = (launches.dies_once, launches.dies_always, launches.greedy, launches.raises)
    methods = ["uce", "negative_prompt", *(str(make(folder)) for make in makers)]
    return folder, launches.run(folder, "--method", ",".join(methods), "--jobs", 2)


@pytest.mark.cluster
def test_finished_records_are_those_of_one_process(launched, plain):
    found = records(launched[0])
    assert set(found) == {*plain, "dies_once"}
    for label, record in plain.items():
        assert comparable(found[label]) == comparable(record)
    assert {record.revision for record in found.values()} == {1}, "nothing is recorded twice"


@pytest.mark.cluster
def test_what_failed_is_named_with_its_reason_and_the_rest_goes_on(launched):
    _, done = launched
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    failed = {line.split(" · ")[0].removeprefix("failed: "): line for line in lines if line.startswith("failed: ")}
    assert set(failed) == {"dies_always", "greedy", "raises"}
    assert "the worker was killed by SIGKILL (as by the system where memory runs out), 3 times" in failed["dies_always"]
    assert "greedy ran out of memory (" in failed["greedy"]
    assert "raises failed with ValueError: no such luck (raises.py, line" in failed["raises"]
    assert "  | about to fail" in lines[lines.index(failed["raises"]) :], "the last lines of its log"
    assert "4 of 7 jobs done; run the same command again to try the others" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.cluster
def test_tables_of_what_is_there_are_shown(launched):
    _, done = launched
    for label in ("uce", "negative_prompt", "dies_once"):
        assert f"here/digits-text/smoke/seven/{label}/seed-0.json" in done.stdout


@pytest.mark.cluster
def test_status_knows_them_too(launched, cli, monkeypatch):
    folder, _ = launched
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(folder / "store"))
    monkeypatch.chdir(folder)
    said = cli("status", "--results", "here")
    assert said.code == 1
    assert "4 done, 0 running, 3 failed, 0 missing: 7 jobs by local" in said.out
    assert "no such luck" in said.out


@pytest.mark.cluster
def test_the_same_command_again_tries_the_others_alone(launched):
    folder, _ = launched
    methods = ["uce", "dies_once.py", "raises.py"]
    done = launches.run(folder, "--method", ",".join(methods), "--jobs", 2)
    assert done.returncode == 1
    assert [line.split(" · ")[0] for line in done.stderr.splitlines() if line.startswith("[")] == ["[1/1] raises"]


@pytest.mark.cluster
def test_a_driver_that_was_killed_loses_nothing_and_leaves_no_worker(tmp_path):
    slow = launches.slow(tmp_path, 600)
    driver = launches.start(tmp_path, "--method", f"negative_prompt,{slow.name}", "--jobs", 2)
    until(lambda: (tmp_path / "begun").exists() and "negative_prompt" in records(tmp_path))
    before = records(tmp_path)["negative_prompt"]
    journal = latest(Store(tmp_path / "store"), tmp_path / "here")
    (place,) = [about["where"] for _, state, about in journal.states() if state == "running"]
    worker = int(place.rpartition(":")[2])
    os.kill(worker, 0)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    until(lambda: _gone(worker))
    launches.slow(tmp_path, 0)  # another method now, of the same name
    done = launches.run(tmp_path, "--method", f"negative_prompt,{slow.name}", "--jobs", 2)
    assert done.returncode == 0, done.stderr
    found = records(tmp_path)
    assert set(found) == {"original", "negative_prompt", "slow"}
    assert found["negative_prompt"] == before, "it is not made again"
    assert [path for path in debris(tmp_path / "here") if ".driver.lock" not in path] == []


@pytest.mark.cluster
def test_a_worker_that_dies_between_jobs_is_replaced(tmp_path):
    first, second = launches.jobs("uce")
    store, journal = Store(tmp_path / "store"), Journal(tmp_path / "journal")
    backend = Local([""], 1, journal, store, tmp_path / "here")
    try:
        for job in (first, second):
            backend.begin([job])
            assert [each.state for each in _next(backend)] == ["done"]
            worker = backend._workers[0].process
            worker.kill()
            worker.join()
    finally:
        backend.close()
    assert set(records(tmp_path)) == {"original", "uce"}


def test_idle_workers_start_with_the_first_job_and_none_is_too_many(tmp_path):
    first, second = launches.jobs("uce")
    store, journal = Store(tmp_path / "store"), Journal(tmp_path / "journal")
    backend = plan.backend(Where("local", jobs=5), journal, store, tmp_path / "here", 2)
    try:
        backend.begin([first])
        workers = list(backend._workers)
        assert [worker.process.is_alive() for worker in workers] == [True, True]
        assert backend.room() == 1
        assert [each.state for each in _next(backend)] == ["done"]
        backend.begin([second])
        assert backend._workers == workers, "neither is started anew"
        assert [each.state for each in _next(backend)] == ["done"]
    finally:
        backend.close()
    assert not any(worker.process.is_alive() for worker in workers)
    assert set(records(tmp_path)) == {"original", "uce"}


def _next(backend):
    while not (ended := backend.ended(1.0)):
        pass
    return ended


def test_a_worker_imports_before_it_looks_for_a_job(tmp_path, monkeypatch):
    order = []

    class Closed:
        def recv(self):
            order.append("looked")
            raise EOFError

    monkeypatch.setattr(local, "warm", lambda: order.append("imported"))
    monkeypatch.setattr(local.signal, "signal", lambda *about: None)  # this process stays as it is
    local._serve(Closed(), (str(tmp_path), str(tmp_path), str(tmp_path), 1), dict(os.environ))
    assert order == ["imported", "looked"]


def test_more_workers_than_the_system_allows_are_refused_in_one_line(tmp_path, monkeypatch):
    def refused(self):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    for kind in ("SpawnProcess", "ForkServerProcess"):
        monkeypatch.setattr(f"multiprocessing.context.{kind}.start", refused)
    backend = Local([""], 1, Journal(tmp_path / "journal"), Store(tmp_path / "store"), tmp_path / "here")
    with pytest.raises(UserError, match=r"no worker can be started \(.*Resource temporarily.*\): give fewer --jobs"):
        backend.begin([])
    backend.close()


def _gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.cluster
def test_ctrl_c_ends_workers_and_says_how_to_go_on(tmp_path):
    slow = launches.slow(tmp_path, 600)
    driver = launches.start(tmp_path, "--method", str(slow), "--jobs", 2)
    until((tmp_path / "begun").exists)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=launches.PATIENCE)
    assert driver.returncode == 130
    assert err.rstrip().endswith("stopped: finished work is kept; run the same command again to continue")
    assert "Traceback" not in err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_job_on_cuda_has_a_card_of_its_own(tmp_path):
    done = launches.run(tmp_path, "--method", "uce", "--jobs", 1, "--device", "cuda")
    assert done.returncode == 0, done.stderr
    assert " GPU 0" in done.stderr
    assert {record.environment["device_type"] for record in load_all(tmp_path / "here")} == {"cuda"}
    cards = torch.cuda.device_count()
    more = launches.run(tmp_path, "--method", "uce", "--jobs", cards + 1, "--device", "cuda")
    assert more.returncode == 2
    assert f"{cards} are here: give --jobs {cards}" in more.stderr
