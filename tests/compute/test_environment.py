"""What a run ran on, and what it cost."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from unlearnbench import registry
from unlearnbench.compute import device, environment
from unlearnbench.compute.device import pick_device
from unlearnbench.compute.environment import Meter, describe_environment
from unlearnbench.compute.precision import too_little
from unlearnbench.errors import UserError
from unlearnbench.pipeline.unlearning import name_errors


@pytest.mark.parametrize(("there", "wanted", "given"), [(True, "auto", "cuda"), (False, "auto", "cpu")])
def test_auto_takes_what_is_there(monkeypatch, there, wanted, given):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert pick_device(wanted) == given


def test_a_device_asked_for_is_given_or_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (pick_device("cpu"), pick_device("cuda")) == ("cpu", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device cuda.*--device cpu"):
        pick_device("cuda")


def test_description_is_json_and_names_the_packages(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    found = describe_environment("cpu")
    assert json.loads(json.dumps(found)) == found
    assert found["threads"] == torch.get_num_threads()
    assert found["device_type"] == "cpu"
    assert found["nvidia_driver"] is found["cuda_toolkit"] is None
    assert found["packages"] == {"torch": version("torch"), "no-such-package": None}
    assert re.fullmatch(r"3\.\d+\.\d+.*", found["python"])


# The lines as the driver writes them: NVIDIA/open-gpu-kernel-modules, kernel-open/nvidia/nv-procfs.c, version.
PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12.2.0\n"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.35.03  Release Build  (builder@host)  Fri Aug 16\n"


@pytest.mark.parametrize(("text", "version"), [(PROPRIETARY, "535.104.05"), (OPEN, "560.35.03")])
def test_the_driver_is_nvidias_and_the_toolkit_stands_beside_it(monkeypatch, tmp_path, text, version):
    monkeypatch.setattr(environment, "NVIDIA", tmp_path / "version")
    (tmp_path / "version").write_text(text)
    environment.nvidia_driver.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    found = describe_environment("cuda")
    environment.nvidia_driver.cache_clear()
    assert (found["nvidia_driver"], found["cuda_toolkit"], found["device"]) == (version, "12.8", "a card")


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo 550.54.15; echo 550.54.15", "550.54.15"),
        ("echo No devices were found", None),
        ("exit 9", None),
        (None, None),
    ],
)
def test_without_the_drivers_own_file_its_tool_is_asked(monkeypatch, tmp_path, script, version):
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr(environment, "NVIDIA", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    environment.nvidia_driver.cache_clear()
    found = environment.nvidia_driver()
    environment.nvidia_driver.cache_clear()
    assert found == version


def test_a_gpu_that_this_process_does_not_use_is_not_opened(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("the GPU was opened"))
    assert describe_environment("cuda")["device"] is None


# What CUDA and torch say: cudaGetErrorString of the codes 46, 100, 101 and 209; torch/cuda/__init__.py, _lazy_init.
UNUSABLE = [
    "CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might be reported later",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    "No CUDA GPUs are available",
    "CUDA error: no CUDA-capable device is detected",
    "CUDA error: invalid device ordinal",
    "CUDA error: no kernel image is available for execution on the device",
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
    "Torch not compiled with CUDA enabled",
]


@pytest.mark.parametrize("said", UNUSABLE)
def test_a_gpu_that_cannot_be_used_is_one_line_with_a_remedy(said):
    kind = AssertionError if "compiled" in said else RuntimeError
    line = r"^the GPU cannot be used: .*--device cpu; what is finished is kept$"
    with pytest.raises(UserError, match=line) as caught, device.explained_device_errors():
        raise kind(said)
    assert "\n" not in str(caught.value)
    for other in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError(said)):
        with pytest.raises(type(other)), device.explained_device_errors():
            raise other


def test_a_gpu_that_is_taken_is_no_fault_of_the_method_that_was_to_use_it():
    line = "^the GPU cannot be used: another process has the GPU to itself"
    with pytest.raises(UserError, match=line), name_errors(registry.load_method("uce")()):
        raise RuntimeError(UNUSABLE[0])


def test_memory_that_another_process_holds_is_named():
    said = (
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of which 15.06 MiB "
        "is free. Process 4711 has 70.00 GiB memory in use. Including non-PyTorch memory, this process has 9.00 GiB "
        "memory in use. Of the allocated memory 8.00 GiB is allocated by PyTorch"
    )
    line = str(too_little("esd", torch.OutOfMemoryError(said), 4))
    assert "process 4711 holds 70.00 GiB of this GPU, CUDA_VISIBLE_DEVICES names another" in line and "\n" not in line
    assert "9.00" not in line and "process" not in str(too_little("esd", torch.OutOfMemoryError("out of memory"), 4))


@pytest.fixture
def described():
    """The environment as a new process would describe it."""

    def now():
        environment._commit.cache_clear()
        return describe_environment("cpu")

    yield now
    environment._commit.cache_clear()


def test_outside_a_checkout_the_commit_is_unknown(monkeypatch, tmp_path, described):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "unlearnbench/compute/environment.py"))
    found = described()
    assert (found["commit"], found["dirty"]) == (None, None)


def test_commit_and_changes_of_a_checkout(monkeypatch, tmp_path, described):
    def git(*words: str) -> str:
        named = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", "-C", tmp_path, *named, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    for folder in ("unlearnbench", "methods", "metrics"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("a = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "unlearnbench/compute/environment.py"))
    assert described()["commit"] == git("rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("results and notes are not code")
    assert described()["dirty"] is False
    (tmp_path / "methods/a.py").write_text("a = 2\n")
    assert described()["dirty"] is True


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path, described):
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "unlearnbench/compute/environment.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = described()
    assert (found["commit"], found["dirty"]) == (None, None)


def test_meter_takes_the_time_of_its_block(monkeypatch):
    ticks = iter([10.0, 12.5])
    monkeypatch.setattr(environment.time, "perf_counter", lambda: next(ticks))
    with Meter("cpu") as meter:
        pass
    assert meter.seconds == 2.5


def test_meter_waits_for_the_device(monkeypatch):
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("sync"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    monkeypatch.setattr(environment.time, "perf_counter", lambda: order.append("clock") or 0.0)
    with Meter("cuda") as meter:
        order.append("work")
    assert order == ["sync", "clock", "work", "sync", "clock"]
    assert meter.memory == 123


def test_memory_that_the_system_cannot_tell_is_unknown(monkeypatch):
    def refuse(self: Path, *args: object, **settings: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    with Meter("cpu") as meter:
        pass
    assert meter.memory is None


def test_meter_sees_memory_that_was_given_back():
    with Meter("cpu") as meter:
        torch.ones(32, 2**20)
    if meter.memory is None:
        pytest.skip("this system does not tell the peak of the resident set")
    assert meter.memory > 100 * 2**20
    with Meter("cpu") as after:
        pass
    assert after.memory is not None
    assert after.memory < 50 * 2**20, "the peak of the block before must not count"


def test_the_same_work_takes_the_same_memory_again():
    """What an earlier block freed is given back, or a later one would seem to need none."""
    found = []
    for _ in range(3):
        with Meter("cpu") as meter:
            kept = [
                torch.ones(2**14) for _ in range(600)
            ]  # small pieces, which the C library keeps when they are freed
            del kept
        found.append(meter.memory)
    if None in found:
        pytest.skip("this system does not tell the peak of the resident set")
    assert min(found) > 30 * 2**20
    assert max(found) < 1.3 * min(found)


def test_without_memory_none_is_measured_and_nothing_is_put_in_order(monkeypatch):
    monkeypatch.setattr(device, "trim", lambda: pytest.fail("the process was put in order"))
    monkeypatch.setattr(environment, "trim", lambda: pytest.fail("the process was put in order"))
    with Meter("cpu", memory=False) as meter:
        pass
    assert meter.memory is None
    assert meter.seconds >= 0
