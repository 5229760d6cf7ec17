"""Device, CPU threads and numerical settings of a computation."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from unlearnbench.errors import UserError


def pick_device(wanted: str) -> str:
    """Return the torch device; "auto" is CUDA if available, else the CPU."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    return wanted


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Run torch with this many CPU threads, which affect the last bits of results. None keeps the current number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def exact() -> Iterator[None]:
    """Run convolutions on CUDA in full float32 instead of TF32, with deterministic algorithms."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def trim() -> None:
    """Return freed memory to the system. The C library would keep it, and more with every round of work."""
    with suppress(AttributeError):  # a C library other than GNU's
        ctypes.CDLL(None).malloc_trim(0)
