"""How the original draws the images that an attack searches with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from unlearnbench.attacks.search import Encoding, draw_originals
from unlearnbench.metric import Outcome
from unlearnbench.task import Plan

AS_PROTOCOL: dict[str, Any] = {
    "target_scheduler": "",
    "target_steps": 0,
    "target_guidance": 0.0,
    "target_encoding": "none",
}
"""Settings of `TargetImages` with which images are drawn as the protocol draws them, and not encoded again."""


@dataclass(frozen=True)
class TargetImages:
    """Settings of attacks that search with each target's image, which the original draws from its prompt and noise."""

    target_scheduler: Literal["", "ddim", "lms", "dpm++"] = ""
    """The scheduler that draws target images; "": the protocol's."""
    target_steps: NonNegativeInt = 0
    """Its steps; 0: the protocol's."""
    target_guidance: NonNegativeFloat = 0.0
    """Its guidance scale for all targets; 0: each target's own."""
    target_encoding: Encoding = "none"
    """Whether target images are encoded again: "none", the latents as drawn; "mode", the picture in 8 bits, encoded to
    the posterior's mode; "sample of [0, 1]", a sample of the posterior for the picture scaled wrongly, to [0, 1]."""

    def draw_targets(self, outcome: Outcome, items: Sequence[Plan]) -> Tensor:
        """Target images (N, C, H, W), or their latents, in the model's own range."""
        changes = {"scheduler": self.target_scheduler, "steps": self.target_steps, "guidance": self.target_guidance}
        given = {name: value for name, value in changes.items() if value}
        return draw_originals(outcome, items, given, self.target_encoding)
