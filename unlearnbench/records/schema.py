"""One run as validated JSON with its provenance, sealed by a content hash."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from unlearnbench.data.wording import join_words
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest
from unlearnbench.names import Line, MethodName, Name, Seed, inside, join_names
from unlearnbench.records.prompt_sets import PromptSetRecord
from unlearnbench.records.scores import ScoreRecord
from unlearnbench.records.sealed_json import SealedPart, first_of, open_sealed, sealed
from unlearnbench.records.trajectory import TrajectoryRecord
from unlearnbench.storage.files import replace_file

if TYPE_CHECKING:
    from torch import Tensor

VERSION: Final = 6
"""Version of the schema that records are written in; older ones can be read."""
TIMED = ("unlearn_time", "prepare_time", "relative_time", "peak_memory")
"""Scores that vary between runs of the same thing."""
BESIDE = ("attacks", "trajectory", "prompt_sets")
"""Parts of a record that are not part of the result, nor of its key."""
DESCRIBED = ("prompts",)
"""Parts that describe what the run was given and that older records lack: neither part of the result nor of its key."""


class Selection(SealedPart):
    """The runs that tuned hyper-parameters were chosen on; results must be reported on others."""

    forget: tuple[Name, ...]
    seeds: tuple[Seed, ...]
    sampling_seed: Seed
    judge: Name
    """Hash of the judge."""
    trials: int


class ProtocolRecord(SealedPart):
    """The measuring protocol, by name and hash."""

    name: Name
    hash: Name
    version: int | None = None
    """Null before schema 6."""
    settings: dict[Line, Any]


class MethodRecord(SealedPart):
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
    """Only for tuned settings."""


class JudgeRecord(SealedPart):
    """The judge, by name, version, weights and threshold."""

    name: Line
    version: Line
    hash: Name
    threshold: float


class WitnessRecord(SealedPart):
    """A detector or scorer used in addition to the judge, with its label set."""

    name: Line
    version: Line
    hash: Name
    threshold: float | None
    """Null where nothing is counted."""
    columns: tuple[Line, ...]


class PromptsRecord(SealedPart):
    """How many prompts were drawn and what became of them; the prompts themselves stay out of unsafe tasks' records."""

    n: int
    """Number of distinct prompts."""
    cut: int
    """How many of them are longer than the text encoder reads: it gets their beginnings."""
    length: int
    """How many tokens the text encoder reads, with start and end."""
    empty: int = 0
    """Number of rows without a prompt in the prompt files."""
    empty_drawn_as: Line | None = None
    """What was drawn for them: "nan" (that text, as published code does), "kept" (an empty prompt), or "left out"."""
    files: dict[Line, Name] = {}
    """SHA-256 of each prompt file by its name."""
    unpublished: tuple[Line, ...] = ()
    """Files among them that have the name of a published file, but other content."""

    @model_validator(mode="after")
    def _possible(self) -> PromptsRecord:
        if not 0 <= self.cut <= self.n or self.length < 0 or self.empty < 0:
            raise ValueError(f"{self.cut} of {self.n} prompts cannot be cut at {self.length} tokens")
        return self


class AttackRecord(SealedPart):
    """The result of one attack: for every target whether it was recovered and at what cost."""

    status: Literal["ok", "unreliable", "skipped"]
    """unreliable: targets are missing, or the search stopped early and there is no value; skipped: the attack could not
    be tried. Neither counts as a success of the method."""
    reason: str | None = None
    applies: bool = True
    """False where the task cannot be attacked like this, whatever the method."""
    value: float | None = None
    """ASR within the budget."""
    n: int = 0
    missing: int = 0
    interval: tuple[float, float] | None = None
    area: float | None = None
    """Mean recovered share over budgets up to `limit`: 1 means at once, 0 never."""
    budget: float | None = None
    """Budget given by the user; null means the attack's own."""
    limit: float = 0.0
    """Largest possible cost for one target."""
    recovered: tuple[bool | None, ...] = ()
    """By target; null means missing."""
    spent: tuple[float, ...] = ()
    """By target: cost until it was recovered or given up (censored)."""
    parts: dict[Line, float | None] | None = None
    box: Literal["white", "black"]
    unit: Line
    """Unit of budget and spent."""
    settings: dict[Line, Any]
    code_hash: Name
    version: int | None = None
    """Of the attack; null before schema 6."""
    seconds: float | None = None
    made_with: dict[Line, Any] = {}
    """Device, threads, torch and commit, which may differ from the run's, and `numerics`: what searching and drawing
    computed with. Attacks of records without it computed in float32, whatever the run's precision."""
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


