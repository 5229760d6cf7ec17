"""run(method, task) -> Record: the arrow from task to record, every stage kept under a content key."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from unlearnbench.agreement import Likeness, Row, likeness, whole_scores
from unlearnbench.environment import describe, seeing
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.grid import write_grid
from unlearnbench.hashing import digest, source_hash, state_hash
from unlearnbench.judges.witness import Witness
from unlearnbench.method import Method
from unlearnbench.metric import Metric, Outcome
from unlearnbench.perimage import as_parquet
from unlearnbench.progress import tell
from unlearnbench.record import (
    BESIDE,
    JudgeRecord,
    MethodRecord,
    ProtocolRecord,
    Record,
    WitnessRecord,
    read,
    replace_file,
    write,
)
from unlearnbench.samples import draw, judged, observed, witnessed
from unlearnbench.stages import (
    Cell,
    engine_hash,
    loaded,
    measure,
    metric_code,
    metrics_for,
    now,
    require,
    score_record,
    unlearn,
)
from unlearnbench.store import Store, cannot_write
from unlearnbench.training import Diverged
from unlearnbench.watching import Watch

UNRELIABLE = 0.01
"""Share of missing images above which a cell is marked."""
KEYED = 3
"""Schema that keys are of: what it gained since are attacks, which have keys of their own, and trajectories."""


def run(cell: Cell, store: Store, results: Path, force: bool = False, watch: Watch | None = None) -> Record:
    """Unlearn, sample, judge, score and record one cell; answers at once where all of it is there already.

    `watch` hears the unlearning, where it is not done already.
    """
    metrics = metrics_for(cell.task)
    draft = drafted(cell, metrics)
    path = draft.path(results)
    found = _found(path, draft.key)
    parts = weight_parts(cell, draft)
    shown = cell.include_unsafe or not cell.task.unsafe
    as_asked = not cell.task.unsafe or _has_prompts(path) == shown
    whole = found is not None and _whole(path, found, shown)
    if found and not force and (found.status == "skipped" or (as_asked and whole and store.has("weights", parts))):
        return found
    _writable(results, "--out")
    if force or not store.has("weights", parts):  # a store that holds everything may be read-only
        _writable(store.root, "UNLEARNBENCH_CACHE")
    draft = draft.model_copy(update={"revision": _revision(path)})
    try:
        require(cell)
        original = cell.task.pretrained().eval()
        state, facts = store.stage("weights", parts, lambda: unlearn(cell, original, watch), force)
        model, plan, judge = loaded(cell, state), cell.task.plan(), cell.task.judge()
        samples, seen = observed(cell, judge, model, sample_parts(cell, state), plan, store, force)
    except (Diverged, Unsupported) as error:
        status, step = ("diverged", error.step) if isinstance(error, Diverged) else ("skipped", None)
        if found and found.status == "ok" and not force:
            tell(f"{draft.label()}: {status} here ({error}); the record {path} is kept: --force replaces it")
            return found
        with _writing(results):
            record = write(draft.model_copy(update={"status": status, "step": step, "reason": str(error)}), path)
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
            before = draw(cell, original, {"weights": state_hash(original.state_dict()), "wrap": None}, plan, store)
            write_grid(path.with_suffix(".png"), cell.task, before, samples, record.label())
        if found and same and not force and as_asked:
            return found  # made before, perhaps elsewhere: nothing is new but times
        kept = _beside(path, record)
        if not kept.get("attacks") and path.is_file() and read(path).attacks:
            tell(
                f"{record.label()}: attacks on the model before are left out: --attacks standard tries them on this one"
            )
        return write(record.model_copy(update=kept), path)


def _whole(path: Path, record: Record, shown: bool) -> bool:
    """Whether the files that belong beside a record are there."""
    picture = shown and record.method.name != "original" and record.status in ("ok", "unreliable")
    wanted = [".parquet"] * (record.images is not None) + [".png"] * picture
    return all(path.with_suffix(suffix).is_file() for suffix in wanted)


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


# ---- keys ----------------------------------------------------------------------------------------------------------


def drafted(cell: Cell, metrics: Mapping[str, Metric]) -> Record:
    """The record's identity, before anything is run."""
    task, method = cell.task, cell.method
    judge = task.judge()
    original, pretraining = task.pretrained_identity()
    record = Record(
        key="",
        task=task.name,
        protocol=ProtocolRecord(name=task.protocol.name, hash=task.protocol.hash, settings=asdict(task.protocol)),
        forget=task.forget,
        method=MethodRecord(
            name=method.name,
            division=cell.division,
            selection=cell.selection,
            preset=cell.preset,
            overrides=dict(cell.overrides or {}),
            settings=method.settings(),
            requires=tuple(sorted(method.requires)),
            code_hash=source_hash(method.sources()),
        ),
        data=task.data_identity(),
        seeds={"pretraining": pretraining, "unlearning": task.seed, "sampling": task.protocol.sampling_seed},
        status="ok",
        scores={},
        judge=JudgeRecord(name=judge.name, version=judge.version, hash=judge.hash, threshold=judge.threshold),
        witnesses={role: _witness(witness) for role, witness in task.witnesses().items()},
        weights={"original": original, "unlearned": None},
        engine_hash=engine_hash(type(task)),
        environment={**describe(task.device), **cell.resources.named()},
        created=now(),
    )
    volatile = {"key", "environment", "created", "content_hash", "revision", "schema_version", *BESIDE}
    codes = {name: metric_code(metric) for name, metric in metrics.items()}
    savings = [cell.resources.named()] if cell.resources.named() else []
    about = {**record.model_dump(mode="json", exclude=volatile), "schema_version": KEYED}
    key = digest([about, codes, task.device, *savings])
    return record.model_copy(update={"key": key})


def _witness(witness: Witness) -> WitnessRecord:
    threshold = None if math.isnan(witness.threshold) else witness.threshold
    who = {name: getattr(witness, name) for name in ("name", "version", "hash", "columns")}
    return WitnessRecord(**who, threshold=threshold)


def weight_parts(cell: Cell, draft: Record) -> dict[str, Any]:
    """What unlearned weights are kept under."""
    method = draft.method.model_dump(mode="json", include={"name", "settings", "code_hash"})
    return {
        "method": method,
        "task": draft.task,
        "forget": draft.forget,
        "seed": cell.task.seed,
        "original": draft.weights["original"],
        "sampler": draft.protocol.settings["sampler"],  # methods that sample use it
        "engine": draft.engine_hash,
        "device": cell.task.device,
        **_own_concepts(draft.protocol.settings),
        **cell.resources.named(),
    }


def sample_parts(cell: Cell, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What samples depend on besides the protocol: the weights, and method and concept where it wraps the model."""
    method = cell.method
    about = [method.name, method.settings(), source_hash(method.sources()), cell.task.forget] if wraps(cell) else None
    own = _own_concepts(asdict(cell.task.protocol)) if wraps(cell) else {}
    return {"weights": state_hash(state), "wrap": about, **own}


def _own_concepts(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A user's own, for keys: the name of a concept file does not say what is in it."""
    return {"concepts": protocol["concepts"]} if protocol.get("concepts") else {}


def wraps(cell: Cell) -> bool:
    """Whether the method acts beside the weights too, such as on guidance."""
    return type(cell.method).wrap is not Method.wrap


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
