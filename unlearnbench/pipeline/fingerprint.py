"""Keys of records, weights and samples: hashes of everything that made them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from unlearnbench.compute.environment import describe_environment, now
from unlearnbench.hashing import digest, state_hash
from unlearnbench.judges.scorer import Witness
from unlearnbench.method import Method
from unlearnbench.metric import Metric
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.code_hashes import ENGINE_VERSION, engine_hash, method_code, metric_code
from unlearnbench.records.schema import (
    BESIDE,
    DESCRIBED,
    JudgeRecord,
    MethodRecord,
    ProtocolRecord,
    Record,
    WitnessRecord,
)
from unlearnbench.task import Protocol, Task

KEYED = 6
"""Schema version that keys belong to."""


def drafted(cell: Cell, metrics: Mapping[str, Metric]) -> Record:
    """The record's identity, before anything is run."""
    task, method = cell.task, cell.method
    judge = task.judge()
    original = task.model_identity()
    record = Record(
        key="",
        task=task.name,
        protocol=_protocol(task.protocol),
        forget=task.forget,
        method=MethodRecord(
            name=method.name,
            division=cell.division,
            selection=cell.selection,
            preset=cell.preset,
            overrides=dict(cell.overrides or {}),
            settings=method.settings(),
            requires=tuple(sorted(method.requires)),
            code_hash=method_code(type(method)),
            version=method.version,
        ),
        data=task.data_identity(),
        seeds={"pretraining": original.seed, "unlearning": task.seed, "sampling": task.protocol.sampling_seed},
        status="ok",
        scores={},
        judge=JudgeRecord(name=judge.name, version=judge.version, hash=judge.hash, threshold=judge.threshold),
        witnesses={role: _witness(witness) for role, witness in task.witnesses().items()},
        weights={"original": original.hash, "unlearned": None},
        engine_hash=engine_hash(type(task)),
        engine_version=ENGINE_VERSION,
        environment={
            **describe_environment(task.device),
            **cell.resources.named(),
            "numerics": cell.resources.numerics(task.device),
        },
        created=now(),
    )
    volatile = {"key", "environment", "created", "content_hash", "revision", "schema_version", *BESIDE, *DESCRIBED}
    codes = {name: metric_code(metric) for name, metric in metrics.items()}
    savings = [part for part in (cell.resources.named(), _without_tf32(cell)) if part]
    about = {**record.model_dump(mode="json", exclude=volatile), "schema_version": KEYED}
    key = digest([about, codes, task.device, *savings])
    return record.model_copy(update={"key": key})


def _protocol(protocol: Protocol) -> ProtocolRecord:
    return ProtocolRecord(name=protocol.name, hash=protocol.hash, version=protocol.version, settings=asdict(protocol))


def _witness(witness: Witness) -> WitnessRecord:
    threshold = None if math.isnan(witness.threshold) else witness.threshold
    who = {name: getattr(witness, name) for name in ("name", "version", "hash", "columns")}
    return WitnessRecord(**who, threshold=threshold)


def weight_parts(cell: Cell, draft: Record) -> dict[str, Any]:
    """The parts of the key of unlearned weights."""
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
        **_other_start(draft.protocol.settings),
        **cell.resources.named(),
        **_without_tf32(cell),
    }


def _without_tf32(cell: Cell) -> dict[str, Any]:
    """For keys, where convolutions of training took TF32 before."""
    return {"tf32": False} if cell.task.device == "cuda" and cell.resources.precision != "bf16" else {}


def sample_parts(cell: Cell, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What samples depend on besides the protocol: the model, and method and concept if it wraps the model."""
    method = cell.method
    about = [method.name, method.settings(), method_code(type(method)), cell.task.forget] if wraps(cell) else None
    own = _own_concepts(asdict(cell.task.protocol)) if wraps(cell) else {}
    return {**model_parts(cell.task, state), "wrap": about, **own}


def model_parts(task: Task, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A model's part of a key: these weights within the original's configuration, such as scheduler and tokenizer."""
    return {"weights": state_hash(state), "configuration": task.model_identity().configuration_hash}


def _own_concepts(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A user's own concepts, for keys, since the name of a concept file does not say what is in it."""
    return {"concepts": protocol["concepts"]} if protocol.get("concepts") else {}


def _other_start(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Which weights unlearning starts from, for keys, where these are not the original's."""
    start = protocol.get("start", "original")
    return {} if start == "original" else {"start": start}


def wraps(cell: Cell) -> bool:
    """Whether the method also acts outside the weights, such as on guidance."""
    return type(cell.method).wrap is not Method.wrap
