"""Checkpoints of an unlearning: a run that was stopped goes on at the step that was kept last.

They lie in the store until the unlearned weights do, below the same key. Two kinds of files are kept: what `prepare`
returned, and the state of each call of `minimise`. A file that is missing or damaged costs time alone, since what it
would have spared is computed again, from the same seeds. Nothing here changes a result or a measured time.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from unlearnbench.compute.environment import Meter, describe_environment
from unlearnbench.compute.evaluation_budget import Count
from unlearnbench.diffusion.model import Batch, Condition
from unlearnbench.errors import one_line
from unlearnbench.hashing import file_hash
from unlearnbench.method import Method
from unlearnbench.reporting import tell
from unlearnbench.storage.files import flush, reason, replace_file
from unlearnbench.task import Task
from unlearnbench.training import TrainingState, current_checkpoints

EVERY = 120.0
"""Seconds from one checkpoint to the next, at least; what takes less is computed again."""
SHARE = 0.05
"""Largest share of the time that writing checkpoints may take: large ones are written less often."""
KIND = "checkpoints"
"""Their folder in the store."""
ABOUT = "about.json"
"""File beside them that names their task, for `purge`."""
Stage = Literal["prepare", "unlearn"]


class Prepared(NamedTuple):
    """What `prepare` returned in an earlier process, and what it cost."""

    value: Any
    seconds: float
    memory: int | None
    """Peak in bytes."""


class RunCheckpoints:
    """The checkpoints of one run, in a folder of their own; without one nothing is kept.

    They are at least `every` seconds apart, and farther where they are large; with 0 every step is kept.
    Calls of `minimise` are counted within each stage; calls within another call's stream are part of that one.
    """

    def __init__(self, folder: Path | None, method: Method, task: Task, every: float | None = None):
        self._folder, self._method, self._task = folder, method, task
        self._device, self._every = task.device, EVERY if every is None else every
        self._count: Count | None = None
        self._stage: Stage = "prepare"
        self._calls = 0
        self._open: TrainingState | None = None
        self._found: dict[str, Any] | None = None
        self._begun = self._offset = 0.0
        self._written = time.perf_counter()
        self._pause = self._every

    # ---- the run ---------------------------------------------------------------------------------------------------

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Keep the calls of `minimise` within this block."""
        self._stage, self._calls, self._open = stage, 0, None
        self._begun, self._offset = time.perf_counter(), 0.0
        token = current_checkpoints.set(self if self._folder else None)
        try:
            yield
        finally:
            current_checkpoints.reset(token)

    def corrected(self, seconds: float) -> float:
        """Seconds that the stage took in all processes together, from those that were measured in this one.

        Writing checkpoints, bringing a stream to its step, and steps that were lost do not count.
        """
        return seconds + self._offset

    def prepared(self, count: Count | None = None) -> Prepared | None:
        """What an earlier process prepared, with the random numbers as they were then; None if it was not kept.

        `count` is that of the run's tuning budget, if it has one.
        """
        self._count = count
        found = self._read("prepared")
        if found is None:
            return None
        try:
            value = _unpacked(found["value"], _tuples(self._method))
        except (KeyError, TypeError) as error:
            self._drop("prepared", one_line(error))
            return None
        self._put_back(found)
        return Prepared(value, found["seconds"], found["memory"])

    def keep_prepared(self, value: Any, meter: Meter) -> Prepared:
        """What `prepare` returned and cost; it is kept if it took long and consists of tensors and numbers."""
        made = Prepared(value, self.corrected(meter.seconds), meter.memory)
        if self._folder is None or made.seconds < self._every:
            return made
        with suppress(TypeError):
            packed = _packed(value, _tuples(self._method))
            self._write("prepared", {"value": packed, "memory": made.memory}, made.seconds)
            if any(self._folder.glob("prepared.*.pt")):
                for old in self._folder.glob("prepare-*.pt"):  # of its trainings, which are not asked for any more
                    old.unlink(missing_ok=True)
        return made

    # ---- calls of `minimise` ---------------------------------------------------------------------------------------

    def begin(self, state: TrainingState) -> int | None:
        """How many steps of the loop an earlier process did; None: all of them."""
        if self._open is not None:  # a call within the stream of another
            return 0
        begun = time.perf_counter()
        self._open, self._found = state, self._read(self._name)
        self._offset -= time.perf_counter() - begun
        if self._found is None:
            return 0
        if self._found["finished"]:
            return None
        tell(f"{self._method.name} goes on after step {self._found['step']}, where it was stopped")
        return int(self._found["step"])

    def restore(self, state: TrainingState) -> None:
        """Put back parameters, optimisers, running mean and random numbers."""
        found, self._found = self._found, None
        if found is None:
            return
        with torch.no_grad():
            for name, value in state.parameters.items():
                value.copy_(found["parameters"][name])
            for mean, kept in zip(state.mean or (), found["mean"] or (), strict=True):
                mean.copy_(kept)
            for name, other in state.others.items():
                if isinstance(other, Tensor):
                    other.copy_(found["others"][name])
                else:
                    other.load_state_dict(found["others"][name])
        if found["finished"]:
            self._close()
        else:
            state.optimiser.load_state_dict(found["optimiser"])
        self._put_back(found)
        self._offset = found["seconds"] - self._elapsed()

    def reached(self, state: TrainingState, step: int) -> None:
        """Write a checkpoint if it is time."""
        if state is self._open and time.perf_counter() - self._written >= self._pause:
            self._write_state(state, step, finished=False)

    def end(self, state: TrainingState) -> None:
        """Write the loop's result if it is time."""
        if state is self._open:
            if time.perf_counter() - self._written >= self._pause:
                self._write_state(state, 0, finished=True)
            self._close()

    def _close(self) -> None:
        self._open, self._calls = None, self._calls + 1

    @property
    def _name(self) -> str:
        return f"{self._stage}-{self._calls}"

    def _write_state(self, state: TrainingState, step: int, finished: bool) -> None:
        seconds = self.corrected(self._elapsed())
        begun = time.perf_counter()
        others = {
            name: other if isinstance(other, Tensor) else other.state_dict() for name, other in state.others.items()
        }
        values = {
            "step": step,
            "finished": finished,
            "parameters": {name: value.detach() for name, value in state.parameters.items()},
            "optimiser": None if finished else state.optimiser.state_dict(),
            "mean": state.mean,
            "others": others,
        }
        self._write(self._name, values, seconds)
        self._offset -= time.perf_counter() - begun

    def _elapsed(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - self._begun

    def _put_back(self, found: Mapping[str, Any]) -> None:
        """Random numbers, and evaluations that were counted, as they were then."""
        torch.set_rng_state(found["random"])
        if self._device == "cuda":
            torch.cuda.set_rng_state(found["random_cuda"])
        if self._count is not None:
            self._count.evaluations = found["evaluations"]

    # ---- files -----------------------------------------------------------------------------------------------------

    def delete(self) -> None:
        """Delete all of them: the unlearned weights are there, or are to be made from the start."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def found(self) -> bool:
        """Whether an earlier process left any."""
        return self._folder is not None and any(self._folder.glob("*.pt"))

    def _write(self, name: str, values: Mapping[str, Any], seconds: float) -> None:
        """Write a checkpoint under the hash of its content, then delete the one before.

        A run goes on without checkpoints if the store cannot take them.
        """
        assert self._folder is not None
        begun = time.perf_counter()
        random = {
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if self._device == "cuda" else None,
            "evaluations": self._count.evaluations if self._count else 0,
        }
        try:
            if not (self._folder / ABOUT).is_file():
                replace_file(self._folder / ABOUT, json.dumps({"task": self._task.name}).encode())
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".new-") as temporary:
                new = Path(temporary) / name
                torch.save({**values, **random, "seconds": seconds, "made_with": _made_with(self._device)}, new)
                flush(new)
                path = self._folder / f"{name}.{file_hash(new)}.pt"
                new.replace(path)
            for old in self._folder.glob(f"{name}.*.pt"):
                if old != path:
                    old.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:  # torch's writer says the latter when the disk is full
            why = reason(error) if isinstance(error, OSError) else str(error).lower().splitlines()[0]
            tell(f"no checkpoint could be kept in {self._folder} ({why}): the run goes on without")
            self._pause = float("inf")
            return
        self._written = time.perf_counter()
        self._pause = max(self._every, (self._written - begun) / SHARE) if self._every else 0.0

    def _read(self, name: str) -> dict[str, Any] | None:
        """Read the last whole checkpoint of this name; damaged ones, and those made elsewhere, are deleted."""
        if self._folder is None:
            return None
        where = None if name == "prepared" else "cpu"  # states are copied to where they belong
        for path in sorted(self._folder.glob(f"{name}.*.pt"), key=_age):
            try:
                if file_hash(path) != path.suffixes[-2][1:]:
                    raise ValueError("it was changed")
                found: dict[str, Any] = torch.load(path, map_location=where, weights_only=True)
                now = _made_with(self._device)
                differing = [key for key, value in now.items() if found["made_with"].get(key) != value]
                if not differing:
                    return found
                self._drop(name, f"it was made with another {differing[0]}")
            except FileNotFoundError:
                continue  # another process that runs the same cell has just replaced it
            except Exception as error:  # noqa: BLE001 - a damaged file may fail in any way, and costs time alone
                self._drop(name, one_line(error), path)
        return None

    def _drop(self, name: str, why: str, path: Path | None = None) -> None:
        assert self._folder is not None
        for old in [path] if path else self._folder.glob(f"{name}.*.pt"):
            old.unlink(missing_ok=True)
        tell(f"a checkpoint of the unlearning cannot be used ({why}): what it held is computed again")


def _age(path: Path) -> float:
    return -path.stat().st_mtime if path.is_file() else 0.0


def _made_with(device: str) -> dict[str, Any]:
    """What the last bits of a result depend on besides the run's key."""
    found = describe_environment(device)
    known = {"device": found["device"], "torch": found["packages"]["torch"]}
    return known if device == "cuda" else {**known, "number of threads": found["threads"]}


# ---- what `prepare` returned -----------------------------------------------------------------------------------------


def _tuples(method: Method) -> dict[str, type]:
    """Named tuples that prepared values may contain, by name: the engine's, and those of the method's own modules."""
    modules = [vars(sys.modules[base.__module__]) for base in type(method).__mro__ if base.__module__ in sys.modules]
    every = [Batch, Condition, *(value for names in modules for value in names.values())]
    return {
        f"{value.__module__}.{value.__qualname__}": value
        for value in every
        if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields")
    }


def _packed(value: Any, tuples: Mapping[str, type]) -> Any:
    """The value in dictionaries, lists and tensors alone, which are read without running code.

    Raises `TypeError` for anything else.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if type(value) is Tensor:
        return value.detach()
    if type(value) is dict:
        return {"kind": "dict", "items": [[key, _packed(one, tuples)] for key, one in value.items()]}
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind not in (list, tuple) and tuples.get(name) is not kind:
        raise TypeError(f"{name} is not kept")
    return {"kind": kind.__name__ if kind in (list, tuple) else name, "items": [_packed(one, tuples) for one in value]}


def _unpacked(value: Any, tuples: Mapping[str, type]) -> Any:
    if not isinstance(value, dict):
        return value
    items = value["items"]
    if value["kind"] == "dict":
        return {key: _unpacked(one, tuples) for key, one in items}
    found = [_unpacked(one, tuples) for one in items]
    if value["kind"] in ("list", "tuple"):
        return found if value["kind"] == "list" else tuple(found)
    return tuples[value["kind"]](*found)
