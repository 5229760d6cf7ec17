"""A judge's card: what it recognises and what it refuses, of corrupted real images and of images that show nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from unlearnbench.errors import Failed
from unlearnbench.hashing import seed_of
from unlearnbench.judges import Judge, judge_all
from unlearnbench.judges.calibration import CLEAR
from unlearnbench.judges.corruptions import CORRUPTIONS, NOISES, NON_IMAGES, SEVERITIES, corrupted, non_images
from unlearnbench.reporting import track

MOST_REFUSED: Final = 0.05
"""Share of such images that a judge may refuse."""
LEAST_NOISE_REFUSED: Final = 0.98
"""Share of noise that a judge must refuse."""


class Corrupted(NamedTuple):
    """A judge's verdicts on real images that were corrupted alike."""

    kind: str
    """A name of `CORRUPTIONS`, or "none"."""
    severity: int
    """1 to 5; 0 for "none"."""
    recognised: float
    """Share in [0, 1] whose most probable class is right, refused or not."""
    refused: float
    """Share in [0, 1] on which the judge abstains."""

    @property
    def passes(self) -> bool:
        """Whether few are refused, or the answers are no longer right anyway."""
        return self.recognised < CLEAR or self.refused <= MOST_REFUSED


class NonImage(NamedTuple):
    """A judge's verdicts on images of one kind that show nothing."""

    kind: str
    refused: float

    @property
    def passes(self) -> bool:
        """Whether noise is refused; other kinds are only reported."""
        return self.kind not in NOISES or self.refused >= LEAST_NOISE_REFUSED


class JudgeCard(NamedTuple):
    """What a judge recognises and refuses in one domain of labels, such as digits or colours."""

    judge: str
    domain: range
    images: int
    """Number of real images, which the judge was not trained on."""
    corrupted: tuple[Corrupted, ...]
    non_images: tuple[NonImage, ...]

    @property
    def failed(self) -> list[Corrupted | NonImage]:
        """The rows that do not meet the requirements."""
        every: list[Corrupted | NonImage] = [*self.corrupted, *self.non_images]
        return [row for row in every if not row.passes]


def judge_cards(
    judge: Judge, images: Tensor, labels: Tensor, severities: Sequence[int] = SEVERITIES
) -> list[JudgeCard]:
    """Make a judge's card for each of its domains.

    Args:
        judge: Any judge.
        images: Real images uint8 (N, 3, H, W) that it was not trained on.
        labels: Their right labels, (N, D) for D domains; -1 where an image has none in a domain.
        severities: Those of corruptions, from 1 to 5.

    Corruptions are drawn from a fixed seed, so that two judges see the same images.
    """
    rows: list[list[Corrupted]] = [[] for _ in judge.domains]
    steps = [("none", 0), *((kind, severity) for kind in CORRUPTIONS for severity in severities)]
    for kind, severity in track(steps, len(steps), "corruptions"):
        shown = corrupted(images, kind, severity, _generator(kind, severity)) if severity else images
        for found, (recognised, refused) in zip(rows, _shares(judge, shown, labels), strict=True):
            found.append(Corrupted(kind, severity, recognised, refused))
    nothing: list[list[NonImage]] = [[] for _ in judge.domains]
    for kind in NON_IMAGES:
        shown = non_images(images, kind, _generator(kind, 0))
        for some, (_, refused) in zip(nothing, _shares(judge, shown, labels.clamp(max=-1)), strict=True):
            some.append(NonImage(kind, refused))
    return [
        JudgeCard(judge.name, domain, int((labels[:, number] >= 0).sum()), tuple(rows[number]), tuple(nothing[number]))
        for number, domain in enumerate(judge.domains)
    ]


def _generator(kind: str, severity: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of("judge card", kind, severity) >> 1)


def _shares(judge: Judge, images: Tensor, labels: Tensor) -> Iterator[tuple[float, float]]:
    """For each domain the shares of right and of refused verdicts, of images that have a label, or of all if none."""
    verdict, error = judge_all(judge, images)
    if error is not None:
        raise Failed(f"{judge.name} failed: {error}")
    refused = verdict.refused if verdict.refused.dim() == 2 else verdict.refused[:, None]
    for number, domain in enumerate(judge.domains):
        asked = labels[:, number]
        counted = asked >= 0 if bool((asked >= 0).any()) else torch.ones_like(asked, dtype=torch.bool)
        closed = verdict.probabilities[:, domain.start : domain.stop].argmax(dim=1) + domain.start
        yield (closed == asked)[counted].float().mean().item(), refused[counted, number].float().mean().item()


def card_rows(card: JudgeCard) -> list[Sequence[str]]:
    """The card as a table: a row for each corruption with "recognised / refused" in percent by severity."""
    clean = card.corrupted[0]
    table: list[Sequence[str]] = [("none", _cell(clean), *[""] * (len(SEVERITIES) - 1))]
    for kind in CORRUPTIONS:
        own = sorted((row for row in card.corrupted if row.kind == kind), key=lambda row: row.severity)
        table.append((kind, *map(_cell, own)))
    return table


def non_image_rows(card: JudgeCard) -> list[Sequence[str]]:
    """A row for each kind of image that shows nothing, with the refused share in percent."""
    return [(row.kind, f"{100 * row.refused:.1f}{'' if row.passes else ' ✗'}") for row in card.non_images]


def _cell(row: Corrupted) -> str:
    return f"{100 * row.recognised:.0f} / {100 * row.refused:.1f}{'' if row.passes else ' ✗'}"
