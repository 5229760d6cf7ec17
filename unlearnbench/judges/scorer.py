"""Witnesses: networks that say numbers of an image beside the judge's verdict, such as detections or a CLIP score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from unlearnbench.errors import one_line


class Witness(ABC):
    """Images and their prompts -> numbers (N, C). Two with the same name, version, hash, threshold, columns and `about`
    are one."""

    name: str
    version: str
    threshold: float
    """Above it something is counted as seen; NaN where nothing is counted."""
    hash: str
    """Of the weights."""
    columns: tuple[str, ...]
    """What its numbers are."""
    about: tuple[str, ...] = ()
    """What else they depend on."""
    groups: ClassVar[frozenset[str]]
    """The groups of samples that it looks at."""

    @abstractmethod
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Numbers (N, C), float32, of uint8 images (N, 3, H, W)."""


class Testimony(NamedTuple):
    """What a witness says of all samples."""

    values: Tensor
    """(N, C); NaN where it did not look, or failed."""
    columns: tuple[str, ...]
    threshold: float
    error: str | None
    """The first that was met."""

    def of(self, column: str, index: Tensor) -> Tensor:
        """One column (n,) for samples by index."""
        return self.values[index, self.columns.index(column)]


def asked(witness: Witness, images: Tensor, prompts: Sequence[str], batch: int = 50) -> tuple[Tensor, str | None]:
    """Numbers for all images, and the first error met; asked again image by image where it fails on a batch.

    A row is NaN where it failed: missing, never a success.
    """
    rows: list[Tensor] = []
    error: str | None = None
    for start in range(0, len(images), batch):
        some, texts = images[start : start + batch], prompts[start : start + batch]
        try:
            rows.append(witness(some, texts))
            continue
        except Exception as failure:  # noqa: BLE001 - a network of others may fail in any way: the values are missing
            error = error or one_line(failure)
        for one, text in zip(some.split(1), texts, strict=True):
            try:
                rows.append(witness(one, [text]))
            except Exception:  # noqa: BLE001 - as above; the first error is reported
                rows.append(torch.full((1, len(witness.columns)), torch.nan))
    return (torch.cat(rows) if rows else torch.zeros(0, len(witness.columns))), error
