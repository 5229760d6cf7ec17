"""Judges: fixed networks that classify an image, or abstain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from unlearnbench.errors import one_line
from unlearnbench.storage.lazy_arrays import Table

ABSTAINS = -1


class Verdict(NamedTuple):
    """A judge's verdicts on N images."""

    probabilities: Tensor
    """(N, K) closed-set probabilities, float32. A row of NaN where judging failed: it counts as missing, never as a
    success."""
    refused: Tensor
    """(N,) bool: the judge abstains, since the image is unlike its training data; (N, D) for D domains."""

    @property
    def missing(self) -> Tensor:
        """(N,) bool: judging failed."""
        return self.probabilities.isnan().any(dim=1)

    @property
    def closed(self) -> Tensor:
        """(N,) most probable class, even if the judge abstains."""
        return self.probabilities.argmax(dim=1)

    @property
    def label(self) -> Tensor:
        """(N,) class, or `ABSTAINS`."""
        return torch.where(self.refused, ABSTAINS, self.closed)

    def about(self, asked: Tensor, domains: Sequence[range]) -> Verdict:
        """The verdict on the domain of each requested label (N,), with refused (N,); all zero for -1."""
        if len(domains) == 1:
            return self
        own = torch.stack([(asked >= domain.start) & (asked < domain.stop) for domain in domains], dim=1)
        columns = torch.zeros_like(self.probabilities, dtype=torch.bool)
        for index, domain in enumerate(domains):
            columns[:, domain.start : domain.stop] = own[:, index : index + 1]
        return Verdict(self.probabilities.where(columns, 0.0), (self.refused & own).any(dim=1))


class Judge(ABC):
    """Maps images uint8 (N, 3, H, W) to verdicts and features. Judges with the same name, version and hash are the
    same.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    classes: int
    """The labels of all domains together."""
    threshold: float
    """Score above which the judge abstains, calibrated on a split that results do not use."""
    hash: str
    """Hash of the weights, or of the data for a judge without weights."""

    @property
    def domains(self) -> tuple[range, ...]:
        """Groups of mutually exclusive labels, such as digits and colours; a single group by default."""
        return (range(self.classes),)

    @abstractmethod
    def __call__(self, images: Tensor) -> Verdict:
        """Judge uint8 images (N, 3, H, W)."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features (N, D), float32, for FID, KID, precision and recall."""


class Seen(NamedTuple):
    """A judge's complete results for some images."""

    verdict: Verdict
    features: Table
    """(N, D); empty if the judge failed."""
    error: str | None
    domains: tuple[range, ...]


def look(judge: Judge, images: Tensor) -> Seen:
    """Return verdicts and features (by torch-fidelity's loop) of uint8 images (N, 3, H, W), and the first error."""
    from unlearnbench.judges.torch_fidelity import extract

    verdict, error = judge_all(judge, images)
    try:
        features = extract(judge, images)
    except Exception as failure:  # noqa: BLE001 - a judge may fail in any way: the features are missing
        features, error = torch.zeros(0, 0), error or one_line(failure)
    return Seen(verdict, features, error, judge.domains)


def judge_all(judge: Judge, images: Tensor, batch: int = 250) -> tuple[Verdict, str | None]:
    """Return verdicts for all images, and the first error.

    If a judge fails on a batch, it is asked again image by image, so that only the images it fails on are missing.
    """
    parts: list[Verdict] = []
    error: str | None = None
    many = (len(judge.domains),) if len(judge.domains) > 1 else ()
    for some in images.split(batch) if len(images) else ():
        try:
            parts.append(judge(some))
            continue
        except Exception as failure:  # noqa: BLE001 - a judge may fail in any way: the images become missing values
            error = error or one_line(failure)
        for one in some.split(1):
            try:
                parts.append(judge(one))
            except Exception:  # noqa: BLE001 - as above; the first error is reported
                unknown, kept = torch.full((1, judge.classes), torch.nan), torch.zeros(1, *many, dtype=torch.bool)
                parts.append(Verdict(unknown, kept))
    if not parts:
        return Verdict(torch.zeros(0, judge.classes), torch.zeros(0, *many, dtype=torch.bool)), None
    return Verdict(*(torch.cat(column) for column in zip(*parts, strict=True))), error
