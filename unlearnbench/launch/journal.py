"""What is known of a launch, on disk: its jobs, what each is at, how it ended; one driver to a results folder."""

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
"""Seconds after which a job that says nothing is no longer taken for running."""


class Line(BaseModel):
    """A job, as `status` shows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Name
    name: str
    step: str
    product: str
    """Path of what it is for, from the results folder."""


class Launch(BaseModel):
    """A launch: what was asked for, by whom, of which jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    results: str
    launcher: str
    driver: str
    begun: str
    jobs: tuple[Line, ...]


class Journal:
    """The files of one launch: plan.json, live/, ended/ and logs/, each file written whole."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def begun(cls, store: Store, results: Path, launcher: str, jobs: Sequence[Work], todo: Sequence[Work]) -> Journal:
        """The journal of these jobs, of which some are still to do; of the same jobs as before the same journal."""
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
        """What cannot be written is told in one line."""
        try:
            yield
        except OSError as error:
            raise UserError(cannot_write(self.folder, error, "UNLEARNBENCH_CACHE")) from error

    @property
    def plan(self) -> Launch:
        """As it was written."""
        try:
            return Launch.model_validate_json((self.folder / "plan.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise UserError(f"{self.folder / 'plan.json'} cannot be read: delete {self.folder}") from error

    def log(self, id: str) -> Path:
        """Where a job's output goes."""
        return self.folder / "logs" / f"{id}.log"

    def live(self, id: str) -> dict[str, Any] | None:
        """What a job said last that has not ended."""
        return _read(self.folder / "live" / f"{id}.json")

    def report(self, id: str, values: dict[str, Any]) -> None:
        """Note what a job is at; lines before it stay, such as a scheduler's number."""
        path = self.folder / "live" / f"{id}.json"
        with suppress(OSError):  # a job is not to fail over what it is at
            replace_file(path, json.dumps({**(_read(path) or {}), **values}).encode())

    def numbers(self) -> list[str]:
        """Slurm's numbers of jobs that have not ended."""
        found = (self.live(line.id) or {} for line in self.plan.jobs)
        return [about["slurm"] for about in found if "slurm" in about]

    def ended(self, id: str) -> Result | None:
        """How a job ended, if it has."""
        values = _read(self.folder / "ended" / f"{id}.json")
        return None if values is None else Result.model_validate(values)

    def ended_ids(self) -> set[str]:
        """Jobs that ended, in one look."""
        return {path.stem for path in (self.folder / "ended").glob("*.json")}

    def end(self, result: Result) -> None:
        """Note how a job ended."""
        with self._written():
            replace_file(self.folder / "ended" / f"{result.id}.json", result.model_dump_json().encode())
            (self.folder / "live" / f"{result.id}.json").unlink(missing_ok=True)

    def open(self, id: str) -> None:
        """A job is still to do, however it ended before; a scheduler may be at it."""
        with self._written():
            (self.folder / "ended" / f"{id}.json").unlink(missing_ok=True)

    def forget(self, id: str) -> None:
        """A job is tried again from the start."""
        self.open(id)
        with self._written():
            (self.folder / "live" / f"{id}.json").unlink(missing_ok=True)

    def states(self, queued: Collection[str] = ()) -> list[tuple[Line, str, dict[str, Any]]]:
        """Each job with its state, done, running, failed or missing, and what is known of it.

        `queued` are numbers that a scheduler has: those jobs run, or will, whatever they say.
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
    except (OSError, ValueError):  # a file that is replaced while it is read, on a file system that is shared
        return None
    return values if isinstance(values, dict) else None


def latest(store: Store, results: Path) -> Journal | None:
    """The launch on a results folder that was begun last."""
    found = []
    for path in (store.root / FOLDER).glob("*/plan.json"):
        journal = Journal(path.parent)
        if journal.plan.results == str(results.resolve()):
            found.append((path.stat().st_mtime_ns, str(path), journal))
    return max(found)[2] if found else None


@contextmanager
def sole_driver(results: Path) -> Iterator[None]:
    """Hold the results folder; a second driver is refused. The system lets go of it when the process dies."""
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
            f"at work on {results}: wait for it, stop it, or name another folder with --out"
        ) from error
    except OSError as error:
        raise UserError(cannot_write(results, error, "--out")) from error
    try:
        about = {"driver": f"{socket.gethostname()}:{os.getpid()}", "since": now()}
        with suppress(OSError):
            replace_file(who, json.dumps(about).encode())
        yield
    finally:
        who.unlink(missing_ok=True)
        lock.release()
