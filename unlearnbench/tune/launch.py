"""Tune all methods, one after another or as jobs. The controls that anchor their scores are run first."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from unlearnbench import registry
from unlearnbench.compute.device import on_threads
from unlearnbench.hashing import digest
from unlearnbench.launch.driver import Left, Shown
from unlearnbench.launch.jobs import Cut, Work
from unlearnbench.launch.options import Where
from unlearnbench.launch.plan import cells_launched, launched
from unlearnbench.pipeline.request import SpecBuilder, source_of
from unlearnbench.records.image_table import reader
from unlearnbench.records.schema import read_record
from unlearnbench.reporting import tell
from unlearnbench.storage.store import Store
from unlearnbench.tune.jobs import TuneJob, tune_one
from unlearnbench.tune.search import PROTOCOL, Budget, Told, tuning_key
from unlearnbench.tune.trials import CONTROLS, Anchored, anchored_runs, control_seeds, require_gaps, tables_of


def tunings_launched(
    given: Budget, methods: Sequence[str], where: Where, store: Store, results: Path, shown: Shown
) -> tuple[list[Work], Left]:
    """Run the controls, then tune every method, as jobs; return the jobs and how they ended."""
    anchors = store.root / "tuning" / given.task.name / "anchors"
    builder = SpecBuilder(given.task, anchors / "results", given.device, PROTOCOL)
    named = [(name, registry.load_method(name)) for name in CONTROLS]
    specs = {
        forget: {
            name: [builder.spec(name, cls, forget, seed) for seed in control_seeds(given, name)] for name, cls in named
        }
        for forget in given.forget
    }
    cells = [spec for each in specs.values() for some in each.values() for spec in some]
    first, left = cells_launched(cells, [], Cut(), where, Store(anchors / "store"), anchors / "results", shown)
    if left.failed or left.unreached:
        return list(first), left
    controls: Anchored = {
        forget: {name: [read_record(spec.path(anchors / "results")) for spec in some] for name, some in each.items()}
        for forget, each in specs.items()
    }
    require_gaps(given, controls, reader(anchors / "results"))
    tables = tables_of(controls, anchors / "results")
    jobs = [job_of(given, name, controls, tables, where) for name in methods]
    return list(jobs), launched(jobs, jobs, where, store, results, shown)


def tuned_here(given: Budget, methods: Sequence[str], store: Store, results: Path, told: Told) -> None:
    """Run the controls and tune one method after another, in this process."""
    told("anchors")
    with on_threads(1):
        anchors = store.root / "tuning" / given.task.name / "anchors"
        controls = anchored_runs(given, anchors)
        tables = tables_of(controls, anchors / "results")
    for name in methods:
        tell(f"{tune_one(given, name, controls, tables, store, results, told).method}: tuned")


def job_of(given: Budget, name: str, controls: Anchored, tables: dict[str, bytes], where: Where) -> TuneJob:
    """The job that tunes one method."""
    cls = registry.load_method(name)
    file = Path(name).resolve() if cls.name not in registry.methods() else None
    key = tuning_key(given, cls)
    return TuneJob(
        id=digest(["tune", key])[:16],
        method=str(file) if file else cls.name,
        source=source_of(file) if file else None,
        task=given.task.name,
        forget=given.forget,
        seeds=given.seeds,
        trials=given.trials,
        cap=given.cap,
        device=given.device,
        key=key,
        controls=controls,
        tables={hash: b64encode(content).decode() for hash, content in tables.items()},
        threads=1,
        gpus=where.gpus,
    )
