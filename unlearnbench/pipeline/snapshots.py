"""What is kept of a run on its way: series thinned to a bounded size, and weights on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from unlearnbench.errors import UserError

LIMIT = 200
"""Most points that a series keeps, and most snapshots of weights, start and end included."""
T = TypeVar("T")


class Thinned(Generic[T]):
    """At most `limit` items of a stream of unknown length, evenly spread, with the first and the last."""

    def __init__(self, limit: int = LIMIT):
        self.limit, self.stride, self.count = limit, 1, 0
        self.spread: list[T] = []
        self._last: T | None = None

    @property
    def due(self) -> bool:
        """Whether the next item is among those evenly spread, as far as is known yet."""
        return self.count % self.stride == 0

    def add(self, item: T) -> list[T]:
        """Add the next item; return those that no longer fit the even spread."""
        gone: list[T] = []
        if self.due:
            self.spread.append(item)
            if len(self.spread) == self.limit:
                self.spread, gone = self.spread[::2], self.spread[1::2]
                self.stride *= 2
        self._last, self.count = item, self.count + 1
        return gone

    def items(self) -> list[T]:
        """The items kept, in order."""
        rest = [] if not self.count or (self.count - 1) % self.stride == 0 else [self._last]
        return [*self.spread, *rest]  # type: ignore[list-item]


class Snapshot(NamedTuple):
    """The model's weights at one step, on disk."""

    step: int
    seconds: float
    """Seconds of unlearning until then, without watching."""
    path: Path

    def state(self) -> dict[str, Tensor]:
        """The weights, on the CPU."""
        return dict(torch.load(self.path, map_location="cpu", weights_only=True))


def write_snapshot(state: Mapping[str, Tensor], path: Path, step: int, seconds: float) -> Snapshot:
    """Write weights tensor by tensor, so that memory never holds a second copy of them."""
    try:
        torch.save(dict(state), path)
    except (OSError, RuntimeError) as error:  # torch's writer says the latter when the disk is full
        raise full(path.parent, error) from error
    return Snapshot(step, seconds, path)


def delete(snapshots: Sequence[Snapshot | None]) -> None:
    """Delete the weights from disk."""
    for shot in snapshots:
        if shot is not None:
            shot.path.unlink(missing_ok=True)


def full(place: Path, error: Exception) -> UserError:
    """One line for a folder that cannot take weights."""
    why = (getattr(error, "strerror", None) or str(error)).lower().splitlines()[0]
    return UserError(
        f"cannot write weights on the way to {place} ({why}): free it, name another folder with UNLEARNBENCH_CACHE, or "
        "evaluate less often"
    )
