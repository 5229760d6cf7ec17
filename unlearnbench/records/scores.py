"""One metric's result, as records hold it."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from unlearnbench.names import Line, Name
from unlearnbench.records.sealed_json import SealedPart


class ScoreRecord(SealedPart):
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
    """Score of real images from another split in place of the samples."""
    parts: dict[Line, float] | None = None
    """The summands of the value by name."""

    @model_validator(mode="after")
    def _possible(self) -> ScoreRecord:
        if not 0 <= self.missing <= self.n:
            raise ValueError(f"{self.missing} of {self.n} images cannot be missing")
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"the interval is reversed ({self.interval[0]:g} to {self.interval[1]:g})")
        return self
