"""A run as it went: weights on the way, scored on noise that is kept for it, beside the result in the record."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from unlearnbench.compute.device import trim
from unlearnbench.compute.environment import describe_environment
from unlearnbench.data.wording import join_words
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.hashing import digest, seed_of, state_hash
from unlearnbench.metric import Score
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.measuring import measure
from unlearnbench.pipeline.monitor import Watch
from unlearnbench.pipeline.runner import run_cell
from unlearnbench.pipeline.scoring import metrics_for
from unlearnbench.pipeline.snapshots import Snapshot
from unlearnbench.pipeline.trackers import Tracker, Tracking
from unlearnbench.pipeline.unlearning import loaded, unlearn
from unlearnbench.records.schema import Record, write_record
from unlearnbench.records.trajectory import OTHER_WEIGHTS, HeldOut, PointRecord, SeriesRecord, TrajectoryRecord
from unlearnbench.reporting import span, tell, track
from unlearnbench.storage.store import Store
from unlearnbench.task import Plan, Protocol
from unlearnbench.training import Diverged

SCORED = ("ua", "ra", "ua_closed", "coherence")
"""What points are scored by, as far as the task's judge allows."""
FORGET_IMAGES, RETAIN_IMAGES = 50, 10
"""Of all that is forgotten together, and of each retained concept, for one point."""
DIGITS = 6
"""That noted values are kept with."""


def followed(
    cell: Cell, every: int | None, store: Store, results: Path, force: bool = False, tracking: Tracking | None = None
) -> Record:
    """The cell's record, as `run_cell` gives it, with a trajectory: a point `every` so many steps; None: no points.

    A finished run without one is unlearned anew for it, and its record keeps its weights and scores. Where that comes
    to other weights, as on a GPU in the last bits, the trajectory names them (`TrajectoryRecord.other_weights`). Values
    go to the tracker as they come; those of a trajectory that is there already, from the record.
    """
    tracker = _tracker(cell, tracking)
    root = store.root / ("verify" if cell.task.unsafe else "watched")  # where `purge` finds what a kill leaves behind
    try:
        with Watch(cell.task.device, every, root, tracker.log if tracker is not None else None) as watch:
            record = run_cell(cell, store, results, force, watch)
            if record.status == "skipped":
                return record
            if not watch.heard and _fits(record, cell, every):
                if tracker is not None and record.trajectory is not None:
                    _replay(record.trajectory, tracker)
                return record
            other = None if watch.heard else _again(cell, record, watch)
            made = {"trajectory": _trajectory(cell, watch, every, tracker, other), "revision": record.revision + 1}
            return write_record(record.model_copy(update=made), record.path(results))
    finally:
        if tracker is not None:
            tracker.close()


def _tracker(cell: Cell, tracking: Tracking | None) -> Tracker | None:
    if tracking is None:
        return None
    task, given = cell.task, sorted((cell.overrides or {}).items())
    label = "".join(f"+{key}={join_words(value)}" for key, value in given)
    preset = "" if cell.preset == "default" else f"@{cell.preset}"
    return tracking.begun(f"{task.name}/{task.forget}/{cell.method.name}{preset}{label}/seed-{task.seed}")


def _fits(record: Record, cell: Cell, every: int | None) -> bool:
    """Whether the record's trajectory is what was asked for."""
    kept = record.trajectory
    if kept is None or every is None:
        return kept is not None
    return kept.every == every and kept.protocol == held_out(cell)[2]


def _replay(trajectory: TrajectoryRecord, tracker: Tracker) -> None:
    for name, series in trajectory.watched.items():
        for step, value in zip(series.steps, series.values, strict=True):
            if value is not None:
                tracker.log(step, {name: value})
    for point in trajectory.points:
        tracker.log(point.step, _known(point.scores))


def _known(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if value is not None}


def _again(cell: Cell, record: Record, watch: Watch) -> str | None:
    """Unlearn for the trajectory alone; what this came to, where it is not the record's weights bit for bit."""
    who, then = f"{record.label()} seed {record.seeds['unlearning']}", record.weights["unlearned"]
    took = record.scores.get("unlearn_time")
    spent = "" if took is None or took.value is None else f", which took {span(took.value)} before"
    tell(f"{who} is finished without this trajectory: it is unlearned anew for it{spent}")
    found: str | None = None
    try:
        state, _ = unlearn(cell, watch)
        found = state_hash(state)
        now = f"other weights ({found[:12]} now, {(then or 'none')[:12]} then)"
    except Diverged as error:
        now = f"no weights ({error})"
    if found == then:
        return None
    tell(
        f"{who}: unlearned anew, it came to {now}, as may be on GPUs, other machines and with other threads: the "
        "trajectory is of this unlearning and says so, weights and scores of the record stay"
    )
    return found or "none, it diverged"


