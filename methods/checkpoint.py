"""Weights unlearned elsewhere, from a file or folder: diffusers, CompVis, ESD's and UCE's states, LoRA."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from unlearnbench import Diffusion, Method, Task, apply_checkpoint, checkpoint_hash


@dataclass(frozen=True)
class Checkpoint(Method):
    """theta = the file's weights where it has them, the original's elsewhere. Stable Diffusion only.

    `sha256` is filled in from the content of `path`, so that records identify the weights by it. A given hash that does
    not match is refused. Nothing is trained: the runtime is that of loading.
    """

    requires = frozenset({"text_encoder"})
    incomplete = True
    path: str = ""
    """File or folder with the unlearned weights (ours); relative to the current folder."""
    sha256: str = ""
    """Hash of its content, hexadecimal (ours): filled in from the file, and refused where it does not fit."""

    def __post_init__(self) -> None:
        if self.path:
            object.__setattr__(self, "sha256", checkpoint_hash(self.path, self.sha256))

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Load the file's weights into the model."""
        apply_checkpoint(model, self.path)
        return model

    def given(self, keys: Iterable[str]) -> dict[str, Any]:
        """The hash of the content instead of the path, so that the same weights have one name wherever they are."""
        return {"sha256": self.sha256[:12]} if {*keys} & {"path", "sha256"} else {}
