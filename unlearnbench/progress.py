"""Progress that anything may report and only the command line shows."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Sink = Callable[[str, int, int], None]

_sink: ContextVar[Sink | None] = ContextVar("progress_sink", default=None)


@contextmanager
def shown_by(sink: Sink) -> Iterator[None]:
    """Within this block `sink(what, done, total)` hears every step."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield `items`, telling whoever listens how many of `total` are done."""
    sink = _sink.get()
    if sink:
        sink(what, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        if sink:
            sink(what, done, total)
