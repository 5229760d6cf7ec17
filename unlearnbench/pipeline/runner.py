"""run(method, task) -> Record: the arrow from task to record, every stage kept under a content key."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unlearnbench.compute.environment import seeing
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import Unsupported, UserError, message
from unlearnbench.hashing import state_hash
from unlearnbench.metric import Outcome
from unlearnbench.pipeline.cell import Cell, require
from unlearnbench.pipeline.fingerprint import drafted, model_parts, sample_parts, weight_parts, wraps
from unlearnbench.pipeline.judging import judged, observed, witnessed
from unlearnbench.pipeline.monitor import Watch
from unlearnbench.pipeline.sampling import draw
from unlearnbench.pipeline.scoring import measure, metrics_for, score_record
from unlearnbench.pipeline.unlearning import loaded, unlearn
from unlearnbench.records.agreement import Likeness, Row, likeness, whole_scores
from unlearnbench.records.identity import differences, identity
from unlearnbench.records.image_table import as_parquet
from unlearnbench.records.sample_grid import write_grid
from unlearnbench.records.schema import BESIDE, Record, read, write
from unlearnbench.reporting import tell
from unlearnbench.storage.files import cannot_write, replace_file
from unlearnbench.storage.store import Made, Store
from unlearnbench.training import Diverged

UNRELIABLE = 0.01
"""Share of missing images above which a cell is marked."""


def run(
    cell: Cell, store: Store, results: Path, force: bool = False, watch: Watch | None = None, replace: bool = False
) -> Record:
    """Unlearn, sample, judge, score and record one cell; answers at once where all of it is there already.

    `watch` hears the unlearning, where it is not done already. A record of something else that lies in the place of
    this one is replaced with `force` or `replace` alone, otherwise it raises `UserError` before any work.
    """
    metrics = metrics_for(cell.task)
    draft = drafted(cell, metrics)
    path = draft.path(results)
    if not (force or replace):
        require_replaceable(path, draft)
    found = _found(path, draft.key)
    parts = weight_parts(cell, draft)
    shown = cell.include_unsafe or not cell.task.unsafe
    as_asked = _as_asked(cell, path)
    if (
        found
        and not force
        and (found.status == "skipped" or (_whole(cell, found, path) and store.has("weights", parts)))
    ):
        return found
    _writable(results, "--out")
    if force or not store.has("weights", parts):  # a store that holds everything may be read-only
        _writable(store.root, "UNLEARNBENCH_CACHE")
    draft = draft.model_copy(update={"revision": _revision(path)})
    try:
        require(cell)
        original = cell.task.pretrained().eval()
        state, facts = unlearned(cell, draft, original, store, force, watch)
        model, plan, judge = loaded(cell, state), cell.task.plan(), cell.task.judge()
        samples, seen = observed(cell, judge, model, sample_parts(cell, state), plan, store, force)
    except (Diverged, Unsupported) as error:
        status, step = ("diverged", error.step) if isinstance(error, Diverged) else ("skipped", None)
        if found and found.status == "ok" and not force:
            tell(f"{draft.label()}: {status} here ({message(error)}); the record {path} is kept: --force replaces it")
            return found
        with _writing(results):
            record = write(draft.model_copy(update={"status": status, "step": step, "reason": message(error)}), path)
            for suffix in (".parquet", ".png"):
                path.with_suffix(suffix).unlink(missing_ok=True)  # of an earlier run that got further
            return record
    reference, real = judged(judge, cell.task.reference(), store), judged(judge, cell.task.floor(), store)
    testimony = witnessed(cell.task, samples, plan, store)
    about = {"task": cell.task, "model": model, "original": original, "cost": facts["cost"], "witnessed": testimony}
    outcome = Outcome.of(samples, plan, seen, reference, real, **about)
    scores = {name: measure(metric, outcome) for name, metric in metrics.items()}
    failure = seen.error or reference.error or real.error
    unheard = next((said.error for said in testimony.values() if said.error), None)
    idle = facts["cost"]["trained_parameters"] == 0 and cell.method.name != "original" and not wraps(cell)
    unreliable = any(
        score.missing > UNRELIABLE * score.n or (score.reason and score.n == 0) for score in scores.values()
    )
    record = draft.model_copy(
        update={
            "status": "unreliable" if unreliable or idle else "ok",
            "reason": "the method changed no weight: look at its settings" if idle else None,
            "scores": {name: score_record(metrics[name], score) for name, score in scores.items()},
            "judge_error": failure,
            "witness_error": unheard,
            "weights": {**draft.weights, "unlearned": state_hash(state)},
            "environment": {**facts["environment"], **({"seeing": seeing()} if testimony else {}), **cell.notes},
            "created": facts["created"],
        }
    )
    content, images = as_parquet(plan, outcome.verdict, metrics, scores, prompts=shown)
    record = record.model_copy(update={"images": images})
    same = found is not None and found.result() == record.result()
    if found and found.status == "ok" and as_asked and not force and not same:
        tell(_kept(found, record, path))
        return found
    with _writing(results):
        replace_file(path.with_suffix(".parquet"), content)
        if not shown:
            path.with_suffix(".png").unlink(missing_ok=True)
        elif record.method.name != "original":
            before = draw(cell, original, {**model_parts(cell.task, original.state_dict()), "wrap": None}, plan, store)
            write_grid(path.with_suffix(".png"), cell.task, before, samples, record.label())
        if found and same and not force and as_asked:
            return found  # made before, perhaps elsewhere: nothing is new but times
        kept = _beside(path, record)
        if not kept.get("attacks") and path.is_file() and read(path).attacks:
            tell(
                f"{record.label()}: attacks on the model before are left out: --attacks standard tries them on this one"
            )
        return write(record.model_copy(update=kept), path)


def require_replaceable(path: Path, draft: Record) -> None:
    """Refuse to replace a record of something else, such as of other code or another original; says what differs.

    One that diverged or was skipped holds no result, and may be replaced. A metric's code is no difference: its score
    is made anew from the images.
    """
    old = read(path) if path.is_file() else None
    if old is None or old.key == draft.key or old.status in ("diverged", "skipped"):
        return
    if apart := differences(identity(old), identity(draft), ", now "):
        raise UserError(
            f"{path} was made otherwise, it differs in {' and '.join(apart)}: --force replaces it, "
            "--out with another folder keeps both"
        )


def unlearned(
    cell: Cell, draft: Record, original: Diffusion, store: Store, force: bool = False, watch: Watch | None = None
) -> Made:
    """The unlearned weights and what they cost, from the store or made."""
    return store.stage("weights", weight_parts(cell, draft), lambda: unlearn(cell, original, watch), force)


def finished(cell: Cell, results: Path) -> Record | None:
    """The cell's record, where all that a run would make of it lies there already, whatever the store holds."""
    draft = drafted(cell, metrics_for(cell.task))
    path = draft.path(results)
    found = _found(path, draft.key)
    return found if found and (found.status == "skipped" or _whole(cell, found, path)) else None


