"""ResNet-50 on ImageNet as a judge of Imagenette's ten classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnbench.compute.device import exact
from unlearnbench.compute.offloading import Offloaded
from unlearnbench.errors import UserError, one_line
from unlearnbench.hashing import digest, file_hash
from unlearnbench.judges import Verdict
from unlearnbench.judges.cifar import BATCH, read_weights
from unlearnbench.judges.inception import Extractor, Featured

PLACES = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""Indices of Imagenette's classes among ImageNet's thousand, in Imagenette's order."""


class ResNet50(Featured):
    """torchvision's ResNet-50 with its second weights, the papers' `ResNet50_Weights.DEFAULT`.

    Closed-set probabilities are over the ten classes; it abstains if the most probable of all thousand is not one of
    them.
    """

    name, version, threshold, costly = "imagenet-resnet50", "2", 0.0, True

    def __init__(self, weights: Path, extractor: Extractor, device: str, places: Sequence[int] = PLACES):
        from torchvision.models import ResNet50_Weights, resnet50

        state = read_weights(weights, "ResNet-50 on ImageNet")
        with torch.device("meta"):  # draws no random numbers
            net: Any = resnet50(weights=None)
        try:
            net.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise UserError(f"{weights} holds no ResNet-50 of torchvision ({one_line(error)[:120]})") from error
        self._offloaded, self.device, self.extractor = Offloaded(net, device), device, extractor
        self.places, self.classes = list(places), len(places)
        self.hash = digest([file_hash(weights), extractor.hash])
        self._transform = ResNet50_Weights.IMAGENET1K_V2.transforms()

    @property
    def net(self) -> Any:
        """The network on its device."""
        return self._offloaded.network

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Verdict:
        """Judge uint8 images (N, 3, H, W)."""
        net = self.net
        with exact():
            parts = [net(self._transform(some).to(self.device)).float().cpu() for some in images.split(BATCH)]
        logits = torch.cat(parts)
        own = logits[:, self.places]
        return Verdict(own.softmax(dim=1), own.amax(dim=1) < logits.amax(dim=1))
