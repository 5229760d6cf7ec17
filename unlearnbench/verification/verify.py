"""Make a record anew from what it says, and tell metric by metric whether the same comes out."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench import registry
from unlearnbench.compare.record_diff import Difference, record_differences
from unlearnbench.compute.precision import Resources
from unlearnbench.data.concepts import build_concepts
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.hashing import state_hash
from unlearnbench.metric import Score
from unlearnbench.pipeline.attacks import attacked, repeatable_attacks
from unlearnbench.pipeline.cell import Cell, require
from unlearnbench.pipeline.fingerprint import drafted, weight_parts
from unlearnbench.pipeline.measuring import measure
from unlearnbench.pipeline.runner import run_cell
from unlearnbench.pipeline.scoring import metrics_for, score_record
from unlearnbench.pipeline.timing import timed_cost
from unlearnbench.pipeline.unlearning import loaded, unlearn
from unlearnbench.records.agreement import (
    EXACT,
    UNSAMPLED,
    Likeness,
    VerificationRow,
    compare_attacks,
    compare_values,
    judgements,
    likeness,
    outcomes,
    provenance,
    sampled_scores,
    whole_scores,
)
from unlearnbench.records.image_table import build_image_table, read_images, unreproduced
from unlearnbench.records.schema import Record
from unlearnbench.storage.store import Store, default_root
from unlearnbench.task import Plan, accepted
from unlearnbench.training import Diverged

if TYPE_CHECKING:
    import pandas as pd

    from unlearnbench.method import Method

CONTEXT = ("judge", "weights", "hyper-parameter", "code", "library", "device")
"""Differences that explain a disagreement, without being one."""


class Verified(NamedTuple):
    """What came of a verification."""

    likeness: Likeness
    context: list[Difference]
    """What was made with something else this time; judge and original weights first."""
    rows: list[VerificationRow]


def rebuilt(record: Record, device: str, method: str | None = None, weights: Path | None = None, **own: Any) -> Cell:
    """The cell that a record describes; `method` is the file of one that is not built in, `own` the task's settings."""
    cls = _method(record, method)
    task_class = registry.load_task(record.task)
    concepts = record.protocol.settings.get("concepts")
    task = task_class(
        record.forget,
        protocol=record.protocol.name,
        seed=record.seeds["unlearning"],
        device=device,
        weights=weights,
        concepts=build_concepts(concepts, "the record's concepts") if concepts else (),
        **accepted(task_class, **own),
    )
    if task.protocol.hash != record.protocol.hash:
        environment = record.environment
        version = (environment.get("packages") or {}).get("unlearnbench") or "unknown"
        raise UserError(
            f"protocol {record.protocol.name} of {record.task} changed since this record was made "
            f"({record.protocol.hash[:12]} then, {task.protocol.hash[:12]} now): verify it with unlearnbench {version}"
            + (f", commit {environment['commit'][:12]}" if environment.get("commit") else "")
        )
    if record.data not in (None, task.data_identity()):
        raise UserError(
            f"the prompts or photographs of {record.task} here are not those that the record was made with "
            f"({(task.data_identity() or 'none')[:12]} now, {record.data[:12]} then): give its --data"
        )
    said = record.method
    precision = record.environment.get("precision") or "float32"
    memory = record.environment.get("memory", [])
    compile = bool(record.environment.get("compile"))
    resources = Resources.checked({"float32": "fp32"}.get(precision, precision), memory, device, compile)
    settings = cls.configured(cls.current(said.settings))
    return Cell(settings, task, said.preset, said.overrides, said.selection, resources)


def _method(record: Record, file: str | None) -> type[Method]:
    name = record.method.name
    if file is None and name not in registry.methods():
        raise UserError(f"the record's method {name!r} is not known here: give its file with --method {name}.py")
    cls = registry.load_method(file or name)
    if cls.name != name:
        raise UserError(f"--method {file} is {cls.name}, the record is of {name}: give the file of {name}")
    return cls


