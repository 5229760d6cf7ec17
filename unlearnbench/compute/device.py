"""Device, CPU threads and numerical settings of a computation."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

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
def without_tf32() -> Iterator[None]:
    """Compute convolutions and matrix products of float32 on CUDA in float32, not in TF32, which keeps 10 bits.

    By default torch takes TF32 for convolutions. The settings belong to the process, so all its threads see them.
    Raises `UserError` where they were changed under torch's newer names: torch then refuses to read the older ones.
    """
    products, convolutions = _tf32_settings()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


@contextmanager
def exact() -> Iterator[None]:
    """Compute on CUDA without TF32, and convolutions with deterministic algorithms."""
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        without_tf32(),
    ):
        yield


def numerics(device: str) -> dict[str, Any]:
    """What torch computes with at this moment, in this thread, for records.

    `autocast` is the type that matrix products and convolutions are cast to, or None. `tf32` names what may round
    float32 to TF32 ("convolutions", "products"); it is None where the device has no TF32.
    """
    cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    products, convolutions = _tf32_settings()
    allowed = {"convolutions": convolutions, "products": products != "highest"}
    return {
        "autocast": None if cast is None else _short(cast),
        "tf32": [name for name, on in allowed.items() if on] if device == "cuda" else None,
    }


_casts: ContextVar[set[str] | None] = ContextVar("casts", default=None)


@contextmanager
def recipe_autocast(device: str, dtype: torch.dtype, enabled: bool) -> Iterator[None]:
    """The autocast of a training recipe, which does not follow --precision; `noted_casts` learns of it."""
    if enabled and (noted := _casts.get()) is not None:
        noted.add(_short(dtype))
    with torch.autocast(device, dtype=dtype, enabled=enabled):
        yield


@contextmanager
def noted_casts() -> Iterator[set[str]]:
    """Yield the types that recipes cast to within this block, as they are used."""
    noted: set[str] = set()
    token = _casts.set(noted)
    try:
        yield noted
    finally:
        _casts.reset(token)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tf32_settings() -> tuple[str, bool]:
    """The precision of matrix products, and whether convolutions may take TF32."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError as error:
        raise UserError(
            "torch.backends' fp32_precision was changed in this process, so TF32 cannot be switched off: leave that out"
        ) from error


def trim() -> None:
    """Return freed memory to the system. The C library would keep it, and more with every round of work."""
    with suppress(AttributeError):  # a C library other than GNU's
        ctypes.CDLL(None).malloc_trim(0)
