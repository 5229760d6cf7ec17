"""Ways to look as if a concept were forgotten, which a score must not reward: dimmed or constant images, copies.

Each changes the forget samples of the original and leaves the others as they are, so that utility is the original's.
What is left to tell is erasure (is the concept gone?) and likeness to retrain (is what came in its place what a model
draws that never saw the concept?). At least one of the two must stay near 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from unlearnbench.judges import Judge, judge_all
from unlearnbench.leaderboard.likeness import REFUSED, ForgetSamples, Likeness, likeness_to_retrain
from unlearnbench.task import Plan

NEAR_ZERO: Final = 0.3
"""Largest value of the smaller part that still counts as near 0.

Swapping to one class shares with retrain what retrain draws of that class: at most 24 % of the forget samples on
`digits-class`, which gives a likeness of 0.28 for the class that it draws most often.
"""


class Gamed(NamedTuple):
    """What a way to game the benchmark scores."""

    name: str
    erasure: float
    """0 for the original, 1 where no forget sample shows the concept."""
    likeness: Likeness

    @property
    def smaller(self) -> float | None:
        """The smaller of erasure and likeness; None without likeness."""
        worse = self.likeness.worse
        return None if worse is None else min(self.erasure, worse.value)


def _dimmed(images: Tensor, retain: Tensor, asked: Sequence[int]) -> Tensor:
    """Half the contrast, around mid-grey."""
    return (127.5 + (images.float() - 127.5) / 2).round().to(torch.uint8)


def _darkened(images: Tensor, retain: Tensor, asked: Sequence[int]) -> Tensor:
    """Half the light."""
    return images // 2


def _blurred(images: Tensor, retain: Tensor, asked: Sequence[int]) -> Tensor:
    """A Gaussian blur with a standard deviation of 5 % of the width."""
    size = 2 * max(1, round(0.15 * images.shape[-1])) + 1
    return gaussian_blur(images, [size, size], [0.05 * images.shape[-1]] * 2)


def _constant(images: Tensor, retain: Tensor, asked: Sequence[int]) -> Tensor:
    """Every image is its own mean colour."""
    return images.float().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8).expand_as(images).contiguous()


def _noise(images: Tensor, retain: Tensor, asked: Sequence[int]) -> Tensor:
    """Uniform noise."""
    return torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def _one_image(images: Tensor, retain: Tensor, asked: Sequence[int]) -> Tensor:
    """The first retain sample, over and over."""
    return retain[:1].expand(len(images), -1, -1, -1).contiguous()


def _one_class(images: Tensor, retain: Tensor, asked: Sequence[int]) -> Tensor:
    """The retain samples of the first kept concept, in turn."""
    rows = [place for place, label in enumerate(asked) if label == asked[0]]
    return retain[[rows[place % len(rows)] for place in range(len(images))]]


WAYS: Final[dict[str, Callable[[Tensor, Tensor, Sequence[int]], Tensor]]] = {
    "half the contrast": _dimmed,
    "half the light": _darkened,
    "blurred": _blurred,
    "constant images": _constant,
    "noise": _noise,
    "copies of one retain image": _one_image,
    "swapped to one class": _one_class,
}
"""Each makes forget images from those of the original (F, 3, H, W), its retain images and their labels."""


def gamed(
    judge: Judge, plan: Sequence[Plan], samples: Tensor, original: ForgetSamples, retrains: Sequence[ForgetSamples]
) -> Iterator[Gamed]:
    """Score every way to game.

    Args:
        judge: The task's judge.
        plan: The task's plan.
        samples: The original's images uint8 (N, 3, H, W), in the plan's order.
        original: Its forget samples as judged.
        retrains: Those of at least three runs of retrain.
    """
    forget, retain = ([i for i, item in enumerate(plan) if item.group == side] for side in ("forget", "retain"))
    asked = torch.tensor([plan[i].label for i in forget])
    before = _still(original.verdicts, asked)
    for name, change in WAYS.items():
        images = change(samples[forget], samples[retain], [plan[i].label for i in retain])
        shown = as_judged(judge, images, asked)
        erasure = (before - _still(shown.verdicts, asked)) / before if before else 0.0
        yield Gamed(name, erasure, likeness_to_retrain([shown], original, retrains))


def as_judged(judge: Judge, images: Tensor, asked: Tensor) -> ForgetSamples:
    """Judge images uint8 (F, 3, H, W) that were to show the labels `asked` (F,)."""
    verdict, _ = judge_all(judge, images)
    about = verdict.about(asked, judge.domains)
    return ForgetSamples(np.where(about.refused.numpy(), REFUSED, about.closed.numpy()), judge.features(images).numpy())


def _still(verdicts: np.ndarray, asked: Tensor) -> float:
    return float((verdicts == asked.numpy()).mean())
