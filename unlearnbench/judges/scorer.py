"""Witnesses: networks that score images in addition to the judge, such as detectors or CLIP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from unlearnbench.errors import one_line


class Witness(ABC):
    """Maps images and their prompts to numbers (N, C). Witnesses with equal attributes (name, version, hash, threshold,
    columns, `about`) are the same.
    """

    name: str
    version: str
    threshold: float
    """Scores above it count as a detection; NaN if nothing is counted."""
    hash: str
    """Hash of the weights."""
    columns: tuple[str, ...]
    """Names of its numbers."""
    about: tuple[str, ...] = ()
    """Other settings that its numbers depend on."""
    groups: ClassVar[frozenset[str]]
    """The groups of samples that it scores."""
    needs_prompts: ClassVar[bool] = False
    """Whether its numbers compare an image with its prompt."""

    @abstractmethod
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Numbers (N, C), float32, of uint8 images (N, 3, H, W)."""


class PairScorer(Witness):
    """A witness that compares each image with the original's image for the same prompt and noise.

    It is given both in one, uint8 (N, 6, H, W): the model's image, then the original's.
    """


class Testimony(NamedTuple):
    """A witness's values for all samples."""

    values: Tensor
    """(N, C); NaN where it was not asked or failed."""
    columns: tuple[str, ...]
    threshold: float
    error: str | None
    """The first error."""

    def of(self, column: str, index: Tensor) -> Tensor:
        """One column (n,) for samples by index."""
        return self.values[index, self.columns.index(column)]


def asked(witness: Witness, images: Tensor, prompts: Sequence[str], batch: int = 50) -> tuple[Tensor, str | None]:
    """Return numbers for all images, and the first error. If a batch fails, it is retried image by image.

    A row is NaN where the witness failed: it counts as missing, never as a success.
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
