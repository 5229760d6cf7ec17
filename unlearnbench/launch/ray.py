"""Run jobs on a Ray cluster, or on this machine with Ray. No shared file system is needed: outputs of jobs travel with
them.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from unlearnbench.errors import UserError, one_line
from unlearnbench.launch.driver import TRIES, Backend
from unlearnbench.launch.jobs import Work
from unlearnbench.launch.journal import Journal
from unlearnbench.launch.transfer import KINDS, Parcel, files_of, packed, put, siblings, unpack
from unlearnbench.launch.worker import Result, read_job, work
from unlearnbench.storage.store import Store

ADDRESS = "RAY_ADDRESS"
PATIENCE = 5.0
"""Seconds to wait for a cluster's address to answer."""
NAMESPACE = "unlearnbench"


def connect_ray() -> Any:
    """Connect to the Ray cluster at `RAY_ADDRESS`, or start Ray on this machine if none is given."""
    import ray

    address = os.environ.get(ADDRESS, "")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the device tells a job that it has no GPU
    if address and address not in ("local", "auto"):
        _answers(address)
    about: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address in ("", "local"):
            ray.init(address="local", include_dashboard=False, **about)
        else:
            ray.init(address=address, **about)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at {ADDRESS}={address or 'local'} ({one_line(error)[:200]}): start one with "
            "`ray start --head`, or unset RAY_ADDRESS"
        ) from error
    return ray


def _answers(address: str) -> None:
    """Check at once that something listens at the address; Ray itself would retry for long."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    try:
        if not parts.hostname or not parts.port:
            raise ValueError("no host:port")
        with socket.create_connection((parts.hostname, parts.port), PATIENCE):
            pass
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at {ADDRESS}={address} ({one_line(error)}): start one with `ray start --head`, or unset it"
        ) from error


class Ray(Backend):
    """One Ray task per job; at most `most` at a time, or as many as fit if it is None."""

    def __init__(self, journal: Journal, store: Store, results: Path, threads: int, gpus: int, most: int | None = None):
        self._ray, self._journal, self._results, self._most = connect_ray(), journal, results, most
        try:
            self._require(threads, gpus)
            # Ray retries tasks whose worker or node died. Processes are reused unless they have a GPU: Ray may give the
            # next task another card, but CUDA stays with the first one in a process.
            options = {"num_cpus": threads, "num_gpus": gpus, "max_retries": TRIES - 1, "num_returns": 3}
            options["max_calls"] = 1 if gpus else 0
            self._task = self._ray.remote(**options)(_perform)
            self._heard = self._ray.remote(num_cpus=0, max_restarts=-1)(Heard).remote()
        except BaseException:
            self._ray.shutdown()
            raise
        self._running: dict[Any, Work] = {}
        self._made: dict[str, Any] = {}
        self._files: dict[str, Any] = {}

    def _require(self, threads: int, gpus: int) -> None:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        for what, wanted, option in (("GPU", gpus, "--gpus"), ("CPU", threads, "--threads")):
            most = max((node.get(what, 0) for node in nodes), default=0)
            if wanted > most:
                raise UserError(
                    f"{option} {wanted}: no node of the Ray cluster has as many, the most is {most:g} {what}: ask for "
                    "fewer, or join a node that has them"
                )

    def room(self) -> int:
        """Room for all jobs: Ray holds back those that do not fit."""
        return (1 << 30) if self._most is None else self._most - len(self._running)

    def begin(self, jobs: Sequence[Work]) -> None:
        """Start a task per job, with the outputs of the jobs that it needs."""
        for job in jobs:
            before = [self._made[id] for id in (*job.needs, *job.after) if id in self._made]
            files = files_of(self._results / job.product, self._results)
            result, made, changed = self._task.remote(job.model_dump_json(), files, self._heard, *before)
            self._running[result], self._made[job.id], self._files[job.id] = job, made, changed

    def ended(self, seconds: float) -> list[Result]:
        """Results that arrived; their records are written to the results folder."""
        for id, values in self._lines():
            self._journal.report(id, values)
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [self._result(one, self._running.pop(one)) for one in ready]

    def _lines(self) -> list[tuple[str, dict[str, Any]]]:
        try:
            return list(self._ray.get(self._heard.take.remote(), timeout=PATIENCE).items())
        except self._ray.exceptions.RayError:  # it is started again if its node was lost
            return []

    def _result(self, ready: Any, job: Work) -> Result:
        files = self._files.pop(job.id)
        try:
            result = Result.model_validate_json(self._ray.get(ready))
            parcel = self._ray.get(files)
        except self._ray.exceptions.RayError as error:
            where = (self._journal.live(job.id) or {}).get("where", "")
            reason = f"lost {TRIES} times by Ray: {' '.join(str(error).split())[:300]}"
            return Result(id=job.id, state="failed", reason=reason, where=where)
        try:
            if parcel and result.state == "done":
                put(parcel, self._results)
                for gone in {*siblings(self._results / job.product)} - {self._results / name for name in parcel}:
                    gone.unlink(missing_ok=True)  # the worker removed it: images that must not be shown
        except (UserError, OSError) as error:
            return result.model_copy(update={"state": "failed", "reason": one_line(error)})
        return result

    def release(self, id: str) -> None:
        """Drop a job's output from Ray, since the images of a whole board would fill its nodes."""
        self._made.pop(id, None)

    def close(self) -> str | None:
        """Disconnect from the cluster; our tasks there end."""
        self._ray.shutdown()
        return None


class Heard:
    """An actor that keeps the last report of each job."""

    def __init__(self) -> None:
        self.lines: dict[str, dict[str, Any]] = {}

    def put(self, id: str, values: dict[str, Any]) -> None:
        """Keep one job's report."""
        self.lines[id] = values

    def take(self) -> dict[str, dict[str, Any]]:
        """Return the reports since the last call."""
        found, self.lines = self.lines, {}
        return found


def _perform(text: str, files: Parcel, heard: Any, *before: Parcel) -> tuple[str, Parcel, Parcel]:
    """Do a job on a node; return its result, outputs that later jobs need, and the record's files if they changed."""
    job = read_job(text)
    store = Store()
    for parcel in before:
        unpack(parcel, store.root)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        put(files, results)
        log = Path(folder) / "log"
        result = work(job, store, results, log, lambda values: heard.put.remote(job.id, values))
        changed = files_of(results / job.product, results) if result.state == "done" else {}
    made = packed(store, KINDS.get(job.step, ())) if job.needed else {}
    return result.model_dump_json(), made, {} if changed == files else changed
