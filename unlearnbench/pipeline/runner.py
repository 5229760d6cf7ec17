"""Run one cell: task -> model -> unlearn -> samples -> metrics -> record, each stage kept under a content key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from unlearnbench.compute.device import explained_device_errors
from unlearnbench.compute.environment import seeing
from unlearnbench.compute.precision import in_fitting_parts
from unlearnbench.errors import Unsupported
from unlearnbench.hashing import state_hash
from unlearnbench.method import can_resume
from unlearnbench.names import LOADED
from unlearnbench.pipeline.cell import Cell, require
from unlearnbench.pipeline.cell_state import CellState
from unlearnbench.pipeline.checkpoints import KIND, RunCheckpoints
from unlearnbench.pipeline.fingerprint import sample_parts, weight_parts, wraps
from unlearnbench.pipeline.measuring import Measurement, measure
from unlearnbench.pipeline.monitor import Watch
from unlearnbench.pipeline.precision_notes import tell_precision
from unlearnbench.pipeline.prompt_counts import count_prompts
from unlearnbench.pipeline.scoring import UNRELIABLE, score_record
from unlearnbench.pipeline.shipped import shipped_record
from unlearnbench.pipeline.stored_weights import stored_weights
from unlearnbench.pipeline.timing import timed_cost
from unlearnbench.pipeline.unlearning import loaded, unlearn
from unlearnbench.pipeline.writing import require_writable, write_failure, write_result
from unlearnbench.records.schema import Record
from unlearnbench.reporting import phase, tell
from unlearnbench.storage.store import Made, Store
from unlearnbench.training import CannotResume, Diverged, splitting


@explained_device_errors()
def run_cell(
    cell: Cell,
    store: Store,
    results: Path,
    force: bool = False,
    watch: Watch | None = None,
    replace: bool = False,
    baseline: bool = False,
) -> Record:
    """Unlearn, sample, judge, score and record one cell; return its record at once where nothing is missing.

    `watch` follows the unlearning, unless the weights are in the store already. `force` runs every stage again. A
    `baseline` is only compared with: its record will do, without weights in the store, and a record of the same run
    that is shipped with a checkout serves in every other folder, where it is copied to.
    Raises `UserError` before any work where a record of something else lies in this one's place, unless `force` or
    `replace` allows to replace it, and where a folder cannot be written.
    """
    state = CellState.of(cell, results)
    if not (force or replace):
        state.require_replaceable()
    if state.found and not (force or state.needs_run(store)):
        return state.found
    if baseline and not force and (known := state.found if state.whole else shipped_record(state)) is not None:
        return known
    _require_folders(state, store, force)
    tell_precision(cell)
    try:
        require(cell)
        weights, facts = unlearned(cell, state.draft, store, force, watch)
        parts = weight_parts(cell, state.draft)
        measured = measure(
            cell,
            lambda: loaded(cell, weights),
            lambda: cell.task.pretrained().eval(),
            state.metrics,
            cell.task.plan(),
            sample_parts(cell, weights),
            store,
            cost=timed_cost(cell, weights, facts["cost"], parts, store, force),
            force=force,
        )
    except (Diverged, Unsupported) as error:
        return write_failure(state, error, force)
    record = completed(state, weights, facts, measured)
    return write_result(state, record, measured, store, force)


def unlearned(cell: Cell, draft: Record, store: Store, force: bool = False, watch: Watch | None = None) -> Made:
    """The unlearned weights and what they cost, from the store or made.

    A method that can resume goes on at the step where an earlier process was stopped, except with `force`, and while it
    is watched: a trajectory needs every step.
    """
    parts = weight_parts(cell, draft)
    checkpoints = RunCheckpoints(store.folder(KIND, parts), cell.method, cell.task)

    def make() -> Made:
        if force:
            checkpoints.delete()
        if watch is not None or not can_resume(type(cell.method)):
            if checkpoints.found:
                tell(f"{cell.method.name} starts anew: only a run without a trajectory goes on where it was stopped")
            return fitting(watch)
        try:
            return fitting(None, checkpoints)
        except CannotResume as error:
            tell(f"{cell.method.name} starts anew: it cannot go on where it was stopped ({error})")
            checkpoints.delete()
            return fitting(None, checkpoints)

    def fitting(watch: Watch | None, checkpoints: RunCheckpoints | None = None) -> Made:
        with splitting():
            return in_fitting_parts(cell.method.name, lambda: unlearn(cell, watch, checkpoints))

    with phase("loading" if cell.method.name == LOADED else "unlearning"):
        try:
            made = stored_weights(cell, store, parts, make, force)
        except Diverged:
            checkpoints.delete()
            raise
        checkpoints.delete()
        return made


def completed(state: CellState, weights: dict[str, Tensor], facts: dict[str, Any], measured: Measurement) -> Record:
    """The record of a run that came to a result; marked unreliable where images are missing or no weight changed."""
    cell, draft, scores = state.cell, state.draft, measured.scores
    idle = facts["cost"]["trained_parameters"] == 0 and cell.method.name != "original" and not wraps(cell)
    gaps = any(score.missing > UNRELIABLE * score.n or (score.reason and score.n == 0) for score in scores.values())
    libraries = {"seeing": seeing()} if measured.outcome.witnessed else {}
    return draft.model_copy(
        update={
            "status": "unreliable" if gaps or idle else "ok",
            "reason": "the method changed no weight: look at its settings" if idle else None,
            "scores": {name: score_record(state.metrics[name], score) for name, score in scores.items()},
            "judge_error": measured.judge_error,
            "witness_error": measured.scorer_error,
            "weights": {**draft.weights, "unlearned": state_hash(weights)},
            "prompts": count_prompts(cell.task, measured.plan),
            "environment": {**facts["environment"], **libraries, **cell.notes},
            "created": facts["created"],
        }
    )


def finished_record(cell: Cell, results: Path) -> Record | None:
    """The cell's record, if it and all files beside it are there, whatever the store holds."""
    state = CellState.of(cell, results)
    return state.found if state.whole else None


def _require_folders(state: CellState, store: Store, force: bool) -> None:
    """Refuse folders that the run could not write; a store that holds the weights already may be read-only."""
    require_writable(state.results, "--results")
    if force or not state.has_weights(store):
        require_writable(store.root, "UNLEARNBENCH_CACHE")
