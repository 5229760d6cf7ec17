"""The Slurm of one node that other tests use: it starts, runs arrays, runs requeued jobs again, leaves nothing."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import slurm_cluster

pytestmark = pytest.mark.cluster
WITHIN = 60.0  # seconds; a fraction of it on an idle machine


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of commands beside one cluster."""
    if why := slurm_cluster.reason():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster.slurm(Path(folder)) as variables:
        yield os.environ | variables


def call(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WITHIN, check=True)
    return done.stdout.strip()


def submit(environment: dict[str, str], script: str, *options: str) -> str:
    return call(environment, "sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}")


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + WITHIN
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def states(environment: dict[str, str], job: str) -> list[str]:
    return call(environment, "squeue", "--states=all", "--array", "--noheader", "--format=%T", f"--jobs={job}").split()


def test_array_completes(cluster: dict[str, str], tmp_path: Path) -> None:
    assert call(cluster, "sinfo", "--noheader", "--format=%P %T").split("\n") == ["debug* idle", "other idle"]
    job = submit(cluster, f"hostname > {tmp_path}/$SLURM_ARRAY_TASK_ID", "--wait", "--array=0-2", "--partition=other")
    assert states(cluster, job) == ["COMPLETED"] * 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1", "2"]


def test_requeued_job_runs_again(cluster: dict[str, str], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    job = submit(cluster, f"echo ${{SLURM_RESTART_COUNT:-0}} >> {runs}; [ $SLURM_RESTART_COUNT ] || exec sleep 600")
    until(lambda: runs.exists() and runs.read_text() != "")
    call(cluster, "scontrol", "requeue", job)
    until(lambda: states(cluster, job) == ["COMPLETED"])
    assert runs.read_text().split() == ["0", "1"]


def test_jobs_end_with_the_cluster(cluster: dict[str, str], tmp_path: Path) -> None:
    """One that ignores SIGTERM and has forgotten Slurm's variables, too."""
    number = tmp_path / "number"
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster.slurm(Path(folder)) as variables:
        script = f"trap '' TERM; exec env -i sh -c 'echo $$ > {number}; while :; do sleep 600; done'"
        submit(os.environ | variables, script)
        until(lambda: number.exists() and number.read_text().endswith("\n"))
    stat = Path("/proc", number.read_text().strip(), "stat")
    until(lambda: not stat.exists() or ") Z " in stat.read_text())
