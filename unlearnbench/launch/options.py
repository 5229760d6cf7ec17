"""The options of a launch: which launcher, and what it may use."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal, get_args

from unlearnbench.errors import UserError, unknown
from unlearnbench.pipeline.request import LaunchRequest
from unlearnbench.reporting import tell

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
    def of(cls, request: LaunchRequest) -> Where | None:
        """What a request asks for, checked; None where cells are run in this process, one after another."""
        _require_fitting(request)
        if request.launcher is None and request.jobs is None:
            return None
        launcher, gpus, threads = request.launcher or "local", request.gpus, request.threads
        _require_available(launcher)
        on_cuda = gpus > 0 if gpus is not None else request.device != "cpu" and _has_cuda(launcher, request.device)
        if threads is None:
            threads = _share(request.jobs or 1) if launcher == "local" else 4 if on_cuda else 1
        return cls(
            launcher=launcher,  # type: ignore[arg-type]
            jobs=request.jobs,
            threads=threads,
            gpus=int(on_cuda) if gpus is None else gpus,
            partition=request.partition,
            minutes=None if request.time is None else parse_time(request.time),
            slurm=request.slurm,
        )

    @property
    def device(self) -> str | None:
        """What jobs elsewhere compute on; None: as this process does."""
        return None if self.launcher == "local" else "cuda" if self.gpus else "cpu"


def _require_fitting(request: LaunchRequest) -> None:
    """Refuse values that are too small, and options that do not go together."""
    launcher, gpus = request.launcher, request.gpus
    for name, value, least in (("jobs", request.jobs, 1), ("threads", request.threads, 1), ("gpus", gpus, 0)):
        if value is not None and value < least:
            raise UserError(f"--{name} {value} is below {least}: give {least} or more")
    if launcher is not None and launcher not in get_args(Launcher):
        raise unknown("launcher", launcher, get_args(Launcher))
    of_slurm = (("partition", request.partition), ("time", request.time), ("slurm", request.slurm or None))
    for name, given in of_slurm:
        if given is not None and launcher != "slurm":
            raise UserError(f"--{name} is for Slurm: add --launcher slurm, or leave it out")
    if launcher is None and request.jobs is None and gpus is not None:
        raise UserError("--gpus is for --launcher ray or slurm: add one, or leave it out")
    if launcher in (None, "local") and gpus not in (None, 0, 1):
        raise UserError(f"--gpus {gpus}: a job here takes one GPU at most; --device cpu takes none")
    if request.device == "cpu" and gpus:
        raise UserError(f"--gpus {gpus} with --device cpu: leave one of them out")


def _require_available(launcher: str) -> None:
    """Refuse a launcher that is not installed here."""
    if launcher in NEEDS and find_spec(NEEDS[launcher][0]) is None:
        package, extra = NEEDS[launcher]
        raise UserError(f"--launcher {launcher} needs {package}: pip install 'unlearnbench[{extra}]'")
    if launcher == "slurm" and shutil.which("sbatch") is None:
        raise UserError("--launcher slurm: no sbatch here: give the command on a machine that submits jobs")


def _has_cuda(launcher: str, device: str) -> bool:
    """Elsewhere --device cuda is taken at its word; otherwise what this machine has decides."""
    from unlearnbench.compute.device import pick_device

    if launcher != "local" and device == "cuda":
        return True
    found = pick_device(device) == "cuda"
    if launcher != "local" and not found:
        tell(
            "--device auto: this machine has no GPU, so the jobs take CPUs wherever they run: --device cuda gives each "
            "a GPU there, --device cpu is without this line"
        )
    return found


def _share(jobs: int) -> int:
    from unlearnbench.launch.local import cores

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
