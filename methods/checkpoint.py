"""Weights unlearned elsewhere, from a file, folder or the hub: diffusers, CompVis, ESD's states, LoRA, .pth files."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from unlearnbench import Diffusion, Method, Task, apply_checkpoint, checkpoint_address, checkpoint_fit, checkpoint_hash
from unlearnbench.errors import UserError


@dataclass(frozen=True)
class Checkpoint(Method):
    """theta = the file's weights where it has them, the original's elsewhere.

    `sha256` is filled in from the content of `path`, so that records identify the weights by it; a hub address gets the
    commit that it stands for. A given hash that does not match is refused. Nothing is trained: the runtime is that of
    loading. Where a training checkpoint holds raw weights and their average, the protocol says which of them are
    compared, the unlearned ones and the original's alike: on cifar10-class, `--protocol raw` for SalUn's and SFRon's
    files, which their code samples raw, and the default for those of Selective Amnesia and EraseDiff.
    """

    requires = frozenset()
    trains = False
    incomplete = True
    version = 2
    """2: alpha of a LoRA beside its file, and rounding of half precision."""
    path: str = ""
    """File or folder with the unlearned weights, relative to the current folder; hub:OWNER/NAME, with @REVISION and
    /FILE; or released:NAME, one of `unlearnbench list checkpoints` (ours)."""
    alpha: float | None = None
    """Alpha of a LoRA whose file does not say it (ours)."""
    sha256: str = ""
    """Hash of its content, hexadecimal (ours): filled in from the file, and refused where it does not fit."""

    def __post_init__(self) -> None:
        if self.alpha is not None and self.alpha <= 0:
            raise UserError(f"alpha={self.alpha:g} does not fit checkpoint: give a number above 0")
        if self.path:
            object.__setattr__(self, "path", checkpoint_address(self.path))
            object.__setattr__(self, "sha256", checkpoint_hash(self.path, self.sha256))

    def require_fit(self, task: Task) -> str:
        """Refuse a file that does not fit the task's model; say how many of its tensors a partial one replaces."""
        form = getattr(task.protocol, "weights", None)
        replaced, every = checkpoint_fit(task.architecture(0), self.path, form=form, alpha=self.alpha)
        return "" if replaced == every else f"replaced {replaced} of {every} tensors; the others are the original's"

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Load the file's weights into the model."""
        apply_checkpoint(model, self.path, form=getattr(task.protocol, "weights", None), alpha=self.alpha)
        return model

    def given(self, keys: Iterable[str]) -> dict[str, Any]:
        """The hash of the content instead of the path, so that the same weights have one name wherever they are."""
        shown = {"sha256": self.sha256[:12]} if {*keys} & {"path", "sha256"} else {}
        return shown | ({"alpha": self.alpha} if "alpha" in keys else {})
