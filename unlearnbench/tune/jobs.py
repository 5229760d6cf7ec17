"""Tune methods as jobs. Each has its own folder, which keeps finished trials."""

from __future__ import annotations

import shutil
from base64 import b64decode
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from unlearnbench import registry
from unlearnbench.compute.device import on_threads, pick_device
from unlearnbench.compute.environment import describe_environment
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest
from unlearnbench.launch.jobs import Work
from unlearnbench.launch.worker import with_source
from unlearnbench.records.schema import Record
from unlearnbench.records.tuning import Tuning, read_tuning, tuning_path, tuning_place, write_tuning
from unlearnbench.reporting import tell
from unlearnbench.storage.store import Store
from unlearnbench.tune.search import Budget, Told, tuned, tuning_key
from unlearnbench.tune.trials import Anchored, Runs, anchors_of


class TuneJob(Work):
    """One method to tune, with the runs of the controls that anchor its scores."""

    kind: str = "unlearnbench.tune.jobs:TuneJob"
    step: Literal["tune"] = "tune"
    method: str
    """Name of the method, or path of its file."""
    source: str | None = None
    """Content of that file."""
    task: str
    forget: tuple[str, ...]
    seeds: tuple[int, ...]
    trials: int
    cap: int
    device: str
    key: str
    """Key of the tuning; a worker with other code, weights or judge would compute another key."""
    controls: dict[str, dict[str, list[Record]]]
    tables: dict[str, str] = {}
    """The files of per-image values of the controls in base64, by the hash in their records."""

    @property
    def label(self) -> str:
        """The method's name."""
        return Path(self.method).stem if self.method.endswith(".py") else self.method

    @property
    def name(self) -> str:
        """Title for users."""
        return f"{self.label} · tune"

    @property
    def product(self) -> Path:
        """Path of the tuning's file."""
        return tuning_place(self.task, self.label)

    def perform(self, store: Store, results: Path) -> None:
        """Tune the method here, from its file as sent if this machine has another or none."""
        method = with_source(self.method, self.source, store)
        performed(self.model_copy(update={"method": method}), store, results)

    def budget(self) -> Budget:
        """The budget to tune within."""
        task = registry.load_task(self.task)
        return Budget(task, self.forget, self.trials, self.cap, pick_device(self.device), self.seeds)


def finished_tuning(given: Budget, method: str, results: Path) -> Tuning | None:
    """The tuning on disk, if it has this budget, code and space; else None."""
    cls = registry.load_method(method)
    path = tuning_path(results, given.task.name, cls.name)
    found = read_tuning(path) if path.is_file() else None
    return found if found and found.key == tuning_key(given, cls) else None


def tune_one(
    given: Budget,
    method: str,
    controls: Anchored,
    tables: Mapping[str, bytes],
    store: Store,
    results: Path,
    told: Told = lambda line: None,
) -> Tuning:
    """Tune, write the file and delete the runs. Trials stay in the cache, so that more can be added."""
    cls = registry.load_method(method)
    folder = store.root / "tuning" / given.task.name / cls.name
    # separate per code and original: trials of others could not be reused
    runs = Runs(given, folder / "runs" / digest(tuning_key(given, cls))[:12], controls, tables)
    environment = {**describe_environment(given.device), "optuna": version("optuna")}
    with on_threads(1):  # whatever the number of processes: results depend on it in their last bits
        found = tuned(given, cls, folder, runs, anchors_of(controls), environment, told)
    try:
        found = write_tuning(found, results)
    except OSError as error:
        raise UserError(
            f"cannot write below {results} ({error.strerror}): name another folder with --results"
        ) from error
    shutil.rmtree(folder / "runs", ignore_errors=True)
    return found


def performed(job: TuneJob, store: Store, results: Path) -> None:
    """Do a tuning job; called by a worker."""
    given = job.budget()
    if tuning_key(given, registry.load_method(job.method)) != job.key:
        raise UserError(
            f"{job.label} would be tuned with other code, weights or judge here than asked for: install the same "
            "unlearnbench and the same methods on every machine"
        )
    tables = {hash: b64decode(text, validate=True) for hash, text in job.tables.items()}
    tune_one(given, job.method, job.controls, tables, store, results, tell)