def verify_record(record: Record, images: pd.DataFrame | None, cell: Cell, sample: float | None = None) -> Verified:
    """Unlearn, draw, judge and score anew in a folder that is thrown away, and compare.

    `images` are the record's per-image values. With `sample`, that share of the images is drawn anew and compared image
    by image; without, all of them, every score but times is compared, and every attack is tried again.
    """
    if images is None and sample is not None and record.scores:
        raise UserError("the record vouches for no per-image values to compare a sample with: leave out --sample")
    plan = cell.task.plan()
    hidden = images is not None and cell.task.unsafe and "prompt" not in images
    shown = [item._replace(prompt="") for item in plan] if hidden else plan
    if images is not None and _plan(images) != shown:
        raise UserError(
            "the per-image values beside the record are of other images or noise seeds than its protocol plans: "
            "restore them, or run its command again"
        )
    kept = None
    if images is not None and sample is not None and record.scores:
        places = choose_positions(images.group.tolist(), sample)
        plan, kept = [plan[i] for i in places], images.iloc[places].reset_index(drop=True)
    place = default_root() / "verify" if cell.task.unsafe else None  # where `purge` finds what a kill leaves behind
    if place:
        place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unlearnbench-verify-", dir=place) as folder:
        store, results = Store(Path(folder) / "store"), Path(folder) / "results"
        if kept is not None:
            anew, drawn = _sampled(cell, plan, store)
        else:
            anew = run_cell(cell, store, results)
            drawn = read_images(anew, results)
            anew = attacked(cell, anew, repeatable_attacks(record), store, results)
    anew = Record.model_validate(anew.model_dump(mode="json"))  # tuples become lists, as in the record
    kind = likeness(record, anew)
    rows = [*provenance(record, anew, kind), *outcomes(record, anew, sampled=kept is not None)]
    if record.scores and anew.scores:
        if kept is not None and drawn is not None:
            rows += sampled_scores(record, anew, kept, drawn, kind)
        else:
            rows += whole_scores(record, anew, kind)
        then = images if kept is None else kept
        if then is not None and drawn is not None:
            rows += judgements(then, drawn, kind)
        if kept is None:
            rows += compare_attacks(record, anew, kind)
    if images is not None:
        rows += [
            compare_values(name, record.scores[name].value, mean, EXACT, "by its own images")
            for name, mean in unreproduced(record, images).items()
        ]
    context = [row for row in record_differences(record, anew) if row.group in CONTEXT]
    return Verified(kind, sorted(context, key=_rank), rows)


def _rank(row: Difference) -> bool:
    return row.group != "judge" and (row.group, row.what) != ("weights", "original")


def choose_positions(groups: list[str], share: float) -> list[int]:
    """Positions of a share of each group's images, rounded up, spread evenly."""
    kept = []
    for group in dict.fromkeys(groups):
        places = [i for i, name in enumerate(groups) if name == group]
        count = math.ceil(round(share * len(places), 9))
        kept += [places[i * len(places) // count] for i in range(count)]
    return kept


def _plan(images: pd.DataFrame) -> list[Plan]:
    lacking = {*Plan._fields, "judged", "refused", "p_asked"} - set(Plan._field_defaults) - set(images)
    if lacking:
        raise UserError(f"the per-image values beside the record lack {', '.join(sorted(lacking))}: run it again")
    known = [name for name in Plan._fields if name in images]
    rows = zip(*(images[name].tolist() for name in known), strict=True)
    return [Plan(**dict(zip(known, row, strict=True))) for row in rows]


def _sampled(cell: Cell, plan: list[Plan], store: Store) -> tuple[Record, pd.DataFrame | None]:
    """The record again as far as these images go, and their table; what needs all images is missing in it."""
    metrics = metrics_for(cell.task)
    by_image = {name: metric for name, metric in metrics.items() if metric.side is not None or metric.axis == "cost"}
    draft = drafted(cell, metrics)
    try:
        require(cell)
        weights, facts = unlearn(cell)
        measured = measure(
            cell,
            lambda: loaded(cell, weights),
            lambda: cell.task.pretrained().eval(),
            by_image,
            plan,
            {},
            store,
            cost=timed_cost(cell, weights, facts["cost"], weight_parts(cell, draft), store, True),
            references=False,
        )
    except (Diverged, Unsupported) as error:
        status = "diverged" if isinstance(error, Diverged) else "skipped"
        return draft.model_copy(update={"status": status, "reason": str(error)}), None
    scores = {name: measured.scores.get(name, Score(None, 0, reason=UNSAMPLED)) for name in metrics}
    again = draft.model_copy(
        update={
            "scores": {name: score_record(metrics[name], score) for name, score in scores.items()},
            "weights": {**draft.weights, "unlearned": state_hash(weights)},
            "environment": facts["environment"],
        }
    )
    return again, build_image_table(plan, measured.outcome.verdict, metrics, scores)
