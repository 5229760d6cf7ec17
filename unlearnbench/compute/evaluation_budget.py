"""Count the denoiser evaluations of an unlearning and stop it at a cap: the budget within which methods are tuned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import OutOfMemory, UserError


class OverCap(UserError):
    """An unlearning needed more evaluations than it was given."""


class Count:
    """Forward passes of single images through the denoiser or any copy of it, with or without gradient."""

    def __init__(self, cap: int | None = None):
        self.evaluations, self.cap = 0, cap

    def charge(self, images: int) -> None:
        """Add a pass of this many images. Raises `OverCap` at the pass that exceeds the cap."""
        self.evaluations += images
        if self.cap is not None and self.evaluations > self.cap:
            raise OverCap(f"stopped at {self.evaluations:,} evaluations: over the cap of {self.cap:,}")


_budget: ContextVar[Count | None] = ContextVar("evaluation_budget", default=None)


@contextmanager
def capped(cap: int | None) -> Iterator[Count]:
    """Count evaluations within this block. Yields the count, which remains readable after an error."""
    token = _budget.set(count := Count(cap))
    try:
        yield count
    finally:
        _budget.reset(token)


@contextmanager
def counted(model: Diffusion) -> Iterator[Count | None]:
    """Charge every pass through a network of the same class as the model's denoiser to the current budget.

    Without a budget nothing is counted, since a hook on every module would slow down the runs that report times. Frozen
    teachers, deep copies and newly initialised networks are of the same class and count as well. A model without a
    network named `transformer` or `unet` is its own denoiser. The hook is global to the process: two unlearnings in
    threads of one process would be added up.
    """
    denoiser = getattr(model, "transformer", None) or getattr(model, "unet", model)
    network, count = type(denoiser), _budget.get()
    if count is None:
        yield None
        return

    def charge(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if type(module) is network:
            count.charge(next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))

    before = count.evaluations
    handle = register_module_forward_hook(charge, with_kwargs=True)
    try:
        yield count
    except OutOfMemory:
        count.evaluations = before  # it is done again, in smaller parts
        raise
    finally:
        handle.remove()
