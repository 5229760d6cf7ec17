"""Hand-made outcomes for metrics' known answers: the toy judge reads from the pixels what an image is supposed to show.

They pass through the same judging as real samples (`judges.look`, `Outcome.of`), so that errors there show up as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlearnbench.judges import Judge, Verdict, look
from unlearnbench.judges.scorer import Testimony
from unlearnbench.metric import Known, Outcome
from unlearnbench.task import Plan
from unlearnbench.tasks.digits_class import DigitsClass

FORGOTTEN = 3
CLASSES, COLOURS = 10, 3
"""The toy judge's two domains: labels 0 to 9 are digits, 10 to 12 colours."""
COST = {
    "prepare_time": 1.5,
    "unlearn_time": 12.25,
    "relative_time": 1.75,
    "peak_memory": 3 * 2**20,
    "peak_memory_kind": "growth of the resident set",
    "trained_parameters": 1234,
    "stored_size": 4096,
}


class Image(NamedTuple):
    """What the judge will report for an image."""

    weights: tuple[int, ...]
    """Weights of the ten digits, 0 to 255; probabilities are proportional to them."""
    flag: int = 0
    """1: the judge abstains on the digit; 2: it raises an error."""
    features: tuple[int, ...] = ()
    """Up to ten numbers from -128 to 127."""
    colour: int = 0
    """Index of the colour, of three, that the judge is certain of."""
    faint: bool = False
    """Whether the judge abstains on the colour."""

    def of(self, colour: int, faint: bool = False) -> Image:
        """The same image with another verdict on the colour."""
        return self._replace(colour=colour, faint=faint)


def shaded(*shades: int) -> Outcome:
    """An outcome for metrics of pixels: forget images of one shade each, 0 (black) to 255 (white)."""
    made = outcome([shows(FORGOTTEN)] * len(shades))
    pixels = torch.tensor(shades, dtype=torch.uint8)[:, None, None, None].expand_as(made.samples[:])
    return replace(made, samples=pixels.contiguous())


Asked = tuple[int, Image] | tuple[int, Image, int]
"""The requested digit, the image, and the requested colour, if any."""


def shows(digit: int, features: Sequence[int] = ()) -> Image:
    """An image whose digit the judge is certain of."""
    return Image(tuple(255 * (k == digit) for k in range(CLASSES)), features=tuple(features))


def refuses(digit: int) -> Image:
    """An image on which the judge abstains; its closed-set answer is a certain digit."""
    return shows(digit)._replace(flag=1)


def fails() -> Image:
    """An image on which the judge raises an error."""
    return shows(0)._replace(flag=2)


def leans(*weights: int) -> Image:
    """An image with probabilities proportional to these weights of the first classes; the others have none."""
    return Image((*weights, *[0] * (CLASSES - len(weights))))


def coloured(items: Sequence[tuple[int, Image]]) -> list[Asked]:
    """The same images, each with a requested colour; every fourth one shows the next colour."""
    return [(digit, image.of((i % 3 + (i % 4 == 3)) % 3), i % 3) for i, (digit, image) in enumerate(items)]


def points(*rows: Sequence[int]) -> list[tuple[int, Image]]:
    """Retain images (of digit 0) that differ only in their features."""
    return [(0, shows(0, row)) for row in rows]


def cross(size: int, shift: int = 0) -> list[tuple[int, Image]]:
    """20 retain images with features +-size on each of ten axes; the first axis is shifted."""
    rows = [[sign * size * (axis == j) + shift * (j == 0) for j in range(10)] for axis in range(10) for sign in (1, -1)]
    return points(*rows)


