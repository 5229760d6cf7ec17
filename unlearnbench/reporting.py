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
_teller: ContextVar[Callable[[str], None] | None] = ContextVar("progress_teller", default=None)


@contextmanager
def shown_by(sink: Sink) -> Iterator[None]:
    """Send every progress report within this block to `sink(what, done, total)`."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)


def track(items: Iterable[T], total: int, what: str, images: int = 0) -> Iterator[T]:
    """Yield `items` and report progress out of `total`; if an item stands for `images`, also images per second."""
    sink, begun = _sink.get(), time.perf_counter()
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
        sink(what, done, total)


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


@contextmanager
def bars(console: Console, cells: int) -> Iterator[Callable[[str], None]]:
    """Show two progress bars, one for the cells and one for the current stage. Yields a function that starts the next
    cell.
    """
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(24),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left", markup=False),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        whole, stage = bars.add_task("", total=cells), bars.add_task("", total=1, visible=False)
        begun = 0

        def begin(title: str) -> None:
            nonlocal begun
            bars.update(whole, description=title, completed=begun)
            begun += 1
            if not console.is_terminal:
                console.print(f"[{begun}/{cells}] {title}", highlight=False, markup=False, soft_wrap=True)

        def sink(what: str, done: int, total: int) -> None:
            bars.update(stage, description=f"  {what}", completed=done, total=total, visible=True)

        try:
            with (
                shown_by(sink),
                told_by(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)),
            ):
                yield begin
        except KeyboardInterrupt as interrupt:
            raise Stopped from interrupt


def note(**values: Number | Callable[[], Number]) -> None:
    """Log values from within a method, such as losses, multipliers and norms, by name.

    Without a listener this does nothing and does not wait for the device: one-element tensors are read, and functions
    called, only if someone listens. Functions must not draw random numbers. Values belong to the next step.
    """
    if (watch := current_watch.get()) is not None:
        watch.hear(values)
