"""What a worker does with one job: the same stages as a run in one process, of which this job is a part."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from unlearnbench.compute.device import explained_device_errors
from unlearnbench.errors import Unsupported, UserError, message, one_line
from unlearnbench.hashing import digest
from unlearnbench.launch.jobs import Expected, Job, Work
from unlearnbench.names import Name, inside
from unlearnbench.printable import lenient, printable
from unlearnbench.records.schema import Record
from unlearnbench.reporting import shown_by, told_by
from unlearnbench.storage.files import cannot_write, replace_file
from unlearnbench.storage.store import Store

if TYPE_CHECKING:
    from unlearnbench.attacks.spec import AttackSpec
    from unlearnbench.pipeline.cell import Cell

TAIL = 5
"""Lines of a failed job's log that are shown."""
PAUSE = 0.5
"""Seconds from one report to the next, at least."""
BEAT = 30.0
"""Seconds from one sign of life to the next."""
HEAVY = ("unlearnbench.pipeline.trajectory", "torch_fidelity", "diffusers", "pandas", "scipy.stats", "sklearn.datasets")
"""What nearly every job imports, which takes seconds."""
Report = Callable[[dict[str, Any]], None]


class Result(BaseModel):
    """How a job ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Name
    state: Literal["done", "failed", "lost"]
    """lost: the worker died, and another may do better."""
    reason: str | None = None
    tail: tuple[str, ...] = ()
    """The last lines of a failed job's log."""
    said: tuple[str, ...] = ()
    """What the user is to hear."""
    status: str | None = None
    """Of the record, where the job made one."""
    seconds: float = 0.0
    where: str = ""


def describe_place() -> str:
    """This process, for people: machine and process number, and the card where it was given one."""
    card = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"{socket.gethostname()}:{os.getpid()}" + (f" GPU {card}" if card else "")


def warm() -> None:
    """Import what a job is going to need, while there is none."""
    for name in HEAVY:
        importlib.import_module(name)


def read_job(text: str) -> Work:
    """A job as it was sent."""
    kind = json.loads(text)["kind"]
    cls = pkgutil.resolve_name(kind) if kind.startswith("unlearnbench.") else None  # a job names no code of others
    if not (isinstance(cls, type) and issubclass(cls, Work)):
        raise TypeError(f"{kind} is no kind of job")
    return cls.model_validate_json(text)


def work(job: Work, store: Store, results: Path, log: Path, report: Report = lambda values: None) -> Result:
    """Do a job; whatever goes wrong is its result, told in one line, with the traceback in its log."""
    begun, said, where = time.perf_counter(), list[str](), describe_place()

    def ended(state: Literal["done", "failed"], **about: Any) -> Result:
        seconds = round(time.perf_counter() - begun, 3)
        heard = () if job.step in ("attach", "tune") else tuple(said)  # of these it was news while they ran
        return Result(id=job.id, state=state, said=heard, seconds=seconds, where=where, **about)

    try:
        with _logged(log), _reported(report, where, said):
            try:
                return ended("done", status=_done(job, store, results, where))
            except UserError as error:
                return ended("failed", reason=message(error), tail=tail(log))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a job's failure must end no worker and no other job
                _trace(error)
                sys.stderr.flush()
                return ended("failed", reason=one_line(error), tail=tail(log))
    except OSError as error:
        return ended("failed", reason=cannot_write(log, error, "UNLEARNBENCH_CACHE"))


def _trace(error: BaseException) -> None:
    """The traceback into the log, unless the error itself cannot be shown: then where it came from."""
    try:
        traceback.print_exception(error, file=sys.stderr)
    except (Exception, SystemExit):  # noqa: BLE001 - `__str__` or `__notes__` of foreign code may raise anything
        traceback.print_tb(error.__traceback__, file=sys.stderr)
        sys.stderr.write(f"{one_line(error)}\n")


@explained_device_errors()
def _done(job: Work, store: Store, results: Path, where: str) -> str | None:
    if isinstance(job, Job):
        return _cell_done(job, store, results, where)
    job.perform(store, results)
    return None


