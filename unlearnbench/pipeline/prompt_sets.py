"""Draw and score the user's own prompts, paired with the original's images; the protocol's numbers stay as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearnbench.data.prompt_sets import CONCEPT, PromptFile, group_of, own_seed
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest, state_hash
from unlearnbench.metric import FeatureMetric, Metric, Score
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.code_hashes import metric_code
from unlearnbench.pipeline.fingerprint import drafted, model_parts, sample_parts
from unlearnbench.pipeline.measuring import measure
from unlearnbench.pipeline.runner import unlearned
from unlearnbench.pipeline.scoring import metrics_for, score_record
from unlearnbench.pipeline.stored_weights import original_state
from unlearnbench.pipeline.unlearning import loaded
from unlearnbench.records.prompt_sets import PairedScore, PromptGroupRecord, PromptSetRecord
from unlearnbench.records.schema import Record, write_record
from unlearnbench.reporting import tell
from unlearnbench.statistics import paired_images
from unlearnbench.storage.store import Store
from unlearnbench.task import Plan

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from unlearnbench.diffusion.model import Diffusion

UNLABELLED = "not every prompt names a concept that the judge knows: add a column `concept`"


def with_prompt_sets(cell: Cell, record: Record, store: Store, results: Path, force: bool = False) -> Record:
    """The record with scores on the cell's prompt files; those that it has already stay."""
    sets = list(cell.prompts) if force else missing_prompt_sets(cell, record)
    if not sets or record.status not in ("ok", "unreliable"):
        return record
    for file in sets:
        _require_replaceable(record, file, force)
    weights, _ = unlearned(cell, drafted(cell, metrics_for(cell.task)), store)
    if state_hash(weights) != record.weights["unlearned"]:
        raise UserError(
            f"{record.label()}: its weights were made anew and are not those of its record ({record.place()}): run it "
            "with --force first"
        )
    revision = record.revision + 1
    for file in sets:
        tell(f"prompts of {file.path.name}")
        found = {
            **record.prompt_sets,
            file.name: _scored_set(cell, record, file, weights, store),
        }
        changes = {"prompt_sets": dict(sorted(found.items())), "revision": revision}
        record = write_record(record.model_copy(update=changes), record.path(results))
    return record


def missing_prompt_sets(cell: Cell, record: Record) -> list[PromptFile]:
    """The cell's prompt files that the record has no scores on, as they would be made now."""
    if record.status not in ("ok", "unreliable"):
        return []
    have = {name: found.key for name, found in record.prompt_sets.items()}
    return [file for file in cell.prompts if have.get(file.name) != _key(cell, record, file)]


def _require_replaceable(record: Record, file: PromptFile, force: bool) -> None:
    old = record.prompt_sets.get(file.name)
    if old is not None and old.sha256 != file.sha256 and not force:
        raise UserError(
            f"{record.label()} seed {record.seeds['unlearning']}: its scores on {file.name} are of another content of "
            f"{file.path.name} ({old.sha256[:8]}, now {file.sha256[:8]}): rename the file to keep both, --force "
            "replaces them"
        )


def _key(cell: Cell, record: Record, file: PromptFile) -> str:
    codes = {name: metric_code(metric) for name, metric in metrics_for(cell.task, [_example(file)]).items()}
    about = record.model_dump(mode="json", include={"task", "forget", "judge", "witnesses", "weights", "engine_hash"})
    protocol = {name: value for name, value in record.protocol.settings.items() if name != "name"}
    more = [cell.task.device, cell.resources.named(), sample_parts(cell, {})]
    return digest([file.side, file.sha256, about, protocol, codes, more])


def _example(file: PromptFile) -> Plan:
    return Plan(_side(file), "", 0, 0, "any")


def _side(file: PromptFile) -> str:
    """The group whose metrics score a file: attacks ask for what is forgotten."""
    return "retain" if file.side == "retain" else "forget"


def require_drawable(cell: Cell) -> None:
    """Refuse prompt files with a row that the cell's task cannot draw or judge; the error names file and row."""
    for file in cell.prompts:
        plan_of(cell, file)


def plan_of(cell: Cell, file: PromptFile) -> dict[str, list[Plan]]:
    """The images of a prompt file, by group, in the order of its rows."""
    task: Any = cell.task
    side, seen, groups = _side(file), Counter[str](), dict[str, list[Plan]]()
    for row in file.rows():
        number, seed = seen[row.prompt], row.seed
        seen[row.prompt] += 1
        if seed < 0:
            seed = own_seed(task.protocol.sampling_seed, row.prompt, number)
        try:
            asked = task.asked_in(row.prompt, side, row.cells.get(CONCEPT, "").strip())
        except UserError as error:
            raise UserError(f"{file.path}, row {row.number}: {error}") from error
        plan = Plan(side, asked.concept, asked.label, seed, row.prompt, asked.other, row.guidance)
        groups.setdefault(group_of(file, row), []).append(plan)
    return groups


def _scored_set(
    cell: Cell, record: Record, file: PromptFile, weights: dict[str, Tensor], store: Store
) -> PromptSetRecord:
    groups, not_scored = {}, dict[str, str]()
    plans = plan_of(cell, file)
    identity, plain = sample_parts(cell, weights), cell.method.name == "original"
    before_identity = {} if plain else {**model_parts(cell.task, original_state(cell.task)), "wrap": None}

    def model() -> Diffusion:
        return loaded(cell, weights)

    def original() -> Diffusion:
        return cell.task.pretrained().eval()

    for name, plan in plans.items():
        metrics, left_out = _applicable(cell, plan)
        not_scored |= {metric: why for metric, why in left_out.items()}
        found = measure(cell, model, original, metrics, plan, identity, store, references=False).scores
        before: Mapping[str, Score] = {}
        if not plain:
            before = measure(cell, original, original, metrics, plan, before_identity, store, references=False).scores
        scores = {metric: _paired(metrics[metric], score, before.get(metric)) for metric, score in found.items()}
        groups[name] = PromptGroupRecord(prompts=len(plan), scores=scores)
    return PromptSetRecord(
        side=file.side,
        file=file.path.name,
        sha256=file.sha256,
        groups=groups,
        not_scored=not_scored,
        key=_key(cell, record, file),
    )


def _applicable(cell: Cell, plan: list[Plan]) -> tuple[dict[str, Metric], dict[str, str]]:
    """The metrics that need these images and prompts alone; why others are left out."""
    kept, left_out = {}, {}
    for name, metric in metrics_for(cell.task, plan).items():
        if metric.axis == "cost":
            continue
        if isinstance(metric, FeatureMetric) or metric.judge_needs:
            left_out[name] = "it is for the protocol's images"
        elif not metric.roles() and any(item.label < 0 for item in plan):
            left_out[name] = UNLABELLED
        else:
            kept[name] = metric
    return kept, left_out


def _paired(metric: Metric, score: Score, before: Score | None) -> PairedScore:
    difference = interval = None
    if before is not None and score.per_image is not None and before.per_image is not None:
        apart = score.per_image - before.per_image
        difference = float(np.nanmean(apart)) if not np.isnan(apart).all() else None
        interval = paired_images(score.per_image, before.per_image)
    return PairedScore(
        score=score_record(metric, score),
        original=None if before is None else before.value,
        difference=difference,
        interval=interval,
    )
