"""The CIFAR ResNet: its size, a block by its formula, and files that are none."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from unlearnbench.errors import UserError
from unlearnbench.judges.resnet56 import Block, CifarResNet, read_resnet
from unlearnbench.storage.weights import save_state


def weights(network):
    """As published: without the count of batches."""
    return {name: value for name, value in network.state_dict().items() if not name.endswith("batches_tracked")}


def test_nine_blocks_a_stage_are_the_0_85_million_parameters_of_resnet_56():
    assert sum(value.numel() for value in CifarResNet().parameters()) == 853_018
    assert sum(value.numel() for value in CifarResNet(3).parameters()) == 269_722


def test_the_shortcut_takes_every_second_pixel_and_puts_zeros_around_the_channels():
    torch.manual_seed(0)
    block = Block(4, 8).eval()
    x = torch.randn(2, 4, 6, 6)
    short = torch.cat([torch.zeros(2, 2, 3, 3), x[:, :, ::2, ::2], torch.zeros(2, 2, 3, 3)], dim=1)
    inner = block.bn2(
        F.conv2d(F.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1))), block.conv2.weight, padding=1)
    )
    assert torch.allclose(block(x), F.relu(inner + short))


def test_a_file_gives_the_network_back_whatever_its_depth(tmp_path):
    torch.manual_seed(0)
    network = CifarResNet(2, classes=3).eval()
    network.bn1.running_mean.normal_()
    save_state(weights(network), tmp_path / "resnet14.safetensors")
    read = read_resnet(tmp_path / "resnet14.safetensors")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert not read.training and torch.equal(read(images), network(images))
    assert read(images).shape == (2, 3) and read.features(images).shape == (2, 64)


def test_the_input_is_normalised_by_imagenets_mean_and_deviation():
    network = CifarResNet(1).eval()
    seen = []
    network.conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8))
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert torch.allclose(seen[0][0, :, 0, 0], torch.tensor(expected))


@pytest.mark.parametrize("kind", ["another network", "shapes that do not fit"])
def test_a_file_of_something_else_is_refused(tmp_path, kind):
    path = tmp_path / "other.safetensors"
    state = weights(CifarResNet(1)) if kind.startswith("shapes") else {"weight": torch.zeros(2)}
    if kind.startswith("shapes"):
        state["linear.weight"] = torch.zeros(10, 32)
    save_state(state, path)
    with pytest.raises(UserError, match=r"other.safetensors is no ResNet for CIFAR"):
        read_resnet(path)
