"""One run as validated JSON with its provenance, sealed by a content hash."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError, model_validator

from unlearnbench.errors import UserError
from unlearnbench.hashing import digest
from unlearnbench.names import Line, MethodName, Name, Seed, inside, joined
from unlearnbench.records.sealed_json import Part, first_of, opened, sealed
from unlearnbench.records.trajectory import TrajectoryRecord
from unlearnbench.storage.files import replace_file

VERSION: Final = 6
"""Of the schema that records are written in; older ones are read."""
TIMED = ("unlearn_time", "prepare_time", "relative_time", "peak_memory")
"""Scores that differ from run to run of the same thing."""
BESIDE = ("attacks", "trajectory")
"""What stands beside the result: it has no part in it, nor in its key."""


class ScoreRecord(Part):
    """One metric's result; null is unknown, and `reason` says why."""

    value: float | None
    n: int
    missing: int = 0
    interval: tuple[float, float] | None = None
    reason: str | None = None
    axis: Literal["efficacy", "utility", "robustness", "cost"]
    better: Literal["higher", "lower"] | None
    unit: Line
    code_hash: Name
    version: int | None = None
    """Of the metric; null before schema 6."""
    floor: float | None = None
    """What real images of another split score in place of the samples."""
    parts: dict[Line, float] | None = None
    """What the value is the sum of, by name."""

    @model_validator(mode="after")
    def _possible(self) -> ScoreRecord:
        if not 0 <= self.missing <= self.n:
            raise ValueError(f"{self.missing} of {self.n} images cannot be missing")
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"the interval is reversed ({self.interval[0]:g} to {self.interval[1]:g})")
        return self


class Selection(Part):
    """What tuned hyper-parameters were chosen on, so that it can be told apart from what is reported."""

    forget: tuple[Name, ...]
    seeds: tuple[Seed, ...]
    sampling_seed: Seed
    judge: Name
    """Hash of the judge."""
    trials: int


class ProtocolRecord(Part):
    """Everything that was measured with, by name and hash."""

    name: Name
    hash: Name
    version: int | None = None
    """Null before schema 6."""
    settings: dict[Line, Any]


class MethodRecord(Part):
    """The method with all its hyper-parameters."""

    name: MethodName
    division: Literal["default", "published", "released", "tuned", "custom"]
    preset: Name
    overrides: dict[Name, Any]
    settings: dict[Name, Any]
    requires: tuple[Line, ...]
    code_hash: Name
    """Fingerprint of the method's code; before schema 6 a hash of its files."""
    version: int | None = None
    """Null before schema 6."""
    selection: Selection | None = None
    """Of tuned settings."""


class JudgeRecord(Part):
    """The judge, by name, version, weights and threshold."""

    name: Line
    version: Line
    hash: Name
    threshold: float


class WitnessRecord(Part):
    """A detector or scorer beside the judge, as the judge is recorded, with its label set."""

    name: Line
    version: Line
    hash: Name
    threshold: float | None
    """Null where nothing is counted."""
    columns: tuple[Line, ...]


class AttackRecord(Part):
    """What one attack found: for every target whether it was recovered and what that cost."""

    status: Literal["ok", "unreliable", "skipped"]
    """unreliable: targets are missing, or the search broke off, and then there is no value; skipped: it could not be
    tried. Neither is a success of the method's."""
    reason: str | None = None
    applies: bool = True
    """False where the task cannot be attacked like this, whatever the method."""
    value: float | None = None
    """ASR within the budget."""
    n: int = 0
    missing: int = 0
    interval: tuple[float, float] | None = None
    area: float | None = None
    """Mean of the recovered share over budgets up to `limit`: 1 is at once, 0 never."""
    budget: float | None = None
    """That the user gave; null: the attack's own."""
    limit: float = 0.0
    """What may have been spent on a target at most."""
    recovered: tuple[bool | None, ...] = ()
    """By target; null is missing."""
    spent: tuple[float, ...] = ()
    """By target: until it was recovered, or given up (censored)."""
    parts: dict[Line, float | None] | None = None
    box: Literal["white", "black"]
    unit: Line
    """That budget and spent are counted in."""
    settings: dict[Line, Any]
    code_hash: Name
    version: int | None = None
    """Of the attack; null before schema 6."""
    seconds: float | None = None
    made_with: dict[Line, Any] = {}
    """Device, threads, torch and commit, which may be others than the run's."""
    key: Name
    """Hash of everything that determines the result."""

    @model_validator(mode="after")
    def _consistent(self) -> AttackRecord:
        known = [hit for hit in self.recovered if hit is not None]
        share = sum(known) / len(known) if known else None
        if len(self.recovered) != self.n or len(self.spent) != self.n or self.n - len(known) != self.missing:
            raise ValueError("n, missing, recovered and spent do not fit together")
        if self.value is None and self.status == "ok":
            raise ValueError("the status is ok, but there is no value")
        if self.value is not None and (share is None or abs(share - self.value) > 1e-9):
            raise ValueError(f"the value is {self.value}, its targets give {share}")
        if any(not 0 <= cost <= self.limit for cost in self.spent):
            raise ValueError(f"spent is outside 0 to {self.limit:g}")
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"the interval is reversed ({self.interval[0]:g} to {self.interval[1]:g})")
        if self.seconds is not None and self.seconds < 0:
            raise ValueError(f"it took {self.seconds:g} seconds")
        return self


