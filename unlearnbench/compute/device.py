"""Device, CPU threads and numerical settings of a computation."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from unlearnbench.errors import UserError, message


def pick_device(wanted: str) -> str:
    """Return the torch device; "auto" is CUDA if available, else the CPU."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    return wanted


TROUBLE = {
    r"busy or unavailable": "another process has the GPU to itself (exclusive mode, or a partition in use)",
    r"No CUDA GPUs are available|no CUDA-capable device|invalid device ordinal": "CUDA finds no such GPU here",
    r"no kernel image is available": "this torch is not built for the GPU: install one that is",
    r"driver version is insufficient|driver on your system is too old|no NVIDIA driver|not compiled with CUDA":
        "this torch and the machine's NVIDIA driver do not go together",
}  # fmt: skip
"""Messages of CUDA and torch for a GPU that cannot be used at all, and what they mean."""


def device_trouble(error: BaseException) -> UserError | None:
    """One line for an error that says that the GPU cannot be used; None for any other."""
    if not isinstance(error, (RuntimeError, AssertionError)):
        return None
    said = message(error)
    meaning = next((meaning for words, meaning in TROUBLE.items() if re.search(words, said)), None)
    if meaning is None:
        return None
    return UserError(
        f"the GPU cannot be used: {meaning} ({said[:120]}); free it, name another by CUDA_VISIBLE_DEVICES, or give "
        "--device cpu; what is finished is kept"
    )


@contextmanager
def explained_device_errors() -> Iterator[None]:
    """Turn the errors of a GPU that cannot be used into one line within this block."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if trouble := device_trouble(error):
            raise trouble from error
        raise


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
