"""Progress reports and notes. Any code may send them; the command line and a run's monitor show and store them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor


T = TypeVar("T")
Number: TypeAlias = "float | Tensor"
"""A value that a method notes: a number, or a tensor with one element."""


class Listener(Protocol):
    """Receives the values that a method notes while it works."""

    def hear(self, values: Mapping[str, Number | Callable[[], Number]]) -> None:
        """Receive values by name. A function is called to get its value."""


current_watch: ContextVar[Listener | None] = ContextVar("watch", default=None)


class Stopped(Exception):
    """The user pressed Ctrl-C during long work."""


Sink = Callable[[str, int, int], None]

_sink: ContextVar[Sink | None] = ContextVar("progress_sink", default=None)
_phase: ContextVar[str] = ContextVar("progress_phase", default="")
_teller: ContextVar[Callable[[str], None] | None] = ContextVar("progress_teller", default=None)


@contextmanager
def shown_by(sink: Sink) -> Iterator[None]:
    """Send every progress report within this block to `sink(what, done, total)`."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Name what progress within this block is part of: `unlearning` is shown as `unlearning: steps` from then on."""
    token = _phase.set(name)
    show_progress("", 0, 1)
    try:
        yield
    finally:
        _phase.reset(token)


def _named(what: str) -> str:
    """A report's name, after that of the phase that it is part of."""
    return ": ".join(word for word in (_phase.get(), what) if word)


def track(items: Iterable[T], total: int, what: str, images: int = 0) -> Iterator[T]:
    """Yield `items` and report progress out of `total`; if an item stands for `images`, also images per second."""
    sink, begun, what = _sink.get(), time.perf_counter(), _named(what)
    if sink:
        sink(what, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        if sink:
            rate = f", {done * images / (time.perf_counter() - begun):.3g} images/s" if images else ""
            sink(what + rate, done, total)


def show_progress(what: str, done: int, total: int) -> None:
    """Report progress from code that is not a loop; for loops use `track`."""
    if sink := _sink.get():
        sink(_named(what), done, total)


@contextmanager
def told_by(teller: Callable[[str], None]) -> Iterator[None]:
    """Send every line passed to `tell` within this block to `teller`."""
    token = _teller.set(teller)
    try:
        yield
    finally:
        _teller.reset(token)


def tell(line: str) -> None:
    """Print a line above the progress bars, if there are any."""
    if teller := _teller.get():
        teller(line)


class Pace:
    """How long the stages of the cells take, and how long the rest is going to: the clock of `bars`.

    The rest is the current stage's, at its own rate, and for every cell to come as much as a finished cell took on
    average. While none has finished, the current cell's time so far and its stage's rest stand for it, so that the
    estimate exists from the first step on and grows with every stage.
    """

    def __init__(self, cells: int, clock: Callable[[], float] | None = None):
        self.cells, self.clock = cells, clock or time.perf_counter
        self.begun, self.title, self.stage = 0, "", ""
        self._finished: list[float] = []
        self._cell = self._stage = self.clock()
        self._share = 0.0

    def next_cell(self, title: str) -> None:
        """A cell begins, so the one before is finished."""
        if self.begun:
            self._finished.append(self.clock() - self._cell)
        self.begun, self.title, self.stage, self._share = self.begun + 1, title, "", 0.0
        self._cell = self._stage = self.clock()

    def report(self, what: str, done: int, total: int) -> None:
        """A stage's progress; another name begins another stage."""
        stage = stage_of(what)
        if stage != self.stage:
            self.stage, self._stage = stage, self.clock()
        self._share = done / total if total else 0.0

    @property
    def stage_seconds(self) -> float:
        """Seconds that the current stage has taken."""
        return self.clock() - self._stage

    def rest(self) -> float | None:
        """Seconds until the last cell ends, as far as can be told; None before the first step of a stage is done."""
        cell = self.clock() - self._cell
        stage = self.stage_seconds * (1 - self._share) / self._share if self._share else None
        if stage is None and not self._finished:
            return None
        if not self._finished:
            return (stage or 0.0) + max(self.cells - self.begun, 0) * (cell + (stage or 0.0))
        mean = sum(self._finished) / len(self._finished)
        return max(mean - cell, stage or 0.0) + max(self.cells - self.begun, 0) * mean


def stage_of(what: str) -> str:
    """The stage that a progress report belongs to: its phase, or its own name without the rate."""
    return what.partition(":")[0].partition(",")[0]


def span(seconds: float) -> str:
    """A duration as people say it: `12 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


WORTH_A_LINE = 1.0
"""Seconds from which on a stage gets a line of its own where the output is no terminal."""
HEARTBEAT = 30.0
"""Seconds after which a stage that goes on gets another line there."""


@contextmanager
def bars(console: Console, cells: int, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Show how far the cells and the current stage are, with the time taken and an estimate of the rest.

    On a terminal these are two progress bars; elsewhere a line as each cell begins, and one as each stage of a second
    or more ends: `[2/4] erasediff · forget 3 · seed 0 · unlearning 12 s, about 1 min left`. With `quiet` nothing is
    shown but the lines that are told. Yields a function that starts the next cell.
    """
    from rich import progress as rich
    from rich.text import Text

    pace = Pace(cells)

    class Rest(rich.ProgressColumn):
        """What is left, as `Pace` estimates it."""

        max_refresh = 0.5

        def render(self, task: rich.Task) -> Text:
            rest = pace.rest() if task.fields.get("whole") else task.time_remaining
            return Text("" if rest is None else f"about {span(rest)} left")

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(24),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        Rest(),
    )
    terminal = console.is_terminal and not quiet

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with rich.Progress(*columns, console=console, transient=True, disable=not terminal) as bars:
        whole = bars.add_task("", total=cells, whole=True)
        stage = bars.add_task("", total=1, visible=False)
        told = 0.0

        def tell_stage() -> None:
            """A line about the stage that ends here, or goes on for long."""
            nonlocal told
            if terminal or quiet or not pace.stage or not pace.title or pace.stage_seconds - told < WORTH_A_LINE:
                return
            rest = pace.rest()
            left = "" if rest is None or rest < WORTH_A_LINE else f", about {span(rest)} left"
            say(f"[{pace.begun}/{cells}] {pace.title} · {pace.stage} {span(pace.stage_seconds)}{left}")
            told = pace.stage_seconds

        def begin(title: str) -> None:
            nonlocal told
            tell_stage()
            bars.update(whole, description=title, completed=pace.begun)
            pace.next_cell(title)
            told = 0.0
            if not (terminal or quiet):
                say(f"[{pace.begun}/{cells}] {title}")

        def sink(what: str, done: int, total: int) -> None:
            nonlocal told
            if stage_of(what) != pace.stage:
                tell_stage()
                told = 0.0
                bars.reset(stage, total=total)
            pace.report(what, done, total)
            bars.update(stage, description=f"  {what}", completed=done, total=total, visible=True)
            if pace.stage_seconds - told >= HEARTBEAT:
                tell_stage()

        try:
            with shown_by(sink), told_by(say):
                yield begin
                tell_stage()
        except KeyboardInterrupt as interrupt:
            raise Stopped from interrupt


def note(**values: Number | Callable[[], Number]) -> None:
    """Log values from within a method, such as losses, multipliers and norms, by name.

    Without a listener this does nothing and does not wait for the device: one-element tensors are read, and functions
    called, only if someone listens. Functions must not draw random numbers. Values belong to the next step.
    """
    if (watch := current_watch.get()) is not None:
        watch.hear(values)
