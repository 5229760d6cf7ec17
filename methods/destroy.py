"""Control: random weights, which must score no retention."""

from dataclasses import dataclass
from typing import Any

from unlearnbench import Diffusion, Method, Task


@dataclass(frozen=True)
class Destroy(Method):
    """Replaces every weight by a freshly initialised one. Its RA marks zero utility."""

    requires = frozenset()

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Return an untrained network of the same shape."""
        return task.architecture(task.seed + 1)
