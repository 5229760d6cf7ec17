"""Long arrays in parts: read as one tensor would be, and no more of them than is looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unlearnbench import taken
from unlearnbench.storage.lazy_arrays import ArrayPart, Rows

WHOLE = torch.arange(22).view(11, 2)
SIZES = (4, 0, 5, 2)


@pytest.fixture
def read():
    """Numbers of the parts that were read."""
    return []


@pytest.fixture
def rows(read):
    parts, start = [], 0
    for number, n in enumerate(SIZES):
        part = WHOLE[start : start + n]
        parts.append(ArrayPart(n, lambda part=part, number=number: read.append(number) or part))
        start += n
    return Rows(parts)


KEYS = [
    slice(None), slice(3, 6), slice(None, None, 3), slice(9, None), slice(4, 4), 0, 8, -1, np.array([10, 0, 5, 5]),
    np.array([], dtype=int), torch.tensor([1, 9]), torch.arange(11) % 2 == 0, np.arange(11) > 6,
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_rows_are_those_of_one_tensor(rows, key):
    expected = WHOLE[torch.from_numpy(key) if isinstance(key, np.ndarray) else key]
    assert torch.equal(rows[key], expected)
    if not isinstance(key, int):
        view = taken(rows, key)
        assert isinstance(view, Rows) and len(view) == len(expected)
        assert torch.equal(view[:], expected) and torch.equal(taken(WHOLE, key), expected)


def test_of_a_view_others_are_taken(rows):
    view = taken(taken(rows, slice(1, None, 2)), np.array([3, 0]))
    assert torch.equal(view[:], WHOLE[[7, 1]]) and torch.equal(view[1], WHOLE[1])


@pytest.mark.parametrize("size", [1, 3, 11, 100])
def test_splits_are_a_tensors(rows, size):
    assert [some.tolist() for some in rows.split(size)] == [some.tolist() for some in WHOLE.split(size)]


def test_nothing_is_read_before_it_is_looked_at_and_no_other_part(rows, read):
    view = taken(rows, slice(5, 8))
    assert len(view) == 3 and read == []
    view[:]
    assert read == [2]
    list(rows.split(4))
    assert read == [2, 0, 2, 2, 3]


def test_none_at_all():
    none = Rows([])
    assert len(none) == 0 and len(none[:]) == 0 and list(none.split(3)) == []
    assert len(taken(none, slice(5))) == 0


@pytest.mark.parametrize("key", [11, np.array([0, 11])], ids=str)
def test_a_row_too_far_is_an_error(rows, key):
    with pytest.raises(IndexError):
        rows[key]
