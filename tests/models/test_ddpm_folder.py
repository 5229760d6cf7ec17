"""The CIFAR-10 network as a diffusers folder: the same function there, and no padding that training could fill."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from tests.support.ddpm_folder import write_folder
from unlearnbench.errors import UserError
from unlearnbench.models.ddpm import ConditionalDDPM, load_converted
from unlearnbench.models.ddpm_folder import LABELS, UNET, read_folder
from unlearnbench.storage.weights import load_state, save_state


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ConditionalDDPM(width=32).eval()


def test_diffusers_own_class_predicts_the_same(model, tmp_path):
    from diffusers import UNet2DModel

    write_folder(model, tmp_path / "port")
    unet = UNet2DModel.from_pretrained(tmp_path / "port" / "unet", local_files_only=True).eval()
    labels = load_state(tmp_path / "port" / LABELS)
    x, t, y = torch.randn(3, 3, 32, 32), torch.tensor([3, 500, 999]), torch.tensor([0, 4, 9])
    half = F.linear(labels["classes_emb.weight"][y], labels["cemb.0.weight"], labels["cemb.0.bias"])
    half = F.linear(F.silu(half), labels["cemb.1.weight"], labels["cemb.1.bias"])
    with torch.no_grad():
        theirs = unet(x, t, class_labels=torch.cat([torch.zeros_like(half), half], dim=1)).sample
        torch.testing.assert_close(model(x, t, y), theirs, atol=1e-5, rtol=1e-4)


def test_there_and_back_is_the_same_and_no_padding_is_left_to_train(model, tmp_path):
    write_folder(model, tmp_path / "port")
    again = ConditionalDDPM(width=32)
    load_converted(again, read_folder(tmp_path / "port"), "port")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())
    padded = load_state(tmp_path / "port" / UNET)["time_embedding.linear_2.weight"]
    assert padded.shape == (256, 256) and padded.count_nonzero() <= 128 * 128


def test_padding_that_was_trained_is_refused(model, tmp_path):
    write_folder(model, tmp_path / "port")
    state = load_state(tmp_path / "port" / UNET)
    state["time_embedding.linear_1.bias"][-1] = 0.5
    save_state(state, tmp_path / "port" / UNET)
    with pytest.raises(UserError, match=r"time_embedding.linear_1.bias is not zero where the class embedding stands"):
        read_folder(tmp_path / "port")


@pytest.mark.parametrize("name", [UNET, LABELS])
def test_a_file_that_is_missing_is_named(model, tmp_path, name):
    write_folder(model, tmp_path / "port")
    (tmp_path / "port" / name).unlink()
    with pytest.raises(UserError, match=f"has no {name}"):
        read_folder(tmp_path / "port")
