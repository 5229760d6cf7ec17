"""Control: replaces the condition before sampling; perfect on direct prompts, although nothing is forgotten."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unlearnbench import Condition, Diffusion, Guidance, Method, Task


class _Swap(Guidance):
    """Guidance that uses the substitute's condition wherever the label or tokens ask for the forgotten concept."""

    def __init__(self, task: Task):
        self.task = task

    def __call__(
        self, model: Diffusion, x_t: Tensor, t: Tensor, i: int, condition: Condition, null: Condition, w: float
    ) -> Tensor:
        """Guided noise prediction for the replaced condition."""
        if condition.ids is not None:
            forgotten = self.task.forgotten(condition.ids)
            condition = model.embed(self.task.substitute(condition.ids)).where(forgotten, condition)
        return super().__call__(model, x_t, t, i, condition, null, w)


@dataclass(frozen=True)
class PromptFilter(Method):
    """Leaves every weight as it is: whatever bypasses the prompt (embeddings, weights, probes) finds the concept."""

    requires = frozenset({"concept"})
    trains = False

    def wrap(self, model: Diffusion, task: Task) -> Diffusion:
        """Put the filter between prompt and model."""
        model.guidance = _Swap(task)
        return model

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Return the model as it is."""
        return model
