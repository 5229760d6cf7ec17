"""What a record keeps of a run as it went, and what all parts of records are made from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from unlearnbench.names import Line, Name
from unlearnbench.records.sealed_json import Part

POINTS = 200
"""That a series keeps at most."""


class PointRecord(Part):
    """What the model on its way scored after one step."""

    step: int
    """Of the main optimiser; 0 is the start."""
    seconds: float
    """Of unlearning until then, without preparing, watching and evaluating."""
    scores: dict[Name, float | None]
    missing: int = 0
    """Images that could not be judged."""


class SeriesRecord(Part):
    """What a method noted, or a norm of gradients, by step; null was not finite."""

    steps: tuple[int, ...]
    values: tuple[float | None, ...]

    @model_validator(mode="after")
    def _consistent(self) -> SeriesRecord:
        if len(self.steps) != len(self.values) or len(self.steps) > POINTS:
            raise ValueError(f"steps and values must be equally many, {POINTS} at most")
        return self


class HeldOut(Part):
    """How points are scored: the record's protocol, but for what is named here."""

    hash: Name
    differs: dict[Line, Any]


class TrajectoryRecord(Part):
    """A run as it went; nothing in it was looked at for choosing what is reported."""

    every: int | None
    """Steps from one evaluation to the next, more where there were too many; null: nothing was evaluated."""
    rule: Literal["last step"] = "last step"
    """Which step the record's own scores are of, whatever the points say."""
    steps: int
    """Of the main optimiser."""
    protocol: HeldOut
    n: dict[Name, int] = {}
    """Images that a score rests on."""
    points: tuple[PointRecord, ...] = ()
    watched: dict[Line, SeriesRecord] = {}
    """By name."""
    made_with: dict[Line, Any] = {}
    """Device, threads, torch and commit, which may be others than the run's."""

    @model_validator(mode="after")
    def _consistent(self) -> TrajectoryRecord:
        steps = [point.step for point in self.points]
        if steps != sorted(set(steps)) or len(steps) > POINTS:
            raise ValueError(f"the steps of points must rise, and be {POINTS} at most")
        if any(step < 0 for step in steps) or self.steps < 0 or any(count < 0 for count in self.n.values()):
            raise ValueError("steps and counts cannot be negative")
        if any(point.seconds < 0 or point.missing < 0 for point in self.points):
            raise ValueError("seconds and missing images cannot be negative")
        if self.every is not None and self.every < 1:
            raise ValueError(f"it was evaluated every {self.every} steps")
        return self
