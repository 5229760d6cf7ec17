"""Jobs of a real Slurm on this machine: arrays, a job requeued in the middle, one cancelled, a driver that is killed.

Where Slurm cannot be started, submitit's local executor stands in for the jobs themselves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support import launches, slurm_cluster
from tests.support.launches import records, until
from tests.support.small_world import comparable
from unlearnbench.launch.journal import Journal, latest
from unlearnbench.launch.slurm import SlurmJob
from unlearnbench.storage.store import Store

pytest.importorskip("submitit", reason="the extra [slurm] is not installed")
SLURM = ("--launcher", "slurm", "--time", "30")


@pytest.fixture(scope="module")
def cluster():
    """What commands beside a cluster need in their environment."""
    if why := slurm_cluster.reason():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster.slurm(Path(folder)) as variables:
        yield variables


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Records of one process."""
    folder = tmp_path_factory.mktemp("plain")
    done = launches.run(folder, "--method", "uce,negative_prompt")
    assert done.returncode == 0, done.stderr
    return records(folder)


def number_of(folder, method):
    """Slurm's number of the job of a method."""
    journal = latest(Store(folder / "store"), folder / "here")
    (found,) = [about["slurm"] for line, _, about in journal.states() if line.name.startswith(method) and about]
    return found


def call(cluster, *command):
    subprocess.run(command, env={**os.environ, **cluster}, check=True, capture_output=True)


@pytest.mark.cluster
def test_an_array_over_methods_with_a_job_requeued_in_the_middle(tmp_path, cluster, plain):
    slow = launches.slow(tmp_path, 8)
    driver = launches.start(tmp_path, "--method", f"uce,negative_prompt,{slow}", *SLURM, **cluster)
    until((tmp_path / "begun").exists, driver)
    (tmp_path / "begun").unlink()
    number = number_of(tmp_path, "slow")
    call(cluster, "scontrol", "requeue", number)
    _, err = driver.communicate(timeout=launches.PATIENCE)
    assert driver.returncode == 0, err
    assert (tmp_path / "begun").exists(), "it was begun twice"
    assert "_" in number, "an element of an array"
    found = records(tmp_path)
    assert set(found) == {"original", "uce", "negative_prompt", "slow"}
    assert {record.revision for record in found.values()} == {1}
    for label, record in plain.items():
        assert comparable(found[label]) == comparable(record)
    logs = latest(Store(tmp_path / "store"), tmp_path / "here").folder / "slurm"
    assert list(logs.glob("*/*.err")), "where Slurm's users look first"


@pytest.mark.cluster
def test_a_cancelled_job_is_named_and_the_rest_goes_on(tmp_path, cluster):
    slow = launches.slow(tmp_path, 600)
    driver = launches.start(tmp_path, "--method", f"uce,{slow}", *SLURM, **cluster)
    until((tmp_path / "begun").exists, driver)
    number = number_of(tmp_path, "slow")
    call(cluster, "scancel", number)
    _, err = driver.communicate(timeout=launches.PATIENCE)
    assert driver.returncode == 1, err
    assert f"failed: slow · forget seven · seed 0: Slurm job {number} was cancelled" in err
    assert set(records(tmp_path)) == {"original", "uce"}


@pytest.mark.cluster
def test_jobs_outlive_a_killed_driver_and_the_next_one_takes_them_up(tmp_path, cluster):
    slow = launches.slow(tmp_path, 15)
    words = ("--method", str(slow), *SLURM)
    driver = launches.start(tmp_path, *words, **cluster)
    until((tmp_path / "begun").exists, driver)
    number = number_of(tmp_path, "slow")
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    (tmp_path / "begun").unlink()
    done = launches.run(tmp_path, *words, **cluster)
    assert done.returncode == 0, done.stderr
    assert "slow" in records(tmp_path)
    assert not (tmp_path / "begun").exists(), f"job {number} was taken up, not begun again"


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--partition", "nowhere"), "invalid partition specified: nowhere"),
        (("--gpus", "1", "--device", "auto"), "Slurm refused the jobs: "),
    ],
)
def test_what_slurm_refuses_is_one_line(tmp_path, cluster, words, said):
    done = launches.run(tmp_path, "--method", "uce", *SLURM, *words, **cluster)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    if "partition" in said:
        assert done.stderr.rstrip().endswith("known partitions: debug, other")


def test_no_sbatch_here(cli, fresh_store, monkeypatch):
    monkeypatch.setenv("PATH", "")
    said = cli("run", *launches.SMOKE, "--method", "uce", "--launcher", "slurm")
    assert said.code == 2
    assert "--launcher slurm: no sbatch here: give the command on a machine that submits jobs" in said.err


@pytest.mark.cluster
def test_a_job_that_submitit_runs_leaves_its_result_in_the_journal(tmp_path):
    import submitit

    found = launches.jobs("uce")
    journal = Journal.begun(Store(tmp_path / "store"), tmp_path / "here", "slurm", found, found)
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=10)
    about = str(tmp_path / "store"), str(tmp_path / "here"), str(journal.folder)
    for job in found:
        executor.submit(SlurmJob(job.model_dump_json(), *about)).result()
        assert journal.ended(job.id).state == "done"
    assert set(records(tmp_path)) == {"original", "uce"}
