"""The result of tuning, as JSON sealed by a content hash: results/tuning/<task>/<method>.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from unlearnbench.errors import UserError
from unlearnbench.names import Line, MethodName, Name, Seed, inside, join_names
from unlearnbench.records.schema import Selection
from unlearnbench.records.sealed_json import open_sealed, sealed
from unlearnbench.storage.files import replace_file

VERSION: Final = 2
"""Version of the schema."""
FOLDER = "tuning"
"""Folder for tunings in a results folder."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


State = Literal["ok", "diverged", "over the cap", "failed"]


class RunValue(_Part):
    """One unlearning of a trial: a forget concept and an unlearning seed."""

    forget: Name
    seed: Seed
    state: State
    reason: str | None = None
    objective: float | None = None
    """The score: the worst of erasure, likeness to retrain and utility; null where the run has no value."""
    erasure: float | None = None
    likeness: float | None = None
    utility: float | None = None
    ua: float | None = None
    ra: float | None = None
    fid: float | None = None
    evaluations: int
    """Passes of one image through the denoiser, in `prepare` and `unlearn` together."""
    seconds: float
    """Seconds of the whole run: unlearning, sampling, judging."""

    @model_validator(mode="after")
    def _consistent(self) -> RunValue:
        if (self.state == "ok") != (self.objective is not None):
            raise ValueError(f"the state is {self.state}, the objective {self.objective}")
        return self


class Trial(_Part):
    """One candidate. It is run for every concept with the first seed; the best few also with the other seeds."""

    number: int
    presets: tuple[Literal["default", "published"], ...] = ()
    """Presets with these settings; empty for settings that were drawn."""
    settings: dict[Name, Any]
    runs: tuple[RunValue, ...]
    cut: bool = False
    """Whether it was stopped before its last concept, because it could no longer be among the best few."""

    @property
    def state(self) -> State:
        """State of the first run without a value, or ok."""
        return next((run.state for run in self.runs if run.state != "ok"), "ok")

    @property
    def evaluations(self) -> int:
        """Evaluations of all runs."""
        return sum(run.evaluations for run in self.runs)

    @property
    def seconds(self) -> float:
        """Seconds of all runs."""
        return sum(run.seconds for run in self.runs)

    def mean(self, seeds: tuple[int, ...], forget: tuple[str, ...]) -> float | None:
        """Mean objective over these seeds and concepts; None where a run is missing or has no value."""
        found = {(run.forget, run.seed): run.objective for run in self.runs}
        values = [found.get((concept, seed)) for seed in seeds for concept in forget]
        return None if None in values or not values else sum(v for v in values if v is not None) / len(values)


class Anchors(_Part):
    """The scores that count as 0 and 1 on one concept under the selection protocol."""

    original_ua: float
    destroy_ra: float
    original_ra: float
    destroy_fid: float
    original_fid: float
    retrains: int
    """Runs of retrain that likeness was computed with."""


class Cost(_Part):
    """Cost of all trials of a method."""

    runs: int
    evaluations: int
    seconds: float


