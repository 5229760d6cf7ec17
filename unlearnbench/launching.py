"""From what `run` was asked for to records, by whichever launcher."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from unlearnbench import registry
from unlearnbench.errors import Damaged, UserError, unknown
from unlearnbench.jobs import Cut, Job, Spec, Work, jobs_of
from unlearnbench.launch import Backend, Left, Shown, drive
from unlearnbench.ledger import Ledger, sole_driver
from unlearnbench.record import Record, read
from unlearnbench.store import Store

if TYPE_CHECKING:
    from unlearnbench.attacking import Wanted
    from unlearnbench.stages import Cell

Launcher = Literal["local", "ray", "slurm"]
NEEDS = {"ray": ("ray", "ray"), "slurm": ("submitit", "slurm")}
"""Launcher -> the package that it needs, and the extra that brings it."""


@dataclass(frozen=True)
class Where:
    """Which launcher, and what it may use."""

    launcher: Launcher
    jobs: int | None = None
    """At a time; None: one here, all that fit elsewhere."""
    threads: int = 1
    """Of the CPU, for each job."""
    gpus: int = 0
    """For each job."""
    partition: str | None = None
    minutes: int | None = None
    """A job's time limit."""
    slurm: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch."""

    @classmethod
    def checked(
        cls,
        launcher: str | None,
        jobs: int | None,
        threads: int | None,
        gpus: int | None,
        device: str,
        partition: str | None,
        time: str | None,
        slurm: dict[str, str],
    ) -> Where | None:
        """From the command line; None where cells are run in this process, one after another."""
        for name, value, least in (("jobs", jobs, 1), ("threads", threads, 1), ("gpus", gpus, 0)):
            if value is not None and value < least:
                raise UserError(f"--{name} {value} is below {least}: give {least} or more")
        if launcher is not None and launcher not in get_args(Launcher):
            raise unknown("launcher", launcher, get_args(Launcher))
        for name, given in (("partition", partition), ("time", time), ("slurm", slurm or None)):
            if given is not None and launcher != "slurm":
                raise UserError(f"--{name} is for Slurm: add --launcher slurm, or leave it out")
        if launcher is None and jobs is None:
            if gpus is not None:
                raise UserError("--gpus is for --launcher ray or slurm: add one, or leave it out")
            return None
        launcher = launcher or "local"
        if launcher == "local" and gpus not in (None, 0, 1):
            raise UserError(f"--gpus {gpus}: a job here takes one GPU at most; --device cpu takes none")
        if launcher in NEEDS and find_spec(NEEDS[launcher][0]) is None:
            package, extra = NEEDS[launcher]
            raise UserError(f"--launcher {launcher} needs {package}: pip install 'unlearnbench[{extra}]'")
        if launcher == "slurm" and shutil.which("sbatch") is None:
            raise UserError("--launcher slurm: no sbatch here: give the command on a machine that submits jobs")
        if device == "cpu" and gpus:
            raise UserError(f"--gpus {gpus} with --device cpu: leave one of them out")
        on_cuda = gpus > 0 if gpus is not None else device != "cpu" and _has_cuda(launcher, device)
        if threads is None:
            threads = _share(jobs or 1) if launcher == "local" else 4 if on_cuda else 1
        minutes = None if time is None else parse_time(time)
        return cls(launcher, jobs, threads, int(on_cuda) if gpus is None else gpus, partition, minutes, slurm)  # type: ignore[arg-type]

    @property
    def device(self) -> str | None:
        """What jobs elsewhere compute on; None: as this process does."""
        return None if self.launcher == "local" else "cuda" if self.gpus else "cpu"


def _has_cuda(launcher: str, device: str) -> bool:
    """Elsewhere --device cuda is taken at its word; otherwise what this machine has decides."""
    from unlearnbench.environment import pick_device

    return (launcher != "local" and device == "cuda") or pick_device(device) == "cuda"


def _share(jobs: int) -> int:
    from unlearnbench.launch_local import cores

    return max(1, cores() // jobs)


def parse_time(text: str) -> int:
    """Minutes, of `90`, `1:30` (hours and minutes) or `2-12:00` (days before them)."""
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in [*parts, *([days] if dash else [])]) or len(parts) > 2:
        raise UserError(
            f"--time {text}: give minutes such as 90, hours and minutes such as 1:30, or days-hours:minutes"
        )
    minutes = int(parts[-1]) + 60 * (int(parts[0]) if len(parts) == 2 else 0) + 1440 * int(days or 0)
    if minutes < 1:
        raise UserError(f"--time {text} is no time: give a minute or more")
    return minutes


def backend(where: Where, ledger: Ledger, store: Store, results: Path, count: int) -> Backend:
    """The launcher, begun, for so many jobs."""
    if where.launcher == "ray":
        from unlearnbench.launch_ray import Ray

        return Ray(ledger, store, results, where.threads, where.gpus, where.jobs)
    if where.launcher == "slurm":
        from unlearnbench.launch_slurm import Slurm

        return Slurm(ledger, store, results, where)
    from unlearnbench.launch_local import Local, cards

    jobs = where.jobs or 1
    gpus = cards(jobs) if where.gpus else [""] * jobs
    return Local(gpus[:count], where.threads, ledger, store, results)


def launched(
    every: Sequence[Work], todo: Sequence[Work], where: Where, store: Store, results: Path, shown: Shown
) -> Left:
    """Do what is to do of these jobs; how they ended."""
    store = Store(store.root.resolve())
    with sole_driver(results):
        ledger = Ledger.begun(store, results, where.launcher, every, todo)
        if not todo:
            return Left({}, ())
        return drive(todo, backend(where, ledger, store, results.resolve(), len(todo)), ledger, shown)


def cells_launched(
    specs: Sequence[Spec], baseline: Sequence[Spec], cut: Cut, where: Where, store: Store, results: Path, shown: Shown
) -> tuple[list[Job], Left]:
    """Run every cell that is not done yet; its jobs, and how they ended."""
    from unlearnbench.attacking import wanted

    cut = cut.model_copy(update={"threads": where.threads, "gpus": where.gpus})
    specs, baseline = ([spec.anywhere() for spec in some] for some in (specs, baseline))
    if not cut.force:
        tried = wanted(",".join(cut.attacks), cut.budget) if cut.attacks else []
        require_replaceable([*baseline, *specs], results, tried)
    every = longest_first(jobs_of(specs, baseline, cut), results)
    todo = still_to_do(every, results)
    return todo, launched(every, todo, where, store, results, shown)


def require_replaceable(specs: Sequence[Spec], results: Path, attacks: Sequence[Wanted] = ()) -> None:
    """Refuse cells whose record, or attack in it, would replace one that was made otherwise; before anything is run."""
    from unlearnbench import attacking, runner
    from unlearnbench.keys import drafted

    drafts: dict[str, tuple[Cell, Record]] = {}
    for spec in specs:
        path = spec.path(results)
        if not path.is_file():
            continue
        like = spec.model_copy(update={"seed": 0, "device": "cpu"})  # a driver may have no card
        key = like.model_dump_json()
        if key not in drafts:
            cell = like.cell()
            drafts[key] = cell, drafted(cell, {})
        cell, draft = drafts[key]
        runner.require_replaceable(path, draft)
        if attacks and spec.label != "original":
            attacking.require_replaceable(cell, read(path), attacks)


def still_to_do(jobs: Sequence[Job], results: Path) -> list[Job]:
    """Without the cells whose record is there with all that was asked for; forced and watched ones stay."""
    import torch

    from unlearnbench.attacking import lacking, wanted
    from unlearnbench.runner import finished

    complete: dict[str, bool] = {}
    cuda = torch.cuda.is_available()
    for job in jobs:
        spec = job.spec
        key = f"{spec.model_dump_json()}"
        if job.force or job.every is not None or (spec.device == "cuda" and not cuda):
            complete[key] = False  # without a card the judge's key cannot be made: workers answer at once
        if complete.get(key) is False or job.step not in ("record", "attach"):
            continue
        cell = spec.cell()
        record = finished(cell, results)
        asked = wanted(",".join(job.attacks), job.budget) if job.attacks else []
        complete[key] = record is not None and not lacking(cell, record, asked)
    kept = [job for job in jobs if not complete[job.spec.model_dump_json()]]
    ids = {job.id for job in kept}

    def left(some: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(id for id in some if id in ids)

    return [job.model_copy(update={"needs": left(job.needs), "after": left(job.after)}) for job in kept]


def longest_first(jobs: Sequence[Job], results: Path) -> list[Job]:
    """In order of the seconds that the same method took there before; training anew, and what is unknown, first.

    A long job that is begun last keeps all others waiting.
    """
    seconds: dict[tuple[str, str], float] = {}
    for task in {job.spec.task for job in jobs}:
        for folder in (results / task).glob("*/*/*"):
            path = next(folder.glob("seed-*.json"), None)
            try:
                known = read(path).scores.get("unlearn_time") if path else None
            except Damaged:  # `validate` names it
                continue
            if known and known.value is not None:
                seconds[task, folder.name] = max(known.value, seconds.get((task, folder.name), 0.0))

    def expected(job: Job) -> float:
        spec = job.spec
        if "training recipe" in registry.load_method(spec.method).requires:
            return float("inf")
        return seconds.get((spec.task, spec.label), float("inf"))

    order = {job.spec.model_dump_json(): expected(job) for job in jobs}
    return sorted(jobs, key=lambda job: -order[job.spec.model_dump_json()])
