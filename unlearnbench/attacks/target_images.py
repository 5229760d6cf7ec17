"""Attacks whose targets are images: how the original draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from unlearnbench.attacks.base import Attack
from unlearnbench.attacks.search import Encoding, draw_originals
from unlearnbench.metric import Outcome
from unlearnbench.task import Plan

AS_PROTOCOL: dict[str, Any] = {
    "target_scheduler": "",
    "target_steps": 0,
    "target_guidance": 0.0,
    "target_encoding": "none",
}


@dataclass(frozen=True)
class TargetImages(Attack):
    """An attack that searches with each target's image, which the original draws from the same prompt and noise."""

    added: ClassVar[dict[str, Any]] = AS_PROTOCOL

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
