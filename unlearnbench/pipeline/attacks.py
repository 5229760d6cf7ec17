"""Attack what a finished run left: each attack is a stage of its own, kept in the store and in the run's record."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from unlearnbench import registry
from unlearnbench.attacks.base import STANDARD, Attack
from unlearnbench.attacks.search import arena
from unlearnbench.attacks.spec import AttackSpec, standard_first
from unlearnbench.compute.device import exact, trim
from unlearnbench.compute.environment import describe_environment
from unlearnbench.errors import Unsupported, UserError, unknown
from unlearnbench.hashing import digest, file_hash, state_hash
from unlearnbench.metric import Outcome, Score
from unlearnbench.pipeline.cell import Cell, refused
from unlearnbench.pipeline.code_hashes import engine_hash, method_code, metric_code
from unlearnbench.pipeline.fingerprint import drafted, sample_parts
from unlearnbench.pipeline.runner import unlearned
from unlearnbench.pipeline.scoring import UNRELIABLE, metrics_for
from unlearnbench.pipeline.unlearning import loaded
from unlearnbench.records.identity import attacked_by
from unlearnbench.records.lineage import lineage
from unlearnbench.records.schema import AttackRecord, Record, write_record
from unlearnbench.reporting import tell
from unlearnbench.storage.store import Made, Store
from unlearnbench.task import Task
from unlearnbench.training import splitting


def parse_attacks(text: str, budget: int | None = None) -> list[AttackSpec]:
    """The attacks of a comma-separated list of labels, in which `standard` stands for the fixed ensemble.

    `budget` holds for all of them. Raises `UserError` where an attack, a variant or a budget is none.
    """
    if budget is not None and budget < 0:
        raise UserError(f"--budget {budget} is below 0: give 0, which searches nothing, or more")
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UserError("--attacks is empty: give standard, or names such as relearn,latent_probe@0.9")
    labels = dict.fromkeys(label for word in words for label in (STANDARD if word == "standard" else (word,)))
    return list(dict.fromkeys(_with_budget(_known(label), budget) for label in labels))


def attacks_of(labels: Sequence[str]) -> list[AttackSpec]:
    """The attacks of these labels, none where there are none; each must be known here."""
    return [_known(label) for label in labels]


def repeatable_attacks(record: Record) -> list[AttackSpec]:
    """The attacks of a record that are known here."""
    known = registry.load_attacks()
    every = [AttackSpec.parse(label) for label in record.attacks]
    return [spec for spec in every if spec.name in known and spec.variant in ("", *known[spec.name].offered())]


def _known(label: str) -> AttackSpec:
    spec, known = AttackSpec.parse(label), registry.load_attacks()
    if spec.name not in known:
        raise unknown("attack", spec.name, [*known, "standard"])
    if "@" in label:
        known[spec.name].require_variant(spec.variant)
    if spec.label != label:
        raise UserError(f"{label!r} names no attack: write {spec.base}, or {spec.base}+budget=10 with a whole number")
    return spec


def require_attack_settings(specs: Sequence[AttackSpec], task: type[Task]) -> None:
    """Refuse attacks that have no settings for a task."""
    for spec in specs:
        registry.load_attacks()[spec.name].configured(spec.variant, task)


def require_attack_files(specs: Sequence[AttackSpec], task: Task) -> None:
    """Refuse attacks that lack a file, before anything is run."""
    for spec in specs:
        registry.load_attacks()[spec.name].configured(spec.variant, task).require_files(task)


class PlannedAttack(NamedTuple):
    """What bounds an attack before it is tried."""

    targets: int
    """At most: a run has fewer where it draws fewer forget samples."""
    budget: int | None
    """What the user allows to spend on a target; None: the attack's own schedule."""
    unit: str
    """What is spent."""


def planned_attacks(cell: Cell, asked: Sequence[AttackSpec]) -> list[PlannedAttack]:
    """What would be tried on a cell, without the attacks that do not work on its task."""
    attacks = [(spec, _configured(cell, spec)) for spec in asked]
    return [
        PlannedAttack(attack.targets, spec.budget, attack.spends)
        for spec, attack in attacks
        if not _known_as_unaddressed(attack, cell.task)
    ]


def _known_as_unaddressed(attack: Attack, task: Task) -> bool:
    """Whether an attack does not work on a task, as far as that can be told without the task's files."""
    try:
        return attack.unaddressed(task) is not None
    except UserError:
        return False  # the tokenizers are not there yet


def _with_budget(spec: AttackSpec, budget: int | None) -> AttackSpec:
    if None not in (spec.budget, budget) and spec.budget != budget:
        raise UserError(f"--budget {budget} contradicts {spec.label}: leave one of the budgets out")
    return spec if budget is None else spec._replace(budget=budget)


