"""Run jobs on any backend until all have ended: start those that are ready, and retry those whose worker died."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from unlearnbench.launch.jobs import Work
from unlearnbench.launch.journal import Journal
from unlearnbench.launch.worker import Result, tail
from unlearnbench.reporting import tell

TRIES = 3
"""How often a job is started before it counts as failed because its workers died."""
POLL = 0.25
"""Seconds that the driver waits for results at a time."""


class Backend(ABC):
    """Where jobs run. It knows nothing about what they compute."""

    @abstractmethod
    def room(self) -> int:
        """How many more jobs may be started now."""

    @abstractmethod
    def begin(self, jobs: Sequence[Work]) -> None:
        """Start these jobs, which are never more than there is room for."""

    @abstractmethod
    def ended(self, seconds: float) -> list[Result]:
        """Results of jobs that have ended; waits up to `seconds` for one."""

    def release(self, id: str) -> None:  # noqa: B027 - most keep nothing
        """Free the outputs of a job that no later job needs."""

    @abstractmethod
    def close(self) -> str | None:
        """Release the workers. Jobs are dropped unless a scheduler keeps them; then a line to show is returned."""


class Left(NamedTuple):
    """How a launch ended."""

    results: dict[str, Result]
    """By job id."""
    unreached: tuple[Work, ...]
    """Jobs that were not started because they need a failed one."""

    @property
    def failed(self) -> list[Result]:
        """Results of jobs that failed."""
        return [result for result in self.results.values() if result.state != "done"]


Shown = Callable[[dict[str, Work], dict[str, Result], int, Journal], None]
"""Called with (running, ended, number of jobs, journal) after each wait."""


def drive(jobs: Sequence[Work], backend: Backend, journal: Journal, shown: Shown = lambda *about: None) -> Left:
    """Run every job after the jobs that it needs. If one fails, those that need it are left out and the others
    continue.
    """
    waiting = {job.id: job for job in jobs}
    running: dict[str, Work] = {}
    results: dict[str, Result] = {}
    tries: Counter[str] = Counter()
    needed = Counter(id for job in jobs for id in (*job.needs, *job.after))
    try:
        while waiting or running:
            ready = [job for job in waiting.values() if _ready(job, results, waiting, running)]
            ready = ready[: backend.room()]
            if not ready and not running:
                break
            for job in ready:
                running[job.id] = waiting.pop(job.id)
                tries[job.id] += 1
            if ready:
                backend.begin(ready)
            shown(running, results, len(jobs), journal)
            for result in backend.ended(POLL):
                job = running.pop(result.id)
                if result.state == "lost" and tries[job.id] < TRIES:
                    journal.forget(job.id)
                    waiting = {job.id: job, **waiting}
                    continue
                if result.state == "lost":
                    about: dict[str, Any] = {
                        "reason": f"{result.reason}, {tries[job.id]} times",
                        "tail": result.tail or tail(journal.log(job.id)),
                    }
                    result = result.model_copy(update=about)
                results[job.id] = result
                journal.end(result)
                needed.subtract((*job.needs, *job.after))
                for id in (job.id, *job.needs, *job.after):
                    if needed[id] <= 0:
                        backend.release(id)
    finally:
        if line := backend.close():
            tell(line)
    shown(running, results, len(jobs), journal)
    return Left(results, tuple(waiting.values()))


def _ready(job: Work, results: dict[str, Result], waiting: dict[str, Work], running: dict[str, Work]) -> bool:
    """Whether all jobs that it needs are done and all that it comes after have ended."""
    done = all(id in results and results[id].state == "done" for id in job.needs)
    return done and not any(id in waiting or id in running for id in job.after)