class Record(SealedPart):
    """One method on one concept with one seed."""

    schema_version: Literal[6] = VERSION
    revision: int = 1
    key: Line
    """Hash of everything that determines the result."""
    task: Name
    protocol: ProtocolRecord
    forget: Name
    data: Name | None = None
    """Hash of the data read besides the weights, such as prompts and photographs; null where the package ships all."""
    method: MethodRecord
    seeds: dict[Literal["pretraining", "unlearning", "sampling"], Seed]
    status: Literal["ok", "unreliable", "diverged", "skipped"]
    reason: str | None = None
    step: int | None = None
    """Step at which a diverged run diverged, counted from 0."""
    scores: dict[Name, ScoreRecord]
    judge: JudgeRecord
    witnesses: dict[Name, WitnessRecord] = {}
    """By role."""
    witness_error: str | None = None
    judge_error: str | None = None
    attacks: dict[Name, AttackRecord] = {}
    """By label: name, variant and budget, where they were given."""
    trajectory: TrajectoryRecord | None = None
    prompt_sets: dict[Name, PromptSetRecord] = {}
    """Scores on the user's own prompts, by side and file; left out where there are none."""
    weights: dict[Literal["original", "unlearned"], Name | None]
    images: Name | None = None
    """SHA-256 of the Parquet file beside the record."""
    prompts: PromptsRecord | None = None
    """The prompts that were drawn, counted; null for tasks without prompts, and in records made before this was
    counted."""
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

    @model_serializer(mode="wrap")
    def _without_empty_sets(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A record without prompts of the user's own reads as it did before there were any."""
        values: dict[str, Any] = whole(self)
        if not values.get("prompt_sets"):
            values.pop("prompt_sets", None)
        return values

    def seal(self) -> str:
        """Hash of everything but the seal itself, as it would be written."""
        return sealed(self.model_dump(mode="json"))

    def result(self) -> dict[str, Any]:
        """The part that another run of the same thing must reproduce, without times, revision and environment."""
        beside = {"revision", "environment", "created", "content_hash", "schema_version", *BESIDE, *DESCRIBED}
        values = self.model_dump(mode="json", exclude=beside)
        return {**values, "scores": {name: score for name, score in values["scores"].items() if name not in TIMED}}

    def samples(self, **options: Any) -> Tensor:
        """The images that were scored, uint8 (N, 3, H, W), in the order of the task's plan, from this machine's store.

        For options and errors see `unlearnbench.samples`.
        """
        import unlearnbench  # the public interface, which is above this package

        return unlearnbench.samples(self, **options)

    def label(self) -> str:
        """The method as folders and tables name it: name, preset and overrides."""
        return label(self.method.name, self.method.preset, self.method.overrides)

    def place(self) -> Path:
        """<task>/<protocol>/<forget>/<method>/seed-<n>.json, relative to a folder of records."""
        return record_place(self.task, self.protocol.name, self.forget, self.label(), self.seeds["unlearning"])

    def path(self, results: Path) -> Path:
        """The path of the record in a results folder; raises `UserError` where a linked folder leads out of it."""
        return inside(results, self.place())


def label(method: str, preset: str, overrides: dict[str, Any]) -> str:
    """Make a label such as `esd`, `esd@published`, `esd+lr=0.001`; unsafe or long ones are shortened and hashed."""
    text = method + (f"@{preset}" if preset != "default" else "")
    text += "".join(f"+{key}={join_words(value)}" for key, value in sorted(overrides.items()))
    clean = re.sub(r"[^A-Za-z0-9.=_@+-]", "-", text)
    plain = clean == text and len(text) <= 80 and not text.endswith(".")
    return text if plain else f"{clean[:70]}~{digest(overrides)[:8]}"


def record_place(task: str, protocol: str, forget: str, label: str, seed: int) -> Path:
    """The path of a record relative to its results folder; raises `UserError` where a part cannot be a name."""
    return join_names(task, protocol, forget, label, f"seed-{seed}.json")


def record_path(results: Path, task: str, protocol: str, forget: str, label: str, seed: int) -> Path:
    """The path of a record in a results folder; raises `UserError` where that leads out of the folder."""
    return inside(results, record_place(task, protocol, forget, label, seed))


def record_schema() -> dict[str, Any]:
    """The JSON schema of records as this version writes them; older ones are upgraded on reading."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:unlearnbench:record:{VERSION}",
        **Record.model_json_schema(),
        "title": f"unlearnbench record, schema version {VERSION}",
        "version": VERSION,
    }


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Upgrade a record's values from an older schema; fields that later schemas added stay unknown."""
    return {**values, "schema_version": VERSION} if values.get("schema_version") in range(1, VERSION) else values


def read_record(path: Path) -> Record:
    """Read a record of this or an older schema; raises `Damaged`, which names the file and what is wrong with it."""
    return open_sealed(path, Record, "record", VERSION, "restore it, or delete it and run its command again", upgraded)


def write_record(record: Record, path: Path) -> Record:
    """Seal a record and write it atomically; returns it as written.

    Raises `UserError` for values that `read_record` would refuse.
    """
    record = record.model_copy(update={"content_hash": record.seal()})
    values = record.model_dump(mode="json")
    try:
        Record.model_validate(values)
    except ValidationError as error:
        raise UserError(f"cannot write {path}: {first_of(error)}") from error
    replace_file(path, f"{json.dumps(values, indent=1, ensure_ascii=False)}\n".encode(errors="backslashreplace"))
    return record
