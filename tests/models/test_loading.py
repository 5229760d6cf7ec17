"""Loading Stable Diffusion: folders, files, the hub, and what is none of them."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
import torch

from tests.support import compvis, tiny_sd
from unlearnbench.errors import UserError
from unlearnbench.models.loading import load_stable_diffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sd.save(tmp_path_factory.mktemp("sd1") / "model", "sd1")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def refused(source, *said, **options):
    with pytest.raises(UserError) as caught:
        load_stable_diffusion(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    for word in (str(source), *said):
        assert word in text, text


def test_a_folder_gives_its_own_weights_and_no_safety_checker(folder):
    from safetensors.torch import load_file

    model = load_stable_diffusion(folder)
    stored = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert set(stored) == set(model.unet.state_dict())
    assert all(torch.equal(value, model.unet.state_dict()[name]) for name, value in stored.items())
    assert model.prediction == "epsilon"
    assert model.length == tiny_sd.TOKENS
    assert not any("safety" in name for name, _ in model.named_modules())


def test_every_word_of_the_small_vocabulary_is_one_token(folder):
    words = load_stable_diffusion(folder).tokenizers[0]
    for word in tiny_sd.WORDS:
        assert len(words(word).input_ids) == 3, word


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json"])
def test_a_folder_that_lacks_a_part_is_refused_by_name(copy, part):
    gone = copy / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    refused(copy, part, "no diffusers folder")


def test_a_pickle_with_code_in_a_folder_is_refused(copy):
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({"conv_in.bias": torch.zeros(16), "hook": print}, weights.with_suffix(".bin"))
    refused(copy, "diffusion_pytorch_model.bin", "could run code")


def test_a_damaged_configuration_is_one_line(copy):
    (copy / "unet/config.json").write_text("{")
    refused(copy, "cannot be loaded")


def test_the_hub_out_of_reach_says_what_would_serve(monkeypatch):
    from diffusers import DiffusionPipeline

    def gone(*words, **named):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(DiffusionPipeline, "download", gone)
    refused("someone/some-model", "couldn't connect", "model_index.json", "hf auth login")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, folder):
    path = tmp_path / "model.safetensors"
    refused(path, "that exists")
    path.write_bytes(b"nonsense")
    refused(path, "cannot be loaded", config=folder)


def test_a_file_without_known_keys_shows_the_first(tmp_path, folder):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"some.weight": torch.zeros(2)}, path)
    refused(path, "some.weight", config=folder)


def test_a_pickle_with_code_is_refused(tmp_path, folder):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hook": print}, path)
    refused(path, "could run code", config=folder)


def test_a_pickle_of_tensors_is_looked_into(tmp_path, folder):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"some.weight": torch.zeros(1)}}, path)
    refused(path, "some.weight", config=folder)


def test_index_of_the_folder_is_the_hubs_layout(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]


@pytest.fixture
def no_network(monkeypatch):
    def gone(*words, **named):
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", gone)
    monkeypatch.setattr(socket, "getaddrinfo", gone)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_checkpoint_of_the_original_layout_is_the_same_model(folder, tmp_path, suffix):
    model = load_stable_diffusion(folder)
    path = compvis.written(compvis.checkpoint(model), tmp_path / f"model{suffix}")
    again = load_stable_diffusion(path, config=folder)
    y = model.tokens(["a photo of a cat", "red seven"])
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10, 900])
    images = torch.randn(2, 3, 16, 16, generator=generator)
    with torch.inference_mode():
        pairs = [(one.embed(y).states, one.eps(x, t, y), one.decode(x), one.encode(images)) for one in (model, again)]
    for before, after in zip(*pairs, strict=True):
        torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    assert again.prediction == model.prediction
    assert torch.equal(again.alpha_bar, model.alpha_bar)


@pytest.mark.usefixtures("no_network")
def test_a_checkpoint_of_another_size_or_without_its_parts_is_refused(folder, tmp_path):
    state = compvis.checkpoint(load_stable_diffusion(folder))
    small = {name: value[:8] if name.endswith("input_blocks.0.0.weight") else value for name, value in state.items()}
    refused(compvis.written(small, tmp_path / "small.ckpt"), "first keys: alphas_cumprod", config=folder)
    unet = {name: value for name, value in state.items() if name.startswith("model.")}
    refused(compvis.written(unet, tmp_path / "unet.safetensors"), "first keys: model.diffusion_model", config=folder)
    lacking = {name: value for name, value in state.items() if not name.endswith("output_blocks.2.0.in_layers.0.bias")}
    refused(compvis.written(lacking, tmp_path / "lacking.safetensors"), "first keys", config=folder)
