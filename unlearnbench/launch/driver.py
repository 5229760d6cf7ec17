"""Drive jobs to their end on whatever runs them: what is ready is handed on, what is lost is tried again."""

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
"""How often a job is begun whose worker dies."""
POLL = 0.25
"""Seconds that the driver waits for news."""


class Backend(ABC):
    """Where jobs run. It knows nothing of what they are for."""

    @abstractmethod
    def room(self) -> int:
        """How many more jobs may be begun now."""

    @abstractmethod
    def begin(self, jobs: Sequence[Work]) -> None:
        """Hand on these jobs, at most as many as there is room for."""

    @abstractmethod
    def ended(self, seconds: float) -> list[Result]:
        """Jobs that came to an end; waits so many seconds for one."""

    def release(self, id: str) -> None:  # noqa: B027 - most keep nothing
        """No job needs any more what this one made."""

    @abstractmethod
    def close(self) -> str | None:
        """Let go of workers; what they were at is dropped, or goes on where the scheduler keeps it, which is said."""


class Left(NamedTuple):
    """How a launch ended."""

    results: dict[str, Result]
    """By job id."""
    unreached: tuple[Work, ...]
    """Jobs that wait for one that failed."""

    @property
    def failed(self) -> list[Result]:
        """What came to nothing."""
        return [result for result in self.results.values() if result.state != "done"]


Shown = Callable[[dict[str, Work], dict[str, Result], int, Journal], None]
"""(running, ended, jobs in all, journal): called at every look."""


def drive(jobs: Sequence[Work], backend: Backend, journal: Journal, shown: Shown = lambda *about: None) -> Left:
    """Run every job after those that it needs. A failed one leaves out what needs it; the rest goes on."""
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
        if said := backend.close():
            tell(said)
    shown(running, results, len(jobs), journal)
    return Left(results, tuple(waiting.values()))


def _ready(job: Work, results: dict[str, Result], waiting: dict[str, Work], running: dict[str, Work]) -> bool:
    """Whether all that it needs is done, and nothing that it comes after may still be."""
    done = all(id in results and results[id].state == "done" for id in job.needs)
    return done and not any(id in waiting or id in running for id in job.after)
