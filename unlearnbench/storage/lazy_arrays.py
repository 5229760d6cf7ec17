"""Long arrays that lie in parts on the disk and are read where they are looked at: memory does not grow with images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Part(NamedTuple):
    """Some rows that lie together."""

    n: int
    read: Callable[[], Tensor]
    """All of them (n, ...)."""


class Rows:
    """Rows of parts one after another, or those of an `index`; sliced and split as a tensor is, which copies them."""

    def __init__(self, parts: Sequence[Part], index: np.ndarray | None = None):
        self.parts = [part for part in parts if part.n]
        self._ends = list(accumulate(part.n for part in self.parts))
        self.index = np.arange(self._ends[-1] if self._ends else 0) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | slice | np.ndarray | Tensor) -> Tensor:
        """One row, or several of them (n, ...), read now."""
        chosen = self.index[key.numpy() if isinstance(key, Tensor) else key]
        if chosen.ndim == 0:
            return self._read(chosen[None])[0]
        return self._read(chosen)

    def _read(self, chosen: np.ndarray) -> Tensor:
        if not len(chosen):
            return self.parts[0].read()[:0] if self.parts else torch.zeros(0, 0)
        owner = np.searchsorted(self._ends, chosen, side="right")
        found: Tensor | None = None
        for number in np.unique(owner):
            part, here = self.parts[number], np.flatnonzero(owner == number)
            rows = part.read()[torch.from_numpy(chosen[here] - (self._ends[number] - part.n))]
            if len(here) == len(chosen):
                return rows
            found = torch.empty(len(chosen), *rows.shape[1:], dtype=rows.dtype) if found is None else found
            found[torch.from_numpy(here)] = rows
        assert found is not None
        return found

    def split(self, size: int) -> Iterator[Tensor]:
        """`size` rows at a time, the last ones fewer; one part after another is read, so keep an index in order."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


Table = Tensor | Rows
"""(N, ...), in memory or not: `len`, slices, `split` and `taken` work on both."""


def taken(table: Table, index: np.ndarray | Tensor | slice) -> Table:
    """Those rows, in the order of the index; of `Rows` nothing is read yet."""
    if isinstance(table, Rows):
        return Rows(table.parts, table.index[index.numpy() if isinstance(index, Tensor) else index])
    return table[torch.from_numpy(index) if isinstance(index, np.ndarray) else index]
