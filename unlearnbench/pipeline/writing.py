"""Write a run's record and the files beside it; keep what an earlier run left where it still holds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unlearnbench.compute.environment import describe_environment
from unlearnbench.errors import Unsupported, UserError, message
from unlearnbench.pipeline.cell_state import CellState
from unlearnbench.pipeline.fingerprint import model_parts
from unlearnbench.pipeline.measuring import Measurement
from unlearnbench.pipeline.sampling import sample_images, stored_images
from unlearnbench.pipeline.stored_weights import original_state
from unlearnbench.records.agreement import likeness, whole_scores
from unlearnbench.records.image_table import as_parquet
from unlearnbench.records.sample_grid import grid_rows, images_at, write_grid
from unlearnbench.records.schema import BESIDE, Record, read_record, write_record
from unlearnbench.reporting import phase, tell
from unlearnbench.storage.files import cannot_write, replace_file
from unlearnbench.storage.store import Store
from unlearnbench.training import Diverged


def write_result(state: CellState, record: Record, measured: Measurement, store: Store, force: bool = False) -> Record:
    """Write a record, its per-image values and its grid of samples; return the record that is on disk afterwards.

    A record of this cell that is there already stays, unless it is forced: it may have been made on another machine.
    """
    table, images = as_parquet(
        measured.plan,
        measured.outcome.verdict,
        state.metrics,
        measured.scores,
        prompts=state.shows_images,
        features=measured.outcome.forget_features if "training recipe" in state.cell.task.provides else None,
    )
    record = record.model_copy(update={"images": images})
    found, may_keep = state.found, state.prompts_as_asked and not force
    same = found is not None and found.result() == record.result()
    if found and may_keep and not same and found.status == "ok":
        tell(_why_kept(found, record, state.path))
        with explained_write_errors(store.root, "UNLEARNBENCH_CACHE"):
            write_record(record, _aside(state, store))
        return found
    with explained_write_errors(state.results):
        replace_file(state.path.with_suffix(".parquet"), table)
        _write_grid(state, record, measured, store)
        if found and may_keep and same:
            return found  # only times differ
        return write_record(with_attachments(record, state.path), state.path)


def measured_here(state: CellState, store: Store) -> Record | None:
    """What this machine measured of a cell whose record, made elsewhere with other digits, was kept; else None."""
    path = _aside(state, store)
    if state.found is None or not path.is_file():
        return None
    here = read_record(path)
    return None if here.result() == state.found.result() else here


def _aside(state: CellState, store: Store) -> Path:
    """The place in the store of the numbers measured here, where another record is kept."""
    return store.root / "measured" / f"{state.draft.key[:32]}.json"


def write_failure(state: CellState, error: Diverged | Unsupported, force: bool = False) -> Record:
    """Write the record of a run without a result, which has no files; return the record that is on disk afterwards."""
    status, step = ("diverged", error.step) if isinstance(error, Diverged) else ("skipped", None)
    found = state.found
    if found and found.status == "ok" and not force:
        tell(
            f"{state.draft.label()}: {status} here ({message(error)}); the record {state.path} is kept: "
            "--force replaces it"
        )
        return found
    with explained_write_errors(state.results):
        cell = state.cell
        surroundings = {**describe_environment(cell.task.device), **cell.resources.named()}
        changes = {"status": status, "step": step, "reason": message(error), "environment": surroundings}
        record = write_record(state.draft.model_copy(update=changes), state.path)
        for suffix in (".parquet", ".png"):
            state.path.with_suffix(suffix).unlink(missing_ok=True)  # of an earlier run that got further
        return record


def require_writable(folder: Path, remedy: str) -> None:
    """Refuse a folder that cannot be written, before the work; `remedy` is the option that names another."""
    with explained_write_errors(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # it has no name, so no other process can take it away
            pass


@contextmanager
def explained_write_errors(folder: Path, remedy: str = "--results") -> Iterator[None]:
    """Turn errors of the file system into one line that names the folder."""
    try:
        yield
    except OSError as error:
        raise UserError(cannot_write(folder, error, remedy)) from error


def _write_grid(state: CellState, record: Record, measured: Measurement, store: Store) -> None:
    """Draw the original's samples beside the unlearned model's; no picture where an unsafe task's may not be shown."""
    path = state.path.with_suffix(".png")
    if not state.shows_images:
        path.unlink(missing_ok=True)
    elif record.method.name != "original":
        cell = state.cell
        identity = {**model_parts(cell.task, original_state(cell.task)), "wrap": None}
        rows = [place for places in grid_rows(cell.task).values() for place in places]
        places = {place: place for place in rows}
        with phase("sample grid"):
            before = stored_images(cell, identity, measured.plan, store)
            if before is None:
                few = [measured.plan[i] for i in rows]
                before = sample_images(cell, cell.task.pretrained().eval(), identity, few, store)
                places = {place: number for number, place in enumerate(rows)}
        shown = images_at(before, list(places.values()))
        drawn = {i: shown[place] for i, place in places.items()}
        write_grid(path, cell.task, drawn, measured.samples, record.label())


def with_attachments(new: Record, path: Path) -> Record:
    """The record with attacks and trajectory of the one that it replaces, where they are of the same model and setting.

    The old record is read now, not before the run: attacks may have been added meanwhile.
    """
    old = read_record(path) if path.is_file() else None
    if old is None:
        return new
    kept = {name: getattr(old, name) for name in BESIDE} if _alike(old, new) else {}
    if old.attacks and not kept:
        tell(f"{new.label()}: attacks on the model before are left out: --attacks standard tries them on this one")
    return new.model_copy(update=kept)


def _alike(old: Record, new: Record) -> bool:
    """Whether two records are of the same model, protocol, task and judge."""
    same = {"task", "protocol", "forget", "data", "method", "judge", "weights", "engine_hash"}
    surroundings = ("device_type", "precision", "memory", "compile")
    return all(old.environment.get(name) == new.environment.get(name) for name in surroundings) and (
        old.model_dump(mode="json", include=same) == new.model_dump(mode="json", include=same)
    )


def _why_kept(then: Record, now: Record, path: Path) -> str:
    """Explain why a record is kept although this machine gives other digits."""
    apart = [
        f"{row.metric} {row.recorded:.5g} there, {row.anew:.5g} here"
        for row in whole_scores(then, now, likeness(then, now))
        if row.agrees is False and isinstance(row.recorded, float) and isinstance(row.anew, float)
    ]
    there, here = (
        f"{each.environment.get('device')}, {each.environment.get('threads')} threads" for each in (then, now)
    )
    what = f"differs in {'; '.join(apart)}" if apart else "is equal within what other surroundings change"
    return (
        f"{now.label()} seed {now.seeds['unlearning']}: made here ({here}) it {what}; the record {path}, made on "
        f"{there}, is kept with its attacks: --force replaces it"
    )
