"""What a record holds of the user's own prompts: scores beside the protocol's, never among them."""

from __future__ import annotations

from typing import Literal

from unlearnbench.names import Line, Name
from unlearnbench.records.scores import ScoreRecord
from unlearnbench.records.sealed_json import SealedPart


class PairedScore(SealedPart):
    """A metric on the images of some prompts, beside the original's images of the same prompts and noise."""

    score: ScoreRecord
    original: float | None = None
    """The original's value; null for the original itself."""
    difference: float | None = None
    """Mean over images of the method's value less the original's; null where values are not per image."""
    interval: tuple[float, float] | None = None
    """95 % interval of the difference over pairs of images."""


class PromptGroupRecord(SealedPart):
    """The prompts of one group."""

    prompts: int
    """Images that were drawn, one for each prompt."""
    scores: dict[Name, PairedScore]
    """By metric."""


class PromptSetRecord(SealedPart):
    """A file of the user's own prompts, drawn with the protocol's sampler."""

    side: Literal["forget", "retain", "attack"]
    """Whether the prompts ask for what is forgotten, for what is kept, or try to bring the forgotten back."""
    file: Line
    """Name of the file, without its folder."""
    sha256: Name
    groups: dict[Name, PromptGroupRecord]
    not_scored: dict[Name, Line] = {}
    """Metrics of that side that were left out, and why."""
    key: Name
    """Hash of everything that determines the result."""
