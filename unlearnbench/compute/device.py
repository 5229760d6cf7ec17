"""Device, threads and numerical settings of a computation."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from unlearnbench.errors import UserError


def pick_device(wanted: str) -> str:
    """ "auto" is CUDA where there is any, else the CPU."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    return wanted


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Torch with so many CPU threads, on which results depend in their last bits; None: as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def exact() -> Iterator[None]:
    """Convolutions on CUDA in whole float32, where torch would take TF32, and by algorithms that repeat themselves."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def trim() -> None:
    """Return what the process has freed to the system: the C library keeps it, and more with every round of work."""
    with suppress(AttributeError):  # other C libraries than GNU's
        ctypes.CDLL(None).malloc_trim(0)