class Tuning(_Part):
    """Every trial of one method on one task, and the settings that were chosen."""

    schema_version: Literal[2] = VERSION
    key: Name
    """Hash of everything that determines the result."""
    task: Name
    protocol: Name
    protocol_hash: Name
    method: MethodName
    code_hash: Name
    engine_hash: Name
    space: dict[Name, tuple[Any, ...]]
    cap: int
    """Largest number of evaluations of a run."""
    selection: Selection
    anchors: dict[Name, Anchors]
    """Anchors by concept."""
    trials: tuple[Trial, ...]
    chosen: int | None
    """Number of the trial with the best mean over all seeds; null where none has a value."""
    settings: dict[Name, Any] | None
    """Settings of the chosen trial."""
    cost: Cost
    environment: dict[Line, Any]
    created: Line
    content_hash: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Tuning:
        if [trial.number for trial in self.trials] != list(range(self.selection.trials)):
            raise ValueError(f"its trials are not numbers 0 to {self.selection.trials - 1}")
        if self.settings != (None if self.chosen is None else self.trials[self.chosen].settings):
            raise ValueError("its settings are not those of the chosen trial")
        if self.chosen is not None and self.final(self.trials[self.chosen]) is None:
            raise ValueError("the chosen trial has no value over all seeds")
        return self

    def first(self, trial: Trial) -> float | None:
        """A trial's objective with the first seed, which every trial has."""
        return trial.mean(self.selection.seeds[:1], self.selection.forget)

    def final(self, trial: Trial) -> float | None:
        """A trial's objective over all seeds, which the best few have."""
        return trial.mean(self.selection.seeds, self.selection.forget)

    def of(self, preset: str) -> Trial | None:
        """The trial with the settings of a preset, if there is one."""
        return next((trial for trial in self.trials if preset in trial.presets), None)

    def best_so_far(self) -> list[float | None]:
        """The highest objective with the first seed after each trial; None until there is one."""
        best: float | None = None
        found = []
        for value in map(self.first, self.trials):
            best = value if best is None else best if value is None else max(best, value)
            found.append(best)
        return found


def tuning_path(results: Path, task: str, method: str) -> Path:
    """The path of a tuning in a results folder; raises `UserError` where that leads out of the folder."""
    return inside(results, tuning_place(task, method))


def tuning_place(task: str, method: str) -> Path:
    """The path of a tuning relative to its results folder."""
    return join_names(FOLDER, task, f"{method}.json")


def write_tuning(tuning: Tuning, results: Path) -> Tuning:
    """Seal a tuning and write it atomically; returns it as written."""
    tuning = tuning.model_copy(update={"content_hash": sealed(tuning.model_dump(mode="json"))})
    text = json.dumps(tuning.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
    replace_file(tuning_path(results, tuning.task, tuning.method), text.encode())
    return tuning


def read_tuning(path: Path) -> Tuning:
    """Read a tuning; raises `Damaged`, which names the file and what is wrong with it."""

    def present(values: dict[str, Any]) -> dict[str, Any]:
        if values.get("schema_version") == 1:
            raise UserError(
                f"tuning {path} was chosen by a score that has changed since (schema 1): delete it and run "
                "`unlearnbench tune` again"
            )
        return values

    remedy = "restore it, or delete it and run `unlearnbench tune` again"
    return open_sealed(path, Tuning, "tuning", VERSION, remedy, present)


def was_tuned(results: Path, task: str, method: str) -> bool:
    """Whether tuning chose settings for a method on a task."""
    path = tuning_path(results, task, method)
    return path.is_file() and read_tuning(path).settings is not None


def require_apart(method: str, chosen: Selection, forget: str, seed: int, sampling_seed: int) -> None:
    """Refuse to report on the concept, seed or noise that tuned settings were chosen on."""
    overlaps = (
        ("--forget", forget, forget in chosen.forget),
        ("--seeds", seed, seed in chosen.seeds),
        ("the protocol's sampling seed", sampling_seed, sampling_seed == chosen.sampling_seed),
    )
    for what, value, same in overlaps:
        if same:
            raise UserError(f"{what} {value}: the tuned settings of {method} were chosen on it; report on another")


def tuned_settings(results: Path, task: str, method: str) -> tuple[dict[str, Any], Selection]:
    """Return the settings that tuning chose for a method on a task, and the runs they were chosen on."""
    path = tuning_path(results, task, method)
    again = f"unlearnbench tune --task {task} --method {method} --results {results}"
    if not path.is_file():
        raise UserError(f"no tuned settings of {method} on {task} below {results}: run `{again}` first")
    tuning = read_tuning(path)
    if tuning.settings is None:
        raise UserError(f"none of the {len(tuning.trials)} trials of {method} on {task} came to a value ({path})")
    return tuning.settings, tuning.selection