def missing_attacks(cell: Cell, record: Record, asked: Sequence[AttackSpec]) -> list[AttackSpec]:
    """Which attacks the record does not have yet, as they would be made now; unreliable ones are tried again."""
    if record.status not in ("ok", "unreliable"):
        return []
    have = {label: found for label, found in record.attacks.items() if found.status != "unreliable"}
    return [spec for spec in asked if spec.label not in have or not _same_attack(cell, record, spec, have[spec.label])]


def _same_attack(cell: Cell, record: Record, spec: AttackSpec, found: AttackRecord) -> bool:
    """Whether a result is what this attack would find now: by its key, or by settings and code of equal numbers."""
    if found.key == _key(cell, record, spec):
        return True
    attack = _configured(cell, spec)
    own = (_read_back(attack), lineage("attack", spec.name, metric_code(attack)), spec.budget)
    engine = lineage("engine", record.task, engine_hash(type(cell.task)))
    known = (found.settings, lineage("attack", spec.name, found.code_hash), found.budget)
    before = found.version is None  # of a record before schema 6, whose keys were made of hashes of files
    return before and own == known and engine == lineage("engine", record.task, record.engine_hash)


def attacked(
    cell: Cell, record: Record, asked: Sequence[AttackSpec], store: Store, results: Path, force: bool = False
) -> Record:
    """The record with these attacks; what it has already stays. Written anew after each, so that a stop loses none.

    Attacks search and draw in the run's --precision; in fp16, which has no room for gradients, they only draw in it.
    """
    todo = list(asked) if force and record.status in ("ok", "unreliable") else missing_attacks(cell, record, asked)
    if not todo:
        return record
    if not force:
        require_replaceable_attacks(cell, record, todo)
    outcome = _outcome(cell, record, store)
    revision = record.revision + 1
    for spec in todo:
        tell(f"attack {spec.label}")
        found = {**record.attacks, spec.label: _one(cell, record, spec, outcome, store, force)}
        ordered = {label: found[label] for label in standard_first(found)}
        record = write_record(
            record.model_copy(update={"attacks": ordered, "revision": revision}), record.path(results)
        )
    return record


def require_replaceable_attacks(cell: Cell, record: Record, asked: Sequence[AttackSpec]) -> None:
    """Refuse to replace the result of an attack that was made with other settings or code; says with which."""
    for spec in asked:
        old = record.attacks.get(spec.label)
        if old is None or old.status != "ok":
            continue
        attack = _configured(cell, spec)
        now = old.model_copy(update={"settings": _read_back(attack), "code_hash": metric_code(attack)})
        (then, made), (anew, code) = attacked_by(spec.label, old), attacked_by(spec.label, now)
        apart = [f"settings ({then}, now {anew})"] if then != anew else []
        apart += [f"attack code ({made[:8]}, now {code[:8]})"] if made != code else []
        if apart:
            raise UserError(
                f"{record.label()} seed {record.seeds['unlearning']}: {spec.label} in its record was made otherwise, "
                f"it differs in {' and '.join(apart)}: --force replaces it, --results with another folder keeps both"
            )


def tried(cell: Cell, record: Record, asked: Sequence[AttackSpec], store: Store) -> None:
    """Make these attacks' results in the store, where `attacked` finds them; the record stays as it is."""
    todo = missing_attacks(cell, record, asked)
    outcome = _outcome(cell, record, store) if todo else None
    for spec in todo:
        _one(cell, record, spec, outcome, store, False)  # type: ignore[arg-type]


def _outcome(cell: Cell, record: Record, store: Store) -> Outcome:
    """The run's model and the original, frozen; the weights come from the store, or are made anew."""
    draft = drafted(cell, metrics_for(cell.task))
    state, _ = unlearned(cell, draft, store)
    if state_hash(state) != record.weights["unlearned"]:
        raise UserError(
            f"{record.label()}: its weights were made anew and are not those of its record "
            f"({record.place()}): run it with --force first"
        )
    model, original = loaded(cell, state), cell.task.pretrained()
    drawing = partial(cell.resources.drawing, cell.task.device)
    models = model.requires_grad_(False), original.eval().requires_grad_(False)
    return arena(cell.task, *models, cell.method, drawing=drawing)


def _parts(cell: Cell, record: Record, spec: AttackSpec, attack: Attack) -> dict[str, Any]:
    """What an attack's result depends on."""
    read = [file_hash(Path(__file__).parents[1] / name) for name in attack.reads]
    left_out = ("name",) if attack.again else ("name", "retain_images")
    protocol = {name: value for name, value in record.protocol.settings.items() if name not in left_out}
    return {
        **sample_parts(cell, {}),
        "weights": [record.weights["original"], record.weights["unlearned"]],
        "attack": [spec.name, attack.settings(), metric_code(attack), read],
        "budget": spec.budget,
        "task": [cell.task.name, cell.task.forget, protocol, record.data],
        "method": _method(cell) if attack.again else None,
        "judge": record.judge.model_dump(mode="json"),
        "engine": engine_hash(type(cell.task)),
        "device": cell.task.device,
        **cell.resources.named(),
        **({"follows": followed} if (followed := _followed(cell)) else {}),
    }


