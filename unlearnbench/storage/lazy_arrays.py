"""Long arrays stored in parts on disk and read on access, so that memory does not grow with the number of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class ArrayPart(NamedTuple):
    """A number of rows that are stored together."""

    n: int
    read: Callable[[], Tensor]
    """Read all of its rows (n, ...)."""


class Rows:
    """Rows of several parts in sequence, or those of an `index`. Slicing and splitting copies, as for a tensor."""

    def __init__(self, parts: Sequence[ArrayPart], index: np.ndarray | None = None):
        self.parts = [part for part in parts if part.n]
        self._ends = list(accumulate(part.n for part in self.parts))
        self.index = np.arange(self._ends[-1] if self._ends else 0) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | slice | np.ndarray | Tensor) -> Tensor:
        """Read one row, or several rows (n, ...)."""
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
        """Yield `size` rows at a time; the last block may be shorter. Parts are read one after another, so keep an
        index sorted.
        """
        for start in range(0, len(self), size):
            yield self[start : start + size]


Table = Tensor | Rows
"""(N, ...) rows in memory or on disk: `len`, slices, `split` and `taken` work for both."""


def taken(table: Table, index: np.ndarray | Tensor | slice) -> Table:
    """Return these rows in the order of the index. `Rows` are not read yet."""
    if isinstance(table, Rows):
        return Rows(table.parts, table.index[index.numpy() if isinstance(index, Tensor) else index])
    return table[torch.from_numpy(index) if isinstance(index, np.ndarray) else index]
