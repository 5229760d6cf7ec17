"""Count what an unlearning asks of the denoiser, and stop it at a cap: the budget that methods are tuned within."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import UserError


class OverCap(UserError):
    """An unlearning asked for more evaluations than it was given."""


class Count:
    """Passes of one image through the denoiser, whichever copy of it, with or without gradient."""

    def __init__(self, cap: int | None = None):
        self.evaluations, self.cap = 0, cap

    def charge(self, images: int) -> None:
        """Add a pass of so many images; raises `OverCap` at the pass that goes beyond the cap."""
        self.evaluations += images
        if self.cap is not None and self.evaluations > self.cap:
            raise OverCap(f"stopped at {self.evaluations:,} evaluations: over the cap of {self.cap:,}")


_budget: ContextVar[Count | None] = ContextVar("evaluation_budget", default=None)


@contextmanager
def capped(cap: int | None) -> Iterator[Count]:
    """Within this block unlearning is charged to the count that is yielded, which stands after an error too."""
    token = _budget.set(count := Count(cap))
    try:
        yield count
    finally:
        _budget.reset(token)


@contextmanager
def counted(model: Diffusion) -> Iterator[Count | None]:
    """Charge every pass through a network of the kind that is the model's denoiser to the budget that is set.

    Where none is, nothing is counted: a hook on every module would be in the times that runs report.
    Frozen teachers, deep copies and networks drawn anew are of that kind. A model that has no network as `unet` is its
    own denoiser. The hook is the process's: two unlearnings at once in threads of one process would be added up.
    """
    network, count = type(getattr(model, "unet", model)), _budget.get()
    if count is None:
        yield None
        return

    def charge(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if type(module) is network:
            count.charge(next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))

    handle = register_module_forward_hook(charge, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()