def _followed(cell: Cell) -> list[str]:
    """Options of the run that change an attack's numbers, for keys: attacks did not follow them before."""
    precision = [cell.resources.precision] if cell.resources.precision != "fp32" else []
    return [*precision, *(saving for saving in cell.resources.memory if saving == "adam8bit")]


def _method(cell: Cell) -> list[Any]:
    method = cell.method
    return [method.name, method.settings(), method_code(type(method)), cell.task.seed]


def _configured(cell: Cell, spec: AttackSpec) -> Attack:
    """With its settings; a smoke protocol, which tries out what a run does, takes the small ones of miniatures."""
    attack = registry.load_attacks()[spec.name]
    smoke = cell.task.protocol.name == "smoke" and "small" in attack.variants
    return attack.configured(spec.variant or ("small" if smoke else ""), cell.task)


def _read_back(attack: Attack) -> dict[str, Any]:
    """An attack's settings as a record gives them back: tables compare them with others'."""
    settings: dict[str, Any] = json.loads(json.dumps(attack.settings()))
    return settings


def _key(cell: Cell, record: Record, spec: AttackSpec) -> str:
    return digest(_parts(cell, record, spec, _configured(cell, spec)))


def _one(cell: Cell, record: Record, spec: AttackSpec, outcome: Outcome, store: Store, force: bool) -> AttackRecord:
    """One attack's result, read from the store or made."""
    attack = _configured(cell, spec)
    parts = _parts(cell, record, spec, attack)

    def make() -> Made:
        begun = time.perf_counter()
        with exact(), splitting() as micro, cell.resources.training(cell.task.device):
            facts, tensors = _measured(attack, outcome, spec.budget)
        trim()
        surroundings = describe_environment(cell.task.device)
        made_with = {name: surroundings.get(name) for name in ("device", "threads", "commit")}
        made_with["torch"] = (surroundings.get("packages") or {}).get("torch")
        made_with["numerics"] = _numerics(cell)
        if micro.size is not None:
            made_with["microbatch"] = micro.size
        return tensors, {**facts, "seconds": round(time.perf_counter() - begun, 2), "made_with": made_with}

    tensors, facts = store.stage("attacked", parts, make, force, keep=lambda made: made[1]["status"] != "unreliable")
    hits, spent = tensors["recovered"].tolist(), tensors["spent"].tolist()
    return AttackRecord(
        recovered=tuple(None if math.isnan(hit) else hit == 1 for hit in hits),
        spent=tuple(spent),
        budget=spec.budget,
        box=attack.box,
        unit=attack.spends,
        settings=_read_back(attack),
        code_hash=metric_code(attack),
        version=attack.version,
        key=digest(parts),
        **facts,
    )


def _numerics(cell: Cell) -> dict[str, Any]:
    """What an attack computes with; on CUDA without TF32 in any stage."""
    stages = cell.resources.numerics(cell.task.device)
    return {"search": stages["unlearning"], "sampling": stages["sampling"]}


def _measured(attack: Attack, outcome: Outcome, budget: int | None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A result as facts and tensors; an attack that cannot be tried is skipped, with the reason."""
    none = {"recovered": torch.zeros(0, dtype=torch.double), "spent": torch.zeros(0, dtype=torch.double)}
    if reason := attack.unaddressed(outcome.task) or refused(outcome.task, attack.name):
        return {"status": "skipped", "reason": reason, "applies": False}, none
    before = state_hash(outcome.model.state_dict())
    try:
        score = attack.measure(outcome, budget)
    except Unsupported as reason:
        return {"status": "skipped", "reason": str(reason)}, none
    if state_hash(outcome.model.state_dict()) != before:
        raise UserError(f"the attack {attack.name} changed the model that it is measured on: it must work on a copy")
    facts = {
        "status": "unreliable" if score.value is None or score.missing > UNRELIABLE * score.n else "ok",
        "reason": score.reason,
        "value": score.value,
        "n": score.n,
        "missing": score.missing,
        "interval": score.interval,
        "area": area(score),
        "limit": score.limit or 0.0,
        "parts": score.parts,
    }
    if score.per_image is None or score.spent is None:
        return facts, none
    return facts, {"recovered": torch.tensor(score.per_image), "spent": torch.tensor(score.spent)}


def area(score: Score) -> float | None:
    """Mean of the recovered share over budgets from 0 to the limit; missing targets are left out."""
    if score.per_image is None or score.spent is None or score.value is None:
        return None
    kept = ~np.isnan(score.per_image)
    limit = score.limit or 1.0
    return float((score.per_image[kept] * (1 - score.spent[kept] / limit)).mean())
