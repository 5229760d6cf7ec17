"""What a run ran on: device, driver, threads, package versions and commit."""

from __future__ import annotations

import gc
import platform
import re
import subprocess
import time
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from unlearnbench.compute.device import trim

NVIDIA = Path("/proc/driver/nvidia/version")
"""What NVIDIA's driver says of itself on Linux, except under WSL."""
SEEING = ("open_clip_torch", "onnxruntime", "opencv-python-headless", "pillow", "torchvision")
"""Packages that witnesses use; their versions are recorded if the task has witnesses."""
PACKAGES = ("unlearnbench", "torch", "diffusers", "transformers", "torch-fidelity", "scikit-learn", "numpy", "scipy")


def describe_environment(device: str) -> dict[str, Any]:
    """Describe the environment for a record. Facts that cannot be determined are None.

    A GPU that this process has not used is not asked for its name: a driver of jobs leaves it to its workers.
    """
    return {
        "device": _name(device),
        "device_type": device,
        "nvidia_driver": nvidia_driver() if device == "cuda" else None,
        "cuda_toolkit": torch.version.cuda if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "precision": "float32",
        "python": platform.python_version(),
        "system": platform.system(),
        "packages": {name: _version(name) for name in PACKAGES},
        **_commit(),
    }


def _name(device: str) -> str | None:
    if device != "cuda":
        return _cpu()
    return torch.cuda.get_device_name() if torch.cuda.is_initialized() else None


@cache
def nvidia_driver() -> str | None:
    """Version of NVIDIA's kernel driver, such as 550.54.15, without touching a GPU; None if it cannot be told."""
    try:  # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024"
        text = NVIDIA.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    if found := re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", text, re.MULTILINE):
        return found[1]
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    first = done.stdout.strip().partition("\n")[0].strip()
    return first if re.fullmatch(r"\d+(\.\d+)+", first) else None


def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def seeing() -> dict[str, str | None]:
    """Return the versions of the packages that witnesses use."""
    return {name: _version(name) for name in SEEING}


@cache  # reading a package's metadata takes milliseconds, and a process writes many records
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache  # the code that runs is the one that was imported, whatever is edited meanwhile
def _commit() -> dict[str, Any]:
    """The checkout's commit and whether its code has uncommitted changes; None outside a checkout."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, encoding="utf-8", errors="replace", check=False
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    changed = git("status", "--porcelain", "--", "unlearnbench", "methods", "metrics")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


class Meter:
    """Measure the seconds and peak memory (bytes) of a block, after the device has finished its work.

    With `memory=False` only time is measured, which saves the clean-up of the process's memory before the block.
    `others` are bytes on a GPU that do not belong to the block (see `memory_in_use`).
    """

    memory: int | None = None

    def __init__(self, device: str, memory: bool = True, others: int = 0):
        self.device, self._measures, self._others = device, memory, others

    def __enter__(self) -> Meter:
        self._sync()
        self._base = _reset_peak(self.device, self._others) if self._measures else None
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._sync()
        self.seconds = time.perf_counter() - self._start
        if self._base is not None and (peak := _peak(self.device)) is not None:
            self.memory = max(0, peak - self._base)

    def _sync(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def memory_in_use(device: str) -> int:
    """Bytes that tensors of this process take on a GPU now; 0 on the CPU, where growth is measured."""
    return torch.cuda.memory_allocated() if device == "cuda" and torch.cuda.is_initialized() else 0


def _reset_peak(device: str, others: int) -> int | None:
    """Reset the peak and return the bytes in use that do not count; None if the system cannot tell."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return others  # the rest counts, including weights
    try:
        trim()  # otherwise memory that is used again would not show as growth
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return _status("VmRSS")
    except OSError:
        return None


def _peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def now() -> str:
    """The current time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
