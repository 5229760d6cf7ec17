"""The trajectory of a run, as its record keeps it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from unlearnbench.names import Line, Name
from unlearnbench.records.sealed_json import SealedPart

POINTS = 200
"""Largest number of points in a series."""
OTHER_WEIGHTS = "other weights"
"""Key of `made_with` for the weights of an unlearning that was repeated for this, if they are not the record's."""


class PointRecord(SealedPart):
    """Scores of the model after one step of unlearning."""

    step: int
    """Step of the main optimiser; 0 is the start."""
    seconds: float
    """Seconds of unlearning so far, without preparing, monitoring and evaluating."""
    scores: dict[Name, float | None]
    missing: int = 0
    """Images that could not be judged."""


class SeriesRecord(SealedPart):
    """Values that a method noted, or gradient norms, by step; null was not finite."""

    steps: tuple[int, ...]
    values: tuple[float | None, ...]

    @model_validator(mode="after")
    def _consistent(self) -> SeriesRecord:
        if len(self.steps) != len(self.values) or len(self.steps) > POINTS:
            raise ValueError(f"steps and values must be equally many, {POINTS} at most")
        return self


class HeldOut(SealedPart):
    """How points are scored: by the record's protocol, except for the settings named here."""

    hash: Name
    differs: dict[Line, Any]


class TrajectoryRecord(SealedPart):
    """The course of a run; nothing that is reported was chosen by it."""

    every: int | None
    """Steps between evaluations, more where there were too many; null: nothing was evaluated."""
    rule: Literal["last step"] = "last step"
    """The step that the record's own scores belong to, whatever the points say."""
    steps: int
    """Steps of the main optimiser."""
    protocol: HeldOut
    n: dict[Name, int] = {}
    """Images per score."""
    points: tuple[PointRecord, ...] = ()
    watched: dict[Line, SeriesRecord] = {}
    """Noted series by name."""
    made_with: dict[Line, Any] = {}
    """Device, threads, torch and commit, which may differ from the run's; see also `other_weights`."""

    @property
    def other_weights(self) -> str | None:
        """Hash of the weights that the points lead to, where these are not the record's: the run was finished without a
        trajectory, and unlearned again for it. None: they are the record's, bit for bit.
        """
        found = self.made_with.get(OTHER_WEIGHTS)
        return None if found is None else str(found)

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
