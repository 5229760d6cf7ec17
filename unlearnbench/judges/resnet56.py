"""The plain ResNet of the CIFAR experiments, 0.27 to 1.7 M parameters (He et al., CVPR 2016, section 4.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from unlearnbench.compute.device import exact
from unlearnbench.compute.offloading import Offloaded
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest, state_hash
from unlearnbench.judges import Judge, Verdict
from unlearnbench.judges.calibration import corrupted_thresholds
from unlearnbench.judges.cifar import energy
from unlearnbench.models.external.state_files import read_state

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, by which published weights of this network have their input normalised."""
WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two convolutions and a shortcut without weights: every second pixel, zeros for the channels that are new."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.stride, self.new = (1, 0) if width_in == width else (2, width - width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride)."""
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new // 2))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + short)


class CifarResNet(nn.Module):
    """6 n + 2 layers, n `blocks` a stage: 9 of them are ResNet-56."""

    mean: Tensor
    std: Tensor

    def __init__(self, blocks: int = 9, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        for stage, (before, width) in enumerate(zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False), 1):
            rest = [Block(width, width) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(Block(before, width), *rest))
        self.linear = nn.Linear(WIDTHS[-1], classes)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """(N, 64) for images uint8 (N, 3, 32, 32)."""
        x = (images.float() / 255 - self.mean) / self.std
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, len(WIDTHS) + 1):
            x = getattr(self, f"layer{stage}")(x)
        return x.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) for images uint8 (N, 3, 32, 32)."""
        return self.linear(self.features(images))


def read_resnet(path: Path) -> CifarResNet:
    """The network of a file, in evaluation mode; how deep it is follows from the names in the file.

    Published files are of `torch.save`, with "module." before each name.
    """
    if not path.is_file():
        raise UserError(f"no weights at {path}: give a file that exists")
    state = {name.removeprefix("module."): value for name, value in read_state(path).items()}
    blocks = len({name.split(".")[1] for name in state if name.startswith("layer1.")})
    classes = len(state.get("linear.bias", ()))
    if not blocks or not classes:
        raise UserError(
            f"{path} is no ResNet for CIFAR: names such as layer1.0.conv1.weight and linear.bias are needed"
        )
    network = CifarResNet(blocks, classes)
    try:
        network.load_state_dict({name: value for name, value in state.items() if not name.endswith("batches_tracked")})
    except RuntimeError as error:
        raise UserError(f"{path} is no ResNet for CIFAR of {6 * blocks + 2} layers: its tensors do not fit") from error
    return network.eval().requires_grad_(False)


class ResNet56Judge(Judge):
    """A `CifarResNet` that others trained, for choosing settings apart from the reported judge.

    It was trained without images that show nothing, so that it abstains by the energy of its answers.
    """

    name, version, classes = "cifar10-resnet56", "1", 10
    batch = 250

    def __init__(self, network: CifarResNet, threshold: float, device: str = "cpu"):
        self.device, self.threshold = device, threshold
        self.hash = digest([state_hash(network.state_dict()), threshold])
        self._network = Offloaded(network, device)

    def calibrated(self, images: Tensor, labels: Tensor) -> float:
        """The threshold that images uint8 (N, 3, 32, 32) with labels (N,) ask for, corrupted in every way.

        These are some 60 N answers, a minute of a CPU for 100 images.
        """

        def scored(images: Tensor) -> tuple[Tensor, Tensor]:
            logits, _ = self._over(images)
            return logits.argmax(dim=1)[:, None], energy(logits)[:, None]

        return float(corrupted_thresholds(scored, images, labels[:, None])[0])

    @torch.inference_mode()
    def _over(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, 10) and features (N, 64) of uint8 images, on the CPU."""
        network: Any = self._network.network
        with exact():
            features = torch.cat([network.features(some.to(self.device)) for some in images.split(self.batch)])
            return network.linear(features).cpu(), features.cpu()

    def __call__(self, images: Tensor) -> Verdict:
        """Judge uint8 images (N, 3, 32, 32)."""
        logits, _ = self._over(images)
        return Verdict(logits.softmax(dim=1), energy(logits) > self.threshold)

    def features(self, images: Tensor) -> Tensor:
        """The layer before the last, (N, 64)."""
        return self._over(images)[1]
