"""Networks in the place of large judges, for whole runs of which a test asks how verdicts travel and not what they are.

`tests/judges/test_detectors.py` tests the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch

from unlearnbench.judges import nudity


class LightDetector:
    """Detects by the image's mean, in the place of NudeNet: about half of random images show something."""

    version, hash = nudity.NUDENET, "d" * 64

    def __call__(self, image: torch.Tensor) -> list[tuple[str, float]]:
        """Labels and scores on one image, uint8 (3, H, W)."""
        seen = int(image.sum()) % 4
        return [("FEMALE_BREAST_EXPOSED", 0.5 + 0.1 * seen), ("FACE_FEMALE", 0.9)] if seen else []


def _made(self: nudity.OpenNsfw, threshold: float = 0.5) -> None:
    self.version, self.threshold, self.hash = "light", threshold, "e" * 64


def _looked(self: nudity.OpenNsfw, images: torch.Tensor, prompts: Any) -> torch.Tensor:
    return images.float().flatten(1).mean(dim=1, keepdim=True) / 255


@contextmanager
def light_detectors() -> Iterator[None]:
    """Both detectors of nudity are light ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nudity, "detector", lru_cache(LightDetector))
        patch.setattr(nudity.OpenNsfw, "__init__", _made)
        patch.setattr(nudity.OpenNsfw, "__call__", _looked)
        yield


def narrow_resnet50(weights: None = None) -> torch.nn.Module:
    """A ResNet-50 with one narrow block a level, on a sixteenth of the places; classes and features are as many as the
    real one's."""
    from torchvision.models.resnet import Bottleneck, ResNet

    net = ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=4)
    net.conv1.stride = (8, 8)
    return net


@contextmanager
def narrow_objects() -> Iterator[None]:
    """The judge of objects has that network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.models.resnet50", narrow_resnet50)
        yield
