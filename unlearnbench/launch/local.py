"""Run jobs on this machine, in worker processes that live as long as the driver and get a GPU each or a share of the
CPU threads.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

from unlearnbench.errors import UserError, one_line
from unlearnbench.launch.driver import Backend
from unlearnbench.launch.jobs import Work
from unlearnbench.launch.journal import Journal
from unlearnbench.launch.worker import HEAVY, Result, read_job, tail, warm, work
from unlearnbench.storage.store import Store

PATIENCE = 10.0
"""Seconds that a worker has to end by itself."""


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cards(jobs: int) -> list[str]:
    """Names of the GPUs, one per job, as CUDA knows them; refuse more jobs than there are GPUs."""
    import torch

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    known = visible or [str(number) for number in range(torch.cuda.device_count())]
    if not known:
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    if len(known) < jobs:
        raise UserError(
            f"--jobs {jobs} on cuda takes a GPU each, and {len(known)} are here: give --jobs {len(known)}, "
            "--device cpu, or another --launcher"
        )
    return known[:jobs]


class Local(Backend):
    """One worker for each of `gpus` ("" means none). A worker that dies is replaced, and its job is lost."""

    def __init__(self, gpus: Sequence[str], threads: int, journal: Journal, store: Store, results: Path):
        self._journal, self._about = journal, (str(store.root), str(results), str(journal.folder), threads)
        # leftovers of a killed worker are cleaned up silently
        os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
        self._gpus, self._workers = list(gpus), list[_Worker | None]([None] * len(gpus))

    def room(self) -> int:
        """Number of free workers."""
        return sum(worker is None or worker.job is None for worker in self._workers)

    def begin(self, jobs: Sequence[Work]) -> None:
        """Give a job to each free worker. All workers are started at once, so that they import while others already
        work.
        """
        rest = iter(jobs)
        for place, worker in enumerate(self._workers):
            if worker is None or not (worker.job or worker.process.is_alive()):
                worker = self._workers[place] = _Worker(self._about, self._gpus[place])
            if worker.job is None and (job := next(rest, None)):
                worker.begin(job)

    def ended(self, seconds: float) -> list[Result]:
        """Results that arrived, and lost results for workers that died."""
        busy = [(place, worker) for place, worker in enumerate(self._workers) if worker and worker.job]
        heard = wait([end for _, worker in busy for end in (worker.pipe, worker.process.sentinel)], seconds)
        found = []
        for place, worker in busy:
            job = cast(Work, worker.job)
            if worker.pipe in heard and (result := worker.result()) is not None:
                found.append(result)
            elif worker.pipe in heard or worker.process.sentinel in heard:
                worker.process.join(PATIENCE)
                worker.process.kill()
                worker.process.join()
                reason = f"the worker {_ending(worker.process.exitcode)}"
                last = tail(self._journal.log(job.id))
                where = (self._journal.live(job.id) or {}).get("where", "")
                found.append(Result(id=job.id, state="lost", reason=reason, tail=last, where=where))
                self._workers[place] = None
        return found

    def close(self) -> str | None:
        """Stop every worker: idle ones when they find the pipe closed, others at once."""
        workers = [worker for worker in self._workers if worker]
        for worker in workers:
            worker.pipe.close()
            if worker.job:
                worker.process.kill()
        for worker in workers:
            worker.process.join(PATIENCE)
            worker.process.kill()
            worker.process.join()
        return None


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (as by the system where memory runs out)" if name == "SIGKILL" else "")


def _context(gpu: str) -> Any:
    """How a worker process starts.

    A worker on the CPU is forked from a server that has imported the libraries once, so that it starts, or is
    replaced, at once. A worker with a GPU is a new interpreter, as CUDA does not survive a fork.
    """
    if gpu or "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(list(HEAVY))
    return context


class _Worker:
    """The driver's end of one worker process."""

    job: Work | None = None

    def __init__(self, about: tuple[Any, ...], gpu: str):
        context = _context(gpu)
        self.pipe, theirs = context.Pipe()
        with _environment(OMP_NUM_THREADS=str(about[-1]), **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})):
            arguments = (theirs, about, dict(os.environ))
            self.process: BaseProcess = context.Process(target=_serve, args=arguments, daemon=True)
            try:
                self.process.start()
            except OSError as error:
                raise UserError(f"no worker can be started ({one_line(error)}): give fewer --jobs") from error
        theirs.close()

    def begin(self, job: Work) -> None:
        self.job = job
        with suppress(OSError):  # it has just died, which `ended` finds out
            self.pipe.send(job.model_dump_json())

    def result(self) -> Result | None:
        """The result that arrived, or None if the process closed its end."""
        try:
            found = Result.model_validate_json(self.pipe.recv())
        except (EOFError, OSError):
            return None
        self.job = None
        return found


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables that libraries read when they are loaded."""
    values["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait by spinning would take the others' cores
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _serve(pipe: Connection, about: tuple[Any, ...], environment: dict[str, str]) -> None:
    """Main loop of a worker: do one job at a time until the driver closes its end. Ctrl-C is left to the driver."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()  # a forked worker has the environment that the server began with
    os.environ.update(environment)
    root, results, folder, _ = about
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    journal = Journal(Path(folder))
    warm()
    while True:
        try:
            job = read_job(pipe.recv())
        except EOFError:
            return
        id = job.id
        result = work(job, Store(Path(root)), Path(results), journal.log(id), lambda values: journal.report(id, values))  # noqa: B023
        pipe.send(result.model_dump_json())


def _end_with_the_driver() -> None:
    """End this process when the driver dies: a killed driver cannot end it, and a second one would meet it."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
