"""LPIPS of two images (Zhang et al., CVPR 2018), by the package `lpips` and AlexNet's weights from torchvision."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnbench.compute.device import exact
from unlearnbench.compute.offloading import Offloaded
from unlearnbench.data.sources import Source
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest, file_hash, state_hash
from unlearnbench.judges.cifar import BATCH, prepared, read_weights
from unlearnbench.judges.scorer import PairScorer

ALEXNET = Source(
    name="alexnet-owt-7be5be79.pth",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    licence="bsd-3-clause",
    login=False,
    use="LPIPS",
)
"""torchvision's `AlexNet_Weights.IMAGENET1K_V1`; the name ends with the first digits of its SHA-256."""
SIZE = 64
"""Pixels per side at which images are compared, as in the papers' scripts:
rohitgandikota/erasing@25613d2, evalscripts/lpips_eval.py:22-25; CharlesGong12/RECE@403a67f, execs/lpips_score.py:45,47
(which resizes without antialiasing)."""


def has_lpips() -> bool:
    """Whether the package is installed, which is an extra."""
    return find_spec("lpips") is not None


class Lpips(PairScorer):
    """LPIPS 0.1 with AlexNet, of images in [-1, 1] resized to 64 x 64 pixels (bilinear with antialiasing), as in ESD.

    It is 0 for equal images. Numbers at other sizes differ.
    """

    name, columns, threshold = "lpips-alex", ("distance",), float("nan")
    groups = frozenset({"forget", "retain"})
    about = (f"{SIZE} pixels",)

    def __init__(self, weights: Path, device: str):
        """Load AlexNet from torchvision's file; its linear layers come with the package.

        Raises `UserError` if the file is missing or holds another network.
        """
        import lpips

        state = read_weights(weights, "AlexNet")
        if not file_hash(weights).startswith(weights.stem.rpartition("-")[2]):
            raise UserError(f"{weights} is not the file that its name says, by its SHA-256: delete it and fetch again")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torchvision, on the way in which it is called
            net: Any = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        for name, value in net.net.named_parameters():
            layer, _, kind = name.partition(".")[2].partition(".")
            known = state.get(f"features.{layer}.{kind}")
            if known is None or known.shape != value.shape:
                raise UserError(f"{weights} holds no AlexNet of torchvision: delete it and fetch again")
            value.data.copy_(known)
        self.version, self._offloaded, self.device = f"lpips {version('lpips')}", Offloaded(net.eval(), device), device
        self.hash = digest([file_hash(weights), state_hash(net.lins.state_dict())])

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Distances (N, 1) of images uint8 (N, 6, H, W): the model's, then the original's."""
        net, parts = self._offloaded.network, []
        for some in images.split(BATCH):
            mine, original = (prepared(half, SIZE).to(self.device) for half in some.split(3, dim=1))
            with exact():
                parts.append(net(mine, original).flatten(1).float().cpu())
        return torch.cat(parts)
