"""Control: the untouched model, which must score no erasure."""

from dataclasses import dataclass
from typing import Any

from unlearnbench import Diffusion, Method, Task


@dataclass(frozen=True)
class Original(Method):
    """Does nothing."""

    requires = frozenset()
    trains = False

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Return the model as it is."""
        return model