class Record(Part):
    """One method on one concept with one seed."""

    schema_version: Literal[6] = VERSION
    revision: int = 1
    key: Line
    """Hash of everything that determines the result."""
    task: Name
    protocol: ProtocolRecord
    forget: Name
    data: Name | None = None
    """Hash of what was read beside the weights, such as prompts and photographs; null where the package ships all."""
    method: MethodRecord
    seeds: dict[Literal["pretraining", "unlearning", "sampling"], Seed]
    status: Literal["ok", "unreliable", "diverged", "skipped"]
    reason: str | None = None
    step: int | None = None
    """Of a diverged run, counted from 0."""
    scores: dict[Name, ScoreRecord]
    judge: JudgeRecord
    witnesses: dict[Name, WitnessRecord] = {}
    """By role."""
    witness_error: str | None = None
    judge_error: str | None = None
    attacks: dict[Name, AttackRecord] = {}
    """By label: name, variant and budget, where they were given."""
    trajectory: TrajectoryRecord | None = None
    weights: dict[Literal["original", "unlearned"], Name | None]
    images: Name | None = None
    """SHA-256 of the Parquet file beside the record."""
    engine_hash: Name
    """Fingerprint of the code that the task's results pass through; before schema 6 a hash of its files."""
    engine_version: int | None = None
    """Null before schema 6."""
    environment: dict[Line, Any]
    created: Line
    content_hash: str = ""

    @model_validator(mode="after")
    def _complete(self) -> Record:
        lacking = {"pretraining", "unlearning", "sampling"} - set(self.seeds)
        lacking |= {"original", "unlearned"} - set(self.weights)
        if lacking:
            raise ValueError(f"no {' or '.join(sorted(lacking))} is given")
        if self.revision < 1:
            raise ValueError(f"the revision is {self.revision}, the first one is 1")
        if negative := [f"{name} {seed}" for name, seed in self.seeds.items() if seed < 0]:
            raise ValueError(f"a seed is negative ({', '.join(negative)})")
        if self.step is not None and self.step < 0:
            raise ValueError(f"it diverged at step {self.step}")
        return self

    def seal(self) -> str:
        """Hash of all but the seal itself, as it would be written."""
        return sealed(self.model_dump(mode="json"))

    def result(self) -> dict[str, Any]:
        """What another run of the same thing must come to: all but times, revision, surroundings and what is beside."""
        beside = {"revision", "environment", "created", "content_hash", "schema_version", *BESIDE}
        values = self.model_dump(mode="json", exclude=beside)
        return {**values, "scores": {name: score for name, score in values["scores"].items() if name not in TIMED}}

    def label(self) -> str:
        """The method as folders and tables name it: name, preset and overrides."""
        return label(self.method.name, self.method.preset, self.method.overrides)

    def place(self) -> Path:
        """<task>/<protocol>/<forget>/<method>/seed-<n>.json, relative to a folder of records."""
        return record_place(self.task, self.protocol.name, self.forget, self.label(), self.seeds["unlearning"])

    def path(self, results: Path) -> Path:
        """Where the record lies below a folder of records; raises `UserError` where a linked folder leads out of it."""
        return inside(results, self.place())


def label(method: str, preset: str, overrides: dict[str, Any]) -> str:
    """E.g. `esd`, `esd@published`, `esd+lr=0.001`; safe as a folder's name, hashed where that changes it."""
    text = method + (f"@{preset}" if preset != "default" else "")
    text += "".join(f"+{key}={value}" for key, value in sorted(overrides.items()))
    clean = re.sub(r"[^A-Za-z0-9.=_@+-]", "-", text)
    plain = clean == text and len(text) <= 80 and not text.endswith(".")
    return text if plain else f"{clean[:70]}~{digest(overrides)[:8]}"


def record_place(task: str, protocol: str, forget: str, label: str, seed: int) -> Path:
    """Where a record lies, relative to a folder of records; raises `UserError` where a part of it cannot be a name."""
    return joined(task, protocol, forget, label, f"seed-{seed}.json")


def record_path(results: Path, task: str, protocol: str, forget: str, label: str, seed: int) -> Path:
    """Where a record lies below a folder of records; raises `UserError` where that leads out of the folder."""
    return inside(results, record_place(task, protocol, forget, label, seed))


def schema() -> dict[str, Any]:
    """The JSON schema of the records that this version writes; older ones are upgraded on reading."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:unlearnbench:record:{VERSION}",
        **Record.model_json_schema(),
        "title": f"unlearnbench record, schema version {VERSION}",
        "version": VERSION,
    }


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """A record's values in the present schema, from any older one: later versions added fields that may be unknown."""
    return {**values, "schema_version": VERSION} if values.get("schema_version") in range(1, VERSION) else values


def read(path: Path) -> Record:
    """A record from disk, of this or an older schema; `Damaged` names the file and what is wrong with it."""
    return opened(path, Record, "record", VERSION, "restore it, or delete it and run its command again", upgraded)


def write(record: Record, path: Path) -> Record:
    """Write a record whole and atomically, sealed; returns it as written.

    Raises `UserError` where it has a value that no record may have, which `read` would refuse.
    """
    record = record.model_copy(update={"content_hash": record.seal()})
    values = record.model_dump(mode="json")
    try:
        Record.model_validate(values)
    except ValidationError as error:
        raise UserError(f"cannot write {path}: {first_of(error)}") from error
    replace_file(path, f"{json.dumps(values, indent=1, ensure_ascii=False)}\n".encode(errors="backslashreplace"))
    return record


def load_all(results: Path, folder: Path | None = None) -> list[Record]:
    """Every record below a results folder, or of one method's folder in it, in order of path."""
    pattern = folder.glob("seed-*.json") if folder else results.glob("*/*/*/*/seed-*.json")
    return [read(path) for path in sorted(pattern)]
