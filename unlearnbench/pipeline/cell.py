"""A cell: one method on one task, with its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from unlearnbench.compute.precision import DEFAULT, Resources
from unlearnbench.data.prompt_sets import PromptFile
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.method import ACCESS, Method
from unlearnbench.pipeline.memory import require_splittable
from unlearnbench.records.schema import Selection
from unlearnbench.task import Task, on_cpu


@dataclass(frozen=True)
class Cell:
    """One method on one task. The task holds concept, protocol, unlearning seed and device."""

    method: Method
    task: Task
    preset: str = "default"
    overrides: Mapping[str, Any] | None = None
    selection: Selection | None = None
    """What tuned settings were chosen on."""
    resources: Resources = DEFAULT
    """Precision and memory savings."""
    include_unsafe: bool = False
    """Whether results may contain images and prompts of an unsafe task."""
    prompts: tuple[PromptFile, ...] = ()
    """Files of the user's own prompts, scored beside the protocol's."""
    notes: dict[str, Any] = field(default_factory=dict, compare=False)
    """What the run found out about the machine, such as `sampling_batch` if the protocol's did not fit."""

    @cached_property
    def worded(self) -> Task:
        """The task as the method sees it, with words of its own if it has any; `task` is what is measured."""
        return self.method.worded(self.task)

    @property
    def division(self) -> Literal["default", "published", "released", "tuned", "custom"]:
        """How the hyper-parameters were chosen."""
        if self.overrides:
            return "custom"
        return self.preset if self.preset in ("default", "published", "released", "tuned") else "custom"  # type: ignore[return-value]


def refused(task: Task, name: str) -> str:
    """Why a method or an attack does not carry over to a task's model, as its `refused` says; "" if it may."""
    reasons: Mapping[str, str] = getattr(task, "refused", {})
    return reasons.get(name, "")


def require(cell: Cell) -> None:
    """Raise `Unsupported` if the task or model lacks what the method needs, or the task refuses it with a reason.

    The model is built only where a part is asked for that models of this task need not have. Raises `UserError` for
    --compile where images are drawn with dropout, whose masks a compiled network would not change.
    """
    if reason := refused(cell.task, cell.method.name):
        raise Unsupported(f"{cell.method.name} does not carry over to {cell.task.name}: {reason}")
    require_splittable(cell.method, cell.resources)
    if cell.resources.compile and cell.task.draws_with_dropout:
        raise UserError(f"--compile: protocol {cell.task.protocol.name} draws with dropout on: leave it out")
    lacking = cell.method.requires - cell.task.provides - cell.task.model_parts
    if lacking and not lacking & set(ACCESS):
        lacking -= set(on_cpu(cell.task).architecture(0).parts())
    if lacking:
        raise Unsupported(
            f"{cell.method.name} needs {', '.join(sorted(lacking))}, which {cell.task.name} does not have"
        )
