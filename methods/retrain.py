"""Gold standard: trained from scratch without the forget set, with the original's recipe and number of steps."""

from dataclasses import dataclass
from typing import Any

from unlearnbench import Diffusion, Method, Task


@dataclass(frozen=True)
class Retrain(Method):
    """The result of exact unlearning. Its UA marks full efficacy."""

    requires = frozenset({"retain images", "training recipe"})

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Train a new model on the retain set alone, from the unlearning seed."""
        return task.train(task.seed, "retain")
