"""Share methods out among processes, each tuned in a folder of its own, which keeps what is finished."""

from __future__ import annotations

import queue
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from unlearnbench import registry
from unlearnbench.environment import describe, on_threads
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest
from unlearnbench.progress import shown_by
from unlearnbench.tuning import Budget, Told, tuned, tuning_key
from unlearnbench.tuning_record import Tuning, read_tuning, tuning_path, write_tuning
from unlearnbench.tuning_runs import Anchored, Runs, anchors_of

POLL = 0.5
"""Seconds between looks at what workers tell."""


class Job(NamedTuple):
    """One method to tune."""

    given: Budget
    method: str
    """Its name, or the path of its file."""
    work: Path
    """Folder of the task's tunings in the cache."""
    results: Path
    controls: Anchored


def finished(given: Budget, method: str, results: Path) -> Tuning | None:
    """The tuning that is there already, if it is of this budget, code and space."""
    cls = registry.load_method(method)
    path = tuning_path(results, given.task.name, cls.name)
    found = read_tuning(path) if path.is_file() else None
    return found if found and found.key == tuning_key(given, cls) else None


def tune_one(job: Job, told: Told = lambda line: None) -> Tuning:
    """Tune, write the file, and drop the runs; the trials stay in the cache, so that more of them can be added."""
    cls = registry.load_method(job.method)
    folder = job.work / cls.name
    # answers of another code or original would be made anew anyway: kept apart, they do not pile up
    runs = Runs(job.given, folder / "runs" / digest(tuning_key(job.given, cls))[:12], job.controls)
    environment = {**describe(job.given.device), "optuna": version("optuna")}
    with on_threads(1):  # whatever the number of processes: results depend on it in their last bits
        found = tuned(job.given, cls, folder, runs, anchors_of(job.controls), environment, told)
    try:
        found = write_tuning(found, job.results)
    except OSError as error:
        raise UserError(
            f"cannot write below {job.results} ({error.strerror}): name another folder with --out"
        ) from error
    shutil.rmtree(folder / "runs", ignore_errors=True)
    return found


def tune_all(jobs: Sequence[Job], processes: int, told: Told) -> Iterator[Tuning]:
    """Every tuning as it is finished, by so many processes; a stop or an error ends them all."""
    if processes == 1 or len(jobs) < 2:
        yield from (tune_one(job, told) for job in jobs)
        return
    context = get_context("spawn")
    lines, stop = context.Queue(), context.Event()
    workers = min(processes, len(jobs))
    with ProcessPoolExecutor(workers, context, _begin, (lines, stop)) as pool:
        try:
            left = {pool.submit(_work, job) for job in jobs}
            while left:
                done, left = wait(left, POLL, FIRST_EXCEPTION)
                _pass_on(lines, told)
                yield from (future.result() for future in done)
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _pass_on(lines: Any, told: Callable[[str], None]) -> None:
    while True:
        try:
            told(lines.get_nowait())
        except queue.Empty:
            return


_own: dict[str, Any] = {}
"""A worker's ends of what it shares with its parent."""


def _begin(lines: Any, stop: Any) -> None:
    """Ctrl-C is the parent's to hear: it tells workers to stop, which look at every step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _own.update(lines=lines, stop=stop)


def _work(job: Job) -> Tuning:
    with shown_by(_look):
        return tune_one(job, _own["lines"].put)


def _look(what: str, done: int, total: int) -> None:
    if _own["stop"].is_set():
        raise KeyboardInterrupt
