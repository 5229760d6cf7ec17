"""Run the cells of a request: one by one in this process, or as jobs of a launcher."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from unlearnbench.compute.device import on_threads, pick_device
from unlearnbench.errors import Unsupported, UserError, message, one_line
from unlearnbench.launch.driver import Left, Shown
from unlearnbench.launch.jobs import Cut, Job
from unlearnbench.launch.options import Where
from unlearnbench.launch.plan import (
    cells_launched,
    require_attackable,
    require_fitting_cells,
    require_replaceable_cells,
)
from unlearnbench.pipeline import runner
from unlearnbench.pipeline.cell import require
from unlearnbench.pipeline.cell_state import CellState
from unlearnbench.pipeline.recording import record_cell
from unlearnbench.pipeline.request import Cells, RunRequest
from unlearnbench.pipeline.shipped import copy_shipped_anchors, shipped_record
from unlearnbench.pipeline.spec import Spec
from unlearnbench.pipeline.writing import measured_here
from unlearnbench.records.schema import Record, read_record
from unlearnbench.storage.store import Store


@dataclass(frozen=True)
class PreparedRun:
    """A request that was checked as far as that is possible before anything is run."""

    request: RunRequest
    where: Where | None
    """The launcher; None: this process."""
    device: str
    """cpu or cuda."""
    cells: Cells
    cut: Cut

    @classmethod
    def of(
        cls, request: RunRequest, told: Callable[[str], None] = lambda line: None, for_card: bool = False
    ) -> PreparedRun:
        """Check launcher, device, methods, concepts and settings; `told` hears what `method="all"` leaves out.

        Where the task can host none of the methods, nothing will be compared, and the original has no cell.

        Raises `UserError` at the first value that does not fit.
        """
        where = Where.of(request)
        device = where.device if where and where.device else pick_device(request.device)
        cut = Cut.of(request, where is not None)
        cells = request.cells(device, told, for_card)
        if not any(can_be_hosted(spec) for spec in cells.asked):
            cells = cells._replace(baseline=[])
        return cls(request, where, device, cells, cut)


class RunsEnded(NamedTuple):
    """What came of a request's cells."""

    baseline: list[Record]
    """The original's; none where the task can host no method that was asked for."""
    records: list[Record]
    """Of the cells that were asked for, without those that failed."""
    failed: list[str]
    """For each cell that failed, which and why."""
    here: dict[Path, Record]
    """By place: what this machine measured where another record of the same run, with other digits, is kept."""

    @property
    def scored(self) -> bool:
        """Whether any cell that was asked for came to a result: the others diverged, were skipped or failed."""
        return any(record.status in ("ok", "unreliable") for record in self.records)


class JobsEnded(NamedTuple):
    """What came of a request's jobs."""

    runs: RunsEnded
    jobs: list[Job]
    """Those that were still to do."""
    left: Left


def run_here(prepared: PreparedRun, begin: Callable[[str], None] = lambda title: None) -> RunsEnded:
    """Run one cell after another in this process; `begin` hears the title of each before it is run.

    A cell that fails does not keep the others from being run; if it is the only one, its error is raised.
    """
    request, cells, results = prepared.request, prepared.cells, prepared.request.results
    store, attacks, tracking = Store(), request.attack_specs(), request.tracking()
    require_attackable(cells.asked, attacks)
    require_fitting_cells(cells.asked, results, request.force)
    if not request.force:
        require_replaceable_cells([*cells.baseline, *cells.asked], results, attacks)
    ended = RunsEnded([], [], [], {})
    with on_threads(request.threads):
        for spec in cells.baseline:
            begin(spec.title)
            ended.baseline.append(runner.run_cell(spec.cell(), store, results, replace=request.force, baseline=True))
            if here := measured_here(CellState.of(spec.cell(), results), store):
                ended.here[spec.place()] = here
        for spec in cells.asked:
            begin(spec.title)
            try:
                record = record_cell(
                    spec.cell(),
                    store,
                    results,
                    attacks=attacks,
                    every=request.eval_every,
                    tracking=tracking,
                    force=request.force,
                )
            except (Exception, SystemExit) as error:
                if len(cells.asked) == 1 or os.environ.get("UNLEARNBENCH_DEBUG"):
                    raise
                reason = message(error) if isinstance(error, UserError) else one_line(error)
                ended.failed.append(f"{spec.title}: {reason}")
            else:
                ended.records.append(record)
                copy_shipped_anchors(record, results)
                if here := measured_here(CellState.of(spec.cell(), results), store):
                    ended.here[spec.place()] = here
    return ended


def run_as_jobs(prepared: PreparedRun, where: Where, shown: Shown = lambda *about: None) -> JobsEnded:
    """Run the cells as jobs of a launcher; `shown` is called at every look at them.

    Shipped controls serve as they do for runs in this process, and what the workers measured stands beside a record
    with other digits, where this process sees the same store.
    """
    results, (baseline, asked), store = prepared.request.results, prepared.cells, Store()
    if not prepared.request.force:
        for spec in baseline:
            shipped_record(CellState.of(spec.cell(), results))
    jobs, left = cells_launched(asked, baseline, prepared.cut, where, store, results, shown)
    undone = {str(job.product) for job in jobs if job.id not in left.results or left.results[job.id].state != "done"}
    done = RunsEnded([], [], [], {})
    for specs, records in ((baseline, done.baseline), (asked, done.records)):
        for spec in (spec for spec in specs if str(spec.place()) not in undone):
            records.append(read_record(spec.path(results)))
            if here := measured_here(CellState.of(spec.cell(), results), store):
                done.here[spec.place()] = here
    for record in done.records:
        copy_shipped_anchors(record, results)
    titles = {job.id: job.name for job in jobs}
    done.failed.extend(f"{titles[result.id]}: {result.reason}" for result in left.failed)
    return JobsEnded(done, jobs, left)


def can_be_hosted(spec: Spec) -> bool:
    """Whether the task has what the method needs, as far as that can be told without the task's files."""
    try:
        require(spec.model_copy(update={"device": "cpu"}).cell())  # a driver may have no card
    except Unsupported:
        return False
    except UserError:
        return True  # the run says what is missing
    return True