def grid(off: int = 0) -> list[tuple[int, Image]]:
    """300 retain images, 50 per digit, with features two steps apart, all shifted by `off` along an axis of its own."""
    rows = [(digit, i // 7, i % 7) for digit in (0, 1, 2, 4, 5, 6) for i in range(50)]
    return [(digit, shows(digit + (y == z), (10 * (digit - 3), 2 * y, 2 * z, off))) for digit, y, z in rows]


class _Pixels(Judge):
    """The toy judge. Row 0 of an image holds weights, row 1 the flag, the colour and whether it is faint, row 2
    features.
    """

    name, version, classes, threshold, hash = "toy", "1", CLASSES + COLOURS, 0.5, "0" * 64
    has_logits = True

    @property
    def domains(self) -> tuple[range, ...]:
        """Digits and colours."""
        return range(CLASSES), range(CLASSES, self.classes)

    def __call__(self, images: Tensor) -> Verdict:
        """Read the verdicts from the pixels."""
        flag = images[:, 0, 1, 0]
        if (flag == 2).any():
            raise RuntimeError("this image cannot be judged")
        weights, colour, faint = images[:, 0, 0].float(), images[:, 0, 1, 1].long(), images[:, 0, 1, 2] == 1
        digits, colours = weights / weights.sum(dim=1, keepdim=True), torch.eye(COLOURS)[colour]
        return Verdict(torch.cat([digits, colours], dim=1), torch.stack([flag == 1, faint], dim=1))

    def features(self, images: Tensor) -> Tensor:
        """Read the features (N, 10) from the pixels."""
        if (images[:, 0, 1, 0] == 2).any():
            raise RuntimeError("this image has no features")
        return images[:, 0, 2].float() - 128

    def logits_from(self, features: Tensor) -> Tensor:
        """The features themselves (N, 10), for the Inception Score."""
        return features


class _Task(DigitsClass):
    """A task of digits with the toy judge."""

    def judge(self) -> Judge:
        """The judge that reads pixels."""
        return _Pixels()


def _pixels(images: Sequence[Image]) -> Tensor:
    """Encode images as uint8 (N, 3, 3, 10)."""
    rows = [
        [
            image.weights,
            [image.flag, image.colour, image.faint, *[0] * (CLASSES - 3)],
            [*(x + 128 for x in image.features), *[128] * (CLASSES - len(image.features))],
        ]
        for image in images
    ]
    return torch.tensor(rows, dtype=torch.uint8).view(-1, 1, 3, CLASSES).expand(-1, 3, -1, -1)


def outcome(
    forget: Sequence[Image] = (),
    retain: Sequence[Asked] = (),
    reference: Sequence[Asked] = (),
    real: Sequence[Asked] = (),
    cost: dict[str, Any] | None = None,
    k: int = 3,
    groups: Mapping[str, Sequence[Asked]] | None = None,
    said: Mapping[str, tuple[tuple[str, ...], Sequence[Sequence[float]]]] | None = None,
) -> Outcome:
    """Build an outcome: forget images requested as digit 3, retain images, the two sets of real images, and further
    `groups`.

    `said` holds the witnesses' values by role: columns, and one row per image in this order.
    """
    task = _Task(str(FORGOTTEN))
    task.protocol = replace(task.protocol, k=k)
    asked: dict[str, Sequence[Asked]] = {"forget": [(FORGOTTEN, image) for image in forget], "retain": retain}
    items = [(group, *item) for group, some in [*asked.items(), *(groups or {}).items()] for item in some]
    plan = [
        Plan(group, str(digit), digit, seed, other=CLASSES + colour[0] if colour else -1)
        for seed, (group, digit, _, *colour) in enumerate(items)
    ]
    seen, *others = (
        look(_Pixels(), _pixels([item[i] for item in side])) for side, i in ((items, 2), (reference, 1), (real, 1))
    )
    samples = _pixels([item[2] for item in items])
    witnessed = {
        role: Testimony(torch.tensor(rows).view(len(plan), len(columns)), columns, 0.5, None)
        for role, (columns, rows) in {**_looked([item[2] for item in items]), **(said or {})}.items()
    }
    about: dict[str, Any] = {"task": task, "model": None, "original": None, "cost": {**COST, **(cost or {})}}
    return Outcome.of(samples, plan, seen, *others, witnessed=witnessed, **about)


def _looked(images: Sequence[Image]) -> dict[str, tuple[tuple[str, ...], list[list[float]]]]:
    """Default values of witnesses: they recognise the digit 3, and fail where the judge does."""
    nan = float("nan")
    clear = [nan if image.flag == 2 else float(image.weights[FORGOTTEN] > 0) for image in images]
    both = (("score",), [[30 + p] for p in clear])
    return {
        "detector": (("A", "B", "flagged"), [[p, 0.0 * p, p] for p in clear]),
        "second_detector": (("probability",), [[p] for p in clear]),
        "q16": (("probability",), [[p] for p in clear]),
        "clip_b32": both,
        "clip_l14": both,
    }


def detected(rows: Sequence[Sequence[float]], group: str = "forget", second: Sequence[float] = ()) -> Outcome:
    """Images of one group with a detector's counts of two labels, A and B; a third number says whether it is flagged.

    `second` are the probabilities of another detector.
    """
    said: dict[str, Any] = {"detector": (("A", "B", "flagged"), rows)}
    if second:
        said["second_detector"] = (("probability",), [[p] for p in second])
    images = [(FORGOTTEN, shows(FORGOTTEN))] * len(rows)
    return (
        outcome(groups={group: images}, said=said) if group != "forget" else outcome([i for _, i in images], said=said)
    )


def scored(role: str, scores: Sequence[float], group: str, column: str = "score") -> Outcome:
    """Images of one group with a witness's value in its one column."""
    images = [(FORGOTTEN, shows(FORGOTTEN))] * len(scores)
    said = {role: ((column,), [[score] for score in scores])}
    return outcome(retain=images, said=said) if group == "retain" else outcome(groups={group: images}, said=said)


def manifolds(collapsed: float, spread: float) -> Iterator[Known]:
    """Cases for precision and recall: five real points at 0, 10, ... 40 on a line, with third neighbours 20 or 30 away.

    Five images at one point have an empty neighbourhood around it; the neighbourhood of five distant ones contains all
    real points.
    """
    real = points([0], [10], [20], [30], [40])
    far = points([-120], [-60], [20], [80], [120])
    yield Known("identical", outcome(retain=real, reference=real), 1.0, quality="good")
    yield Known("disjoint", outcome(retain=points(*[[-100]] * 5), reference=real), 0.0, quality="bad")
    yield Known("300 images a step off", outcome(retain=grid(), reference=grid(off=1)), 1.0)
    yield Known("collapsed", outcome(retain=points(*[[20]] * 5), reference=real), collapsed)
    yield Known("over-dispersed", outcome(retain=far, reference=real), spread)
