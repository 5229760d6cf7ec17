"""Gold: trained from scratch without the forget set, by the original's recipe and number of steps."""

from dataclasses import dataclass
from typing import Any

from unlearnbench import Diffusion, Method, Task


@dataclass(frozen=True)
class Retrain(Method):
    """What exact unlearning would give; its UA is the one of efficacy."""

    requires = frozenset({"retain images", "training recipe"})

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """A new model, trained on the retain set alone from the unlearning seed."""
        return task.train(task.seed, "retain")
