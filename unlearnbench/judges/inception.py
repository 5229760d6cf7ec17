"""Image features for judges without features of their own: Inception's, or pixels without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnbench.compute.device import exact
from unlearnbench.compute.offloading import Offloaded
from unlearnbench.judges import Judge
from unlearnbench.judges.cifar import BATCH, pixel_statistics, read_inception

PIXELS = "0" * 64


class Extractor:
    """torch-fidelity's Inception from a weights file; without a file, the means of 8x8 cells of pixels."""

    def __init__(self, weights: Path | None, device: str):
        self.device, self.hash = device, PIXELS
        self.inception: Offloaded | None = None
        if weights is not None:
            net, self.hash = read_inception(weights)
            self.inception = Offloaded(net, device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, 2048), or (N, 192) without Inception, of uint8 images (N, 3, H, W), on the CPU in float32."""
        if self.inception is None:
            return pixel_statistics(images)[:, :192]
        net = self.inception.network
        with exact():
            return torch.cat([net(some.to(self.device))[0].float().cpu() for some in images.split(BATCH)])


class Featured(Judge):
    """A judge that uses another network's features."""

    extractor: Extractor

    @property
    def has_logits(self) -> bool:
        """Whether there is an Inception network, whose logits the Inception Score needs."""
        return self.extractor.inception is not None

    def features(self, images: Tensor) -> Tensor:
        """The extractor's features (N, D)."""
        return self.extractor(images)

    @torch.inference_mode()
    def logits_from(self, features: Tensor) -> Tensor:
        """Inception's logits without bias (N, 1008), from its features."""
        inception: Any = self.extractor.inception
        with exact():
            return features.mm(inception.weights.fc.weight.T.cpu())