def held_out(cell: Cell) -> tuple[Cell, list[Plan], HeldOut]:
    """The cell with smaller chunks, its plan with fewer images and other noise, and what that differs in."""
    task = copy.copy(cell.task)
    protocol: Protocol = replace(task.protocol, chunk=min(task.protocol.chunk, FORGET_IMAGES))
    task.protocol = protocol
    plan = [item._replace(seed=seed_of("trajectory", item.seed) >> 32) for item in thin_plan(task.plan())]
    differs = {
        "noise": "held out: each image's seed is hashed anew",
        "forget_images": FORGET_IMAGES,
        "retain_images": RETAIN_IMAGES,
        "chunk": protocol.chunk,
    }
    hash = digest([cell.task.protocol.hash, differs])
    return replace(cell, task=task, notes={}), plan, HeldOut(hash=hash, differs=differs)


def thin_plan(plan: Sequence[Plan]) -> list[Plan]:
    """Images of both sides alone, spread evenly over what is asked for."""
    forget = [item for item in plan if item.group == "forget"]
    concepts = dict.fromkeys(item.concept for item in plan if item.group == "retain")
    kept = _spread(forget, FORGET_IMAGES)
    for concept in concepts:
        kept += _spread([item for item in plan if item.group == "retain" and item.concept == concept], RETAIN_IMAGES)
    return kept


def _spread(items: Sequence[Plan], most: int) -> list[Plan]:
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _trajectory(
    cell: Cell, watch: Watch, every: int | None, tracker: Tracker | None, other: str | None = None
) -> TrajectoryRecord:
    """Score what the watch kept, and put it together; `other` names the weights of an unlearning for this alone."""
    held, plan, protocol = held_out(cell)
    shots, points, n = watch.snapshots(), list[PointRecord](), dict[str, int]()
    model: Diffusion | None = None
    for shot in track(shots, len(shots), "trajectory"):
        state = shot.state()
        shot.path.unlink()
        if model is None:
            model = loaded(held, state)
        else:
            model.load_state_dict(state)
        scores = _scored(held, model, plan, shot, Store(watch.folder / "store"))
        n.update({name: score.n for name, score in scores.items()})
        values = {name: score.value for name, score in scores.items()}
        missing = max((score.missing for score in scores.values()), default=0)
        points.append(PointRecord(step=shot.step, seconds=round(shot.seconds, 6), scores=values, missing=missing))
        if tracker is not None:
            tracker.log(shot.step, _known(values))
        trim()
    surroundings = describe_environment(cell.task.device)
    made_with = {name: surroundings.get(name) for name in ("device", "threads", "commit")}
    made_with["torch"] = (surroundings.get("packages") or {}).get("torch")
    if other is not None:
        made_with[OTHER_WEIGHTS] = other
    return TrajectoryRecord(
        every=every,
        steps=watch.steps,
        protocol=protocol,
        n=n,
        points=tuple(points),
        watched={name: _series(series) for name, series in watch.series().items()},
        made_with=made_with,
    )


def _scored(cell: Cell, model: Diffusion, plan: list[Plan], shot: Snapshot, store: Store) -> dict[str, Score]:
    """Draw, judge and score one point; where samples are not finite, every score is missing."""
    known = metrics_for(cell.task)
    metrics = {name: known[name] for name in SCORED if name in known}
    try:
        measured = measure(
            cell,
            lambda: model,
            lambda: model,
            metrics,
            plan,
            {"step": shot.step},
            store,
            references=False,
            scorers=False,
        )
    except Diverged as error:
        asked = {name: sum(item.group == metric.side for item in plan) for name, metric in metrics.items()}
        return {name: Score(None, n, n, reason=str(error)) for name, n in asked.items()}
    return measured.scores


def _series(series: Sequence[tuple[int, float | None]]) -> SeriesRecord:
    rounded = [None if value is None else float(f"{value:.{DIGITS}g}") for _, value in series]
    return SeriesRecord(steps=tuple(step for step, _ in series), values=tuple(rounded))
