"""Watch a method at work: the values that it notes, the gradients of its steps, and its weights on the way.

Nothing here changes a result: no random number is drawn, and nothing is kept in the model. Optimisers are observed with
torch's own hooks, so that methods need no code for it.
"""

from __future__ import annotations

import math
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from unlearnbench.errors import UserError
from unlearnbench.pipeline.snapshots import LIMIT, Snapshot, Thinned, delete, full, write_snapshot
from unlearnbench.reporting import Number, current_watch, tell

NAMES, LETTERS = 32, 60
"""Most names that a run may note, and most letters of each."""
GRADIENT = "gradient norm"
"""Name of the series of the main optimiser's gradient norms."""
Log = Callable[[int, Mapping[str, float]], None]
Series = list[tuple[int, float | None]]
"""Steps, counted from 1, and values; None was not finite."""


@dataclass(eq=False)
class _Course:
    """The steps of one optimiser."""

    optimiser: weakref.ref[torch.optim.Optimizer]
    count: int = 0
    norms: Thinned[tuple[int, float | None]] = field(default_factory=Thinned)
    snapshots: Thinned[Snapshot | None] = field(default_factory=lambda: Thinned(LIMIT - 2))


class Watch:
    """Watches one run: within `hearing` it counts optimiser steps and keeps noted values.

    An optimiser counts if it holds parameters of the model being unlearned. The main one is that with the most steps at
    the end, since inner loops create short-lived ones. With `every`, the model's weights are written to a folder below
    `root` at the start, after every so many steps of an optimiser, and at the end. `log` gets each value as it comes.
    `aside` is the time in seconds that all this took, which the run's clock leaves out.
    """

    def __init__(
        self, device: str, every: int | None = None, root: Path | None = None, log: Log | None = None, on: bool = True
    ):
        self.device, self.every, self.aside, self.heard = device, every, 0.0, False
        self._root, self._log, self._on = root, log, on
        self._courses: list[_Course] = []
        self._main: _Course | None = None
        self._noted: dict[str, Thinned[tuple[int, dict[_Course, int], float | None]]] = {}
        self._start: Snapshot | None = None
        self._end: Snapshot | None = None
        self._begun: float | None = None
        self._before = self._clock = 0.0
        self._model: nn.Module | None = None
        self._files = 0
        self._folder: Path | None = None
        self._kept = ExitStack()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self._kept.close()

    @property
    def folder(self) -> Path:
        """A folder that is deleted when the watch ends."""
        if self._folder is None:
            try:
                if self._root is not None:
                    self._root.mkdir(parents=True, exist_ok=True)
                self._folder = Path(self._kept.enter_context(tempfile.TemporaryDirectory(dir=self._root)))
            except OSError as error:
                raise full(self._root or Path(tempfile.gettempdir()), error) from error
        return self._folder

    # ---- while the method works ------------------------------------------------------------------------------------

    @contextmanager
    def hearing(self, model: nn.Module) -> Iterator[None]:
        """Context for preparing and unlearning this model."""
        if not self._on:
            yield
            return
        self._courses, self._main, self._noted = [], None, {}  # a run that started before, and ran out of memory
        self._begun, self.aside, self._model = None, 0.0, model
        if self.every is not None:
            self._start = self._written(model.state_dict(), 0, 0.0)
        self.heard = True
        token = current_watch.set(self)
        handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            current_watch.reset(token)
            self._model = None

    def begin(self) -> None:
        """Preparing has ended and the clock of unlearning starts."""
        self._begun, self._before = time.perf_counter(), self.aside

    def end(self, state: Mapping[str, Tensor], seconds: float) -> None:
        """Unlearning has ended with these weights after this many seconds."""
        if self.heard and self.every is not None:
            self._end = self._written(state, self.steps, seconds)

    def hear(self, values: Mapping[str, Number | Callable[[], Number]]) -> None:
        """Keep values that a method noted."""
        with self._apart():
            numbers = {name[:LETTERS]: _number(name, value) for name, value in values.items()}
            counts = {course: course.count for course in self._courses}
            for name, number in numbers.items():
                if name not in self._noted and len(self._noted) == NAMES:
                    tell(f"more than {NAMES} names were noted: {name!r} and others are left out")
                    continue
                series = self._noted.setdefault(name, Thinned())
                series.add((series.count + 1, counts, number))
            self._tell(self.steps + 1, numbers)

    def _before_step(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        with self._apart():
            course, grads = self._course(optimiser)
            if course is not None:
                course.norms.add((course.count + 1, _norm(grads)))

    def _after_step(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        with self._apart():
            course, _grads = self._course(optimiser)
            if course is None or self._model is None:
                return
            course.count += 1
            if self._main is None or course.count > self._main.count:
                self._main = course
            if course is self._main:
                self._tell(course.count, {GRADIENT: course.norms.items()[-1][1]})
            if self.every is not None and course.count % self.every == 0:
                due, step = course.snapshots.due, course.count
                shot = self._written(self._model.state_dict(), step, self._clock) if due else None
                delete(course.snapshots.add(shot))

    def _course(self, optimiser: torch.optim.Optimizer) -> tuple[_Course | None, list[Tensor]]:
        """The steps of this optimiser and its gradients; None if it holds none of the model's parameters."""
        assert self._model is not None
        own = {id(value) for value in self._model.parameters()}
        held = [value for group in optimiser.param_groups for value in group["params"] if id(value) in own]
        if not held:
            return None, []
        found = next((course for course in self._courses if course.optimiser() is optimiser), None)
        if found is None:
            self._tidy()
            found = _Course(weakref.ref(optimiser))
            self._courses.append(found)
        return found, [value.grad for value in held if value.grad is not None]

    def _tidy(self) -> None:
        """Forget optimisers that no longer exist, unless one of them made the most steps."""
        gone = [course for course in self._courses if course.optimiser() is None and course is not self._main]
        for course in gone:
            self._courses.remove(course)
            delete(course.snapshots.items())

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Context for work that is not the method's: its time goes to `aside`, after the device has finished."""
        self._sync()
        begun = time.perf_counter()
        if self._begun is not None:
            self._clock = begun - self._begun - (self.aside - self._before)
        try:
            with torch.no_grad():
                yield
        finally:
            self._sync()
            self.aside += time.perf_counter() - begun

    def _sync(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _written(self, state: Mapping[str, Tensor], step: int, seconds: float) -> Snapshot:
        self._files += 1
        return write_snapshot(state, self.folder / f"{self._files}.pt", step, seconds)

    def _tell(self, step: int, values: Mapping[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        if self._log is not None and known:
            self._log(step, known)

    # ---- afterwards ------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Number of steps of the main optimiser."""
        return self._main.count if self._main else 0

    def snapshots(self) -> list[Snapshot]:
        """Weights in order: the start, those of the main optimiser, the end; without steps only the end.

        Weights on the way are as the optimiser left them, before anything that a method does after a step, such as a
        running mean. The end is what the method returned.
        """
        end = [] if self._end is None else [self._end]
        if self._main is None:
            return end
        start = [] if self._start is None else [self._start]
        between = [shot for shot in self._main.snapshots.spread if shot is not None]
        return [*start, *(shot for shot in between if not end or shot.step < self.steps), *end]

    def series(self) -> dict[str, Series]:
        """Noted values and the main optimiser's gradient norms, by name, at steps of the main optimiser.

        Without an optimiser, values are counted.
        """
        main = self._main
        found: dict[str, Series] = {
            name: [(n if main is None else counts.get(main, 0) + 1, value) for n, counts, value in noted.items()]
            for name, noted in self._noted.items()
        }
        return found if main is None else {**found, GRADIENT: main.norms.items()}


def _number(name: str, value: Number | Callable[[], Number]) -> float | None:
    """A noted value as a number; None if it is not finite."""
    try:
        number = float(value() if callable(value) and not isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"note({name}=…) got {value!r:.60}: give a number, or a tensor of one element") from error
    return number if math.isfinite(number) else None


def _norm(grads: list[Tensor]) -> float | None:
    """||g|| over all gradients together, as the optimiser gets them (clipped and masked)."""
    norms = [torch.linalg.vector_norm(grad).float() for grad in grads]
    number = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
    return number if math.isfinite(number) else None
