"""Building blocks of methods that act at inference: guidance away from a concept, with unchanged weights."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearnbench.diffusion.model import Condition, Diffusion, Guidance
from unlearnbench.method import TextMethod
from unlearnbench.task import Task


@dataclass(frozen=True)
class Steering(TextMethod):
    """Base of methods that replace the model's guidance."""

    requires = frozenset({"concept"})
    trains = False

    @abstractmethod
    def steer(self, names: Tensor) -> Guidance:
        """Return the guidance away from a concept, given as conditions (see `concept`)."""

    def wrap(self, model: Diffusion, task: Task) -> Diffusion:
        """Give the model this guidance."""
        model.guidance = self.steer(concept(model, task))
        return model

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Return the model unchanged."""
        return model


def concept(model: Diffusion, task: Task) -> Tensor:
    """The forgotten concept as conditions: one prompt (1, L) with all its names, or a label for each name (n,)."""
    names = task.names("forget").to(task.device)
    text: Any = model
    return names if names.dim() == 1 else text.joined(names)


def eps_of(model: Diffusion, x_t: Tensor, t: Tensor, names: Tensor, *others: Condition) -> tuple[Tensor, ...]:
    """Noise predictions (B, C, H, W) for the other conditions, in order, then for the concept; computed in one batch.

    Several class labels count as one concept: their predictions are averaged.
    """
    joint = model.embed(names.repeat_interleave(len(t), dim=0))
    for other in reversed(others):
        joint = other.join(joint)
    copies = len(others) + len(names)
    eps = model.eps(torch.cat([x_t] * copies), torch.cat([t] * copies), joint).chunk(copies)
    return *eps[: len(others)], torch.stack(eps[len(others) :]).mean(dim=0)
