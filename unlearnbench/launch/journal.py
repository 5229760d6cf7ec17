"""The files of a launch on disk: its jobs, their progress and how they ended; and the lock that allows one driver per
results folder.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from unlearnbench.compute.environment import now
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest
from unlearnbench.launch.jobs import Work
from unlearnbench.launch.worker import Result
from unlearnbench.names import Name
from unlearnbench.storage.files import cannot_write, replace_file
from unlearnbench.storage.store import Store

FOLDER = "launches"
LOCK = ".driver.lock"
SILENT = 120.0
"""Seconds without a report after which a job no longer counts as running."""


class Line(BaseModel):
    """A job, as `status` shows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Name
    name: str
    step: str
    product: str
    """Path of the file that the job contributes to, relative to the results folder."""


class Launch(BaseModel):
    """What was launched, by whom, with which jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    results: str
    launcher: str
    driver: str
    begun: str
    jobs: tuple[Line, ...]


class Journal:
    """The files of one launch: plan.json, live/, ended/ and logs/. Each file is replaced as a whole."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def begun(cls, store: Store, results: Path, launcher: str, jobs: Sequence[Work], todo: Sequence[Work]) -> Journal:
        """Start the journal of these jobs, `todo` of which are still to do. The same jobs always share one journal."""
        journal = cls(store.root / FOLDER / digest([str(results.resolve()), sorted(job.id for job in jobs)])[:12])
        plan = Launch(
            results=str(results.resolve()),
            launcher=launcher,
            driver=f"{socket.gethostname()}:{os.getpid()}",
            begun=now(),
            jobs=tuple(Line(id=job.id, name=job.name, step=job.step, product=str(job.product)) for job in jobs),
        )
        for job in todo:
            journal.open(job.id)
        for id in {job.id for job in jobs} - {job.id for job in todo}:
            journal.end(Result(id=id, state="done", where="before"))
        with journal._written():
            (journal.folder / "logs").mkdir(parents=True, exist_ok=True)
            replace_file(journal.folder / "plan.json", plan.model_dump_json(indent=1).encode())
        return journal

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Turn an `OSError` into a `UserError` of one line."""
        try:
            yield
        except OSError as error:
            raise UserError(cannot_write(self.folder, error, "UNLEARNBENCH_CACHE")) from error

    @property
    def plan(self) -> Launch:
        """The launch as it was written; `UserError` if the file cannot be read."""
        try:
            return Launch.model_validate_json((self.folder / "plan.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise UserError(f"{self.folder / 'plan.json'} cannot be read: delete {self.folder}") from error

    def log(self, id: str) -> Path:
        """Path of the file that a job's output goes to."""
        return self.folder / "logs" / f"{id}.log"

    def live(self, id: str) -> dict[str, Any] | None:
        """The last report of a job that has not ended."""
        return _read(self.folder / "live" / f"{id}.json")

    def report(self, id: str, values: dict[str, Any]) -> None:
        """Save a job's progress; values of earlier reports, such as a scheduler's number, stay."""
        path = self.folder / "live" / f"{id}.json"
        with suppress(OSError):  # a job must not fail because its progress cannot be saved
            replace_file(path, json.dumps({**(_read(path) or {}), **values}).encode())

    def numbers(self) -> list[str]:
        """Slurm's numbers of jobs that have not ended."""
        found = (self.live(line.id) or {} for line in self.plan.jobs)
        return [about["slurm"] for about in found if "slurm" in about]

    def ended(self, id: str) -> Result | None:
        """The result of a job, or None if it has not ended."""
        values = _read(self.folder / "ended" / f"{id}.json")
        return None if values is None else Result.model_validate(values)

    def ended_ids(self) -> set[str]:
        """Ids of all jobs that have ended, from one listing of the folder."""
        return {path.stem for path in (self.folder / "ended").glob("*.json")}

    def end(self, result: Result) -> None:
        """Save the result of a job."""
        with self._written():
            replace_file(self.folder / "ended" / f"{result.id}.json", result.model_dump_json().encode())
            (self.folder / "live" / f"{result.id}.json").unlink(missing_ok=True)

    def open(self, id: str) -> None:
        """Delete a job's result, so that it is to do again; its last report stays, as a scheduler may still run it."""
        with self._written():
            (self.folder / "ended" / f"{id}.json").unlink(missing_ok=True)

    def forget(self, id: str) -> None:
        """Delete a job's result and its last report, before a new try."""
        self.open(id)
        with self._written():
            (self.folder / "live" / f"{id}.json").unlink(missing_ok=True)

    def states(self, queued: Collection[str] = ()) -> list[tuple[Line, str, dict[str, Any]]]:
        """Each job with its state (done, running, failed or missing) and details.

        Jobs whose number is in `queued` are held by a scheduler and count as running, even without a report.
        """
        plan = self.plan
        found = []
        for line in plan.jobs:
            end, live = self.ended(line.id), self.live(line.id)
            there = (Path(plan.results) / line.product).is_file()
            if end is not None and end.state != "done":
                found.append((line, "failed", {"reason": end.reason, "where": end.where, "seconds": end.seconds}))
            elif end is not None and (there or line.step in ("unlearn", "sample")):
                found.append((line, "done", {"where": end.where, "seconds": end.seconds}))
            elif live is not None and (live.get("slurm") in queued or time.time() - live.get("at", 0) < SILENT):
                found.append((line, "running", live))
            else:
                found.append((line, "missing", {}))
        return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):  # replaced while it was read, on a shared file system
        return None
    return values if isinstance(values, dict) else None


def latest(store: Store, results: Path) -> Journal | None:
    """The journal of the newest launch to a results folder, or None."""
    found = []
    for path in (store.root / FOLDER).glob("*/plan.json"):
        journal = Journal(path.parent)
        if journal.plan.results == str(results.resolve()):
            found.append((path.stat().st_mtime_ns, str(path), journal))
    return max(found)[2] if found else None


@contextmanager
def sole_driver(results: Path) -> Iterator[None]:
    """Lock the results folder and refuse a second driver. The system releases the lock if the process dies."""
    from filelock import FileLock, Timeout

    who = results / f"{LOCK}.json"
    try:
        results.mkdir(parents=True, exist_ok=True)
        lock = FileLock(results / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        holder = _read(who) or {}
        raise UserError(
            f"another driver ({holder.get('driver', 'of unknown place')}, since {holder.get('since', 'some time')}) is "
            f"at work on {results}: wait for it, stop it, or name another folder with --results"
        ) from error
    except OSError as error:
        raise UserError(cannot_write(results, error, "--results")) from error
    try:
        about = {"driver": f"{socket.gethostname()}:{os.getpid()}", "since": now()}
        with suppress(OSError):
            replace_file(who, json.dumps(about).encode())
        yield
    finally:
        who.unlink(missing_ok=True)
        lock.release()