def _whole(cell: Cell, record: Record, path: Path) -> bool:
    """Whether the files that belong beside a record are there, as they were asked for."""
    picture = (cell.include_unsafe or not cell.task.unsafe) and record.method.name != "original"
    wanted = [".parquet"] * (record.images is not None)
    wanted += [".png"] * (picture and record.status in ("ok", "unreliable"))
    return _as_asked(cell, path) and all(path.with_suffix(suffix).is_file() for suffix in wanted)


def _as_asked(cell: Cell, path: Path) -> bool:
    """Whether the per-image values of an unsafe task show prompts just where they may."""
    return not cell.task.unsafe or _has_prompts(path) == cell.include_unsafe


def _kept(then: Record, now: Record, path: Path) -> str:
    """Why a record stays that the same run does not give here to the last bit."""
    kind = likeness(then, now)
    apart = [f"{row.metric} {row.recorded:.5g} there, {row.anew:.5g} here" for row in _apart(then, now, kind)]
    places = [f"{each.environment.get('device')}, {each.environment.get('threads')} threads" for each in (then, now)]
    what = f"differs in {'; '.join(apart)}" if apart else "is equal within what other surroundings change"
    return (
        f"{now.label()} seed {now.seeds['unlearning']}: made here ({places[1]}) it {what}; the record {path}, made on "
        f"{places[0]}, is kept with its attacks: --force replaces it"
    )


def _apart(then: Record, now: Record, kind: Likeness) -> Iterator[Row]:
    for row in whole_scores(then, now, kind):
        if row.agrees is False and isinstance(row.recorded, float) and isinstance(row.anew, float):
            yield row


def _found(path: Path, key: str) -> Record | None:
    record = read(path) if path.is_file() else None
    return record if record and record.key == key else None


def _revision(path: Path) -> int:
    return read(path).revision + 1 if path.is_file() else 1


def _beside(path: Path, new: Record) -> dict[str, Any]:
    """Attacks and trajectory of the record before, where it was of the same model, protocol, task and judge."""
    old = read(path) if path.is_file() else None
    same = {"task", "protocol", "forget", "data", "method", "judge", "weights", "engine_hash"}
    if old is None or _kind(old) != _kind(new):
        return {}
    alike = old.model_dump(mode="json", include=same) == new.model_dump(mode="json", include=same)
    return {name: getattr(old, name) for name in BESIDE} if alike else {}


def _kind(record: Record) -> list[Any]:
    return [record.environment.get(name) for name in ("device_type", "precision", "memory", "compile")]


def _has_prompts(path: Path) -> bool:
    """Whether the per-image values beside a record say what was asked for."""
    import pyarrow.parquet as pq

    path = path.with_suffix(".parquet")
    return path.is_file() and "prompt" in pq.read_schema(path).names


def _writable(folder: Path, remedy: str) -> None:
    """Find out before the work, not after it."""
    with _writing(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # of no name that another process could take away
            pass


@contextmanager
def _writing(folder: Path, remedy: str = "--out") -> Iterator[None]:
    """Tell in one line that a folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(cannot_write(folder, error, remedy)) from error