def _cell_done(job: Job, store: Store, results: Path, where: str) -> str | None:
    """Do one job of a cell; the status of its record, where the job makes or changes one."""
    import torch

    from unlearnbench.compute.device import pick_device
    from unlearnbench.pipeline.attacks import attacks_of, tried
    from unlearnbench.pipeline.recording import record_cell
    from unlearnbench.records.schema import read_record

    torch.set_num_threads(job.threads)
    method = with_source(job.spec.method, job.spec.source, store)
    spec = job.spec.model_copy(update={"device": pick_device(job.spec.device), "method": method})
    cell = spec.cell()
    job.expected.require(Expected.of(cell), where, job.spec.task)
    attacks = attacks_of(job.attacks)
    if job.step == "record":
        record = record_cell(
            cell, store, results, attacks=attacks, every=job.every, force=job.force, replace=job.replace
        )
        return record.status
    if job.step == "attack":
        tried(cell, read_record(spec.path(results)), attacks, store)
    elif job.step == "attach":
        return _attached(cell, read_record(spec.path(results)), attacks, store, results)
    else:
        _fill_store(cell, job, store)
    return None


def _fill_store(cell: Cell, job: Job, store: Store) -> None:
    """Make the unlearned weights, or one shard of the samples; a run that comes to none says so in its record."""
    from unlearnbench.pipeline.cell import require
    from unlearnbench.pipeline.fingerprint import drafted, sample_parts, weight_parts
    from unlearnbench.pipeline.runner import unlearned
    from unlearnbench.pipeline.sampling import sample_images
    from unlearnbench.pipeline.scoring import metrics_for
    from unlearnbench.pipeline.unlearning import loaded
    from unlearnbench.training import Diverged

    draft = drafted(cell, metrics_for(cell.task))
    if job.step == "sample" and not store.has("weights", weight_parts(cell, draft)):
        return  # the job that was to make them came to none
    try:
        require(cell)
        weights, _ = unlearned(cell, draft, store)
        if job.step == "sample":
            model, identity = loaded(cell, weights), sample_parts(cell, weights)
            sample_images(cell, model, identity, cell.task.plan(), store, shard=(job.shard, job.shards))
    except (Diverged, Unsupported):
        return


def _attached(cell: Cell, record: Record, asked: Sequence[AttackSpec], store: Store, results: Path) -> str:
    """Put attacks into the record; one that fails keeps no other out, and is told when all others are in."""
    from unlearnbench.pipeline.attacks import attacked

    failed: UserError | None = None
    for spec in asked:
        try:
            record = attacked(cell, record, [spec], store, results)
        except UserError as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return record.status


def with_source(method: str, source: str | None, store: Store) -> str:
    """The method, or the path of its file as it was sent, where this machine has another or none."""
    if source is None:
        return method
    path = Path(method)
    if not path.is_file() or not _says(path, source):
        if path.suffix != ".py" or not path.stem.isidentifier():
            raise UserError(
                f"{path.name!r} cannot name a method's file: call it by letters, digits and _, such as my.py"
            )
        path = inside(store.root, Path("methods") / digest(source)[:16] / path.name)
        if not path.is_file() or not _says(path, source):  # whole: another worker may be reading it
            replace_file(path, source.encode())
    return str(path)


def _says(path: Path, source: str) -> bool:
    return path.read_text(encoding="utf-8", errors="replace") == source


@contextmanager
def _reported(report: Report, where: str, said: list[str]) -> Iterator[None]:
    """Tell what is being done now and then, and keep what the user is to hear."""
    last = 0.0

    def sink(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PAUSE:
            last = time.monotonic()
            what = f"{said[-1]}, {what}" if said else what
            report({"what": what, "done": done, "total": total, "where": where, "at": time.time()})

    ended = threading.Event()

    def beat() -> None:  # a step may be long: whoever looks must know that the job is alive
        while not ended.wait(BEAT):
            report({"at": time.time()})

    report({"what": "starting", "done": 0, "total": 1, "where": where, "at": time.time()})
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        with shown_by(sink), told_by(said.append):
            yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _logged(log: Path) -> Iterator[None]:
    """All that this process and its libraries print goes to the job's log, crashes of theirs included."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    lenient()
    kept = [os.dup(number) for number in (1, 2)]
    with log.open("a", encoding="utf-8") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)


def tail(log: Path) -> tuple[str, ...]:
    """The last lines of a log, if there is one."""
    if not log.is_file():
        return ()
    return tuple(
        printable(line[:300]) for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    )[-TAIL:]
