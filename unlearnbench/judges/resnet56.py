"""The plain ResNet of the CIFAR experiments, 0.27 to 1.7 M parameters (He et al., CVPR 2016, section 4.2)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from unlearnbench.errors import UserError
from unlearnbench.storage.weights import load_state

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
    """The network of a safetensors file, in evaluation mode; how deep it is follows from the names in the file."""
    state = load_state(path)
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
