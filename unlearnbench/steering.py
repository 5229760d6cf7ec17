"""What methods at inference time share: guidance that knows the forgotten concept, over weights left as they are."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearnbench.diffusion import Condition, Diffusion
from unlearnbench.method import Method
from unlearnbench.sampling import Guidance
from unlearnbench.task import Task


@dataclass(frozen=True)
class Steering(Method):
    """Replaces the model's guidance; a base of methods, so that their code's hash covers this file."""

    requires = frozenset({"concept"})

    @abstractmethod
    def steer(self, names: Tensor) -> Guidance:
        """The guidance away from a concept, given as conditions (see `concept`)."""

    def wrap(self, model: Diffusion, task: Task) -> Diffusion:
        """The model with this guidance."""
        model.guidance = self.steer(concept(model, task))
        return model

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """The model as it is."""
        return model


def concept(model: Diffusion, task: Task) -> Tensor:
    """The forgotten concept as conditions: all its names in one prompt (1, L), or a class label for each name (n,)."""
    names = task.names("forget").to(task.device)
    text: Any = model
    return names if names.dim() == 1 else text.joined(names)


def eps_of(model: Diffusion, x_t: Tensor, t: Tensor, names: Tensor, *others: Condition) -> tuple[Tensor, ...]:
    """Noise predictions for the other conditions, in their order, then for the concept; all in one batch.

    Several class labels count as one concept: the mean of their predictions.
    """
    joint = model.embed(names.repeat_interleave(len(t), dim=0))
    for other in reversed(others):
        joint = other.join(joint)
    copies = len(others) + len(names)
    eps = model.eps(torch.cat([x_t] * copies), torch.cat([t] * copies), joint).chunk(copies)
    return *eps[: len(others)], torch.stack(eps[len(others) :]).mean(dim=0)
