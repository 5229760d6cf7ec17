"""Weights that others unlearned: every layout gives its own, everything else is refused and changes nothing."""

from __future__ import annotations

import copy
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.support import compvis, tiny_sd
from tests.support.compvis import prefixed, written
from tests.support.unlearned_sd import attention, expected, refused, same, text, unet, whole
from unlearnbench.models.external.apply import apply_checkpoint
from unlearnbench.models.loading import load_stable_diffusion

ATTN = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def both(sd):
    return prefixed("unet.", unet(sd)) | prefixed("text_encoder.", text(sd))


LAYOUTS = {
    "U-Net": (unet, "diffusers U-Net", {"unet"}),
    "U-Net in part": (attention, "diffusers U-Net", {"attention"}),
    "U-Net with prefix": (lambda m: prefixed("unet.", unet(m)), "diffusers U-Net", {"unet"}),
    "text encoder": (text, "text encoder", {"text"}),
    "text encoder, flat": (lambda m: m.text_encoders[0].state_dict(), "text encoder", {"text"}),
    "text encoder with prefix": (lambda m: prefixed("text_encoder.", text(m)), "text encoder", {"text"}),
    "both": (both, "diffusers parts", {"unet", "text"}),
    "CompVis": (whole, "CompVis", {"unet", "text"}),
    "CompVis U-Net": (lambda m: compvis.unet(unet(m)), "CompVis", {"unet"}),
    "CompVis U-Net in part": (lambda m: compvis.unet(attention(m)), "CompVis", {"attention"}),
    "OpenCLIP": (
        lambda m: prefixed("cond_stage_model.model.", compvis.open_clip(m.text_encoders[0].state_dict())),
        "CompVis",
        {"text"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "suffix"),
    [*((layout, ".safetensors") for layout in LAYOUTS), ("U-Net", ".ckpt"), ("CompVis", ".ckpt")],
)
def test_every_layout_gives_its_weights_and_leaves_the_others(sd, sd_before, sd_after, tmp_path, layout, suffix):
    make, name, changed = LAYOUTS[layout]
    path = written(make(sd_after), tmp_path / f"anything{suffix}")
    assert apply_checkpoint(sd, path) == name
    same(sd, expected(sd_before, sd_after, changed))
    y, t = sd.tokens(["a photo of a cat"]), torch.tensor([500])
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(sd.eps(x, t, y), sd_before.eps(x, t, y))


def test_keys_decide_and_not_the_name(sd, sd_before, sd_after, tmp_path):
    path = written(unet(sd_after), tmp_path / "lora.safetensors").rename(tmp_path / "sd-v1-4.ckpt")
    assert apply_checkpoint(sd, path) == "diffusers U-Net"
    same(sd, expected(sd_before, sd_after, {"unet"}))


def test_parts_of_a_nested_pickle_are_joined(sd, sd_before, sd_after, tmp_path):
    torch.save({"unet": attention(sd_after), "text_encoder": text(sd_after)}, tmp_path / "delta.bin")
    assert apply_checkpoint(sd, tmp_path / "delta.bin") == "diffusers parts"
    same(sd, expected(sd_before, sd_after, {"attention", "text"}))


def test_half_precision_is_widened(sd, sd_before, tmp_path):
    path = written({name: value.half() for name, value in unet(sd_before).items()}, tmp_path / "half.safetensors")
    apply_checkpoint(sd, path)
    assert sd.unet.conv_in.weight.dtype == torch.float32
    torch.testing.assert_close(sd.unet.conv_in.weight, sd_before.unet.conv_in.weight, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_rounding_to_a_narrower_type_is_no_change(sd, sd_before, tmp_path, kind):
    """A trained number is the file's; one that equals the original's, rounded, stays the original's to the last bit."""
    trained = unet(copy.deepcopy(sd_before))
    trained["conv_in.weight"][0] += 0.25
    path = written({name: value.to(kind) for name, value in trained.items()}, tmp_path / "half.safetensors")
    apply_checkpoint(sd, path)
    own, before = sd.unet.state_dict(), unet(sd_before)
    for name, value in own.items():
        if name != "conv_in.weight":
            assert torch.equal(value, before[name]), name
    assert torch.equal(own["conv_in.weight"][1:], before["conv_in.weight"][1:])
    assert torch.equal(own["conv_in.weight"][0], trained["conv_in.weight"][0].to(kind).float())


def test_wrappers_and_the_projects_own_names(sd, sd_before, sd_after, tmp_path):
    """A compiled U-Net in DataParallel, and the state that the store keeps of a run."""
    path = written(prefixed("module._orig_mod.", unet(sd_after)), tmp_path / "wrapped.pt")
    assert apply_checkpoint(sd, path) == "diffusers U-Net"
    same(sd, expected(sd_before, sd_after, {"unet"}))
    sd = copy.deepcopy(sd_before)
    apply_checkpoint(sd, written(sd_after.state_dict(), tmp_path / "data.safetensors"))
    same(sd, expected(sd_before, sd_after, {"unet", "text"}))


def test_a_file_equal_to_the_original_is_let_through(sd, sd_before, tmp_path):
    apply_checkpoint(sd, written(unet(sd_before), tmp_path / "same.pt"))
    same(sd, sd_before.state_dict())


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipeline(sd_folder, sd_after, tmp_path):
    place = shutil.copytree(sd_folder, tmp_path / "pipeline")
    sd_after.unet.save_pretrained(place / "unet")
    sd_after.text_encoders[0].save_pretrained(place / "text_encoder")
    return place


def test_folders_give_their_parts(sd, sd_before, sd_after, pipeline):
    assert apply_checkpoint(sd, pipeline) == "diffusers pipeline"
    same(sd, expected(sd_before, sd_after, {"unet", "text"}))
    for part, name, changed in (("unet", "diffusers U-Net", "unet"), ("text_encoder", "text encoder", "text")):
        fresh = copy.deepcopy(sd_before)
        assert apply_checkpoint(fresh, pipeline / part) == name
        same(fresh, expected(sd_before, sd_after, {changed}))


def test_shards_and_variants_of_a_folder(sd, sd_before, sd_after, tmp_path):
    place = tmp_path / "unet"
    sd_after.unet.save_pretrained(place, max_shard_size="50KB")
    assert len(list(place.glob("*-of-*.safetensors"))) > 1
    save_file({"x": torch.zeros(1)}, place / "diffusion_pytorch_model.fp16.safetensors")
    (place / "optimizer.bin").write_bytes(b"\x80")
    apply_checkpoint(sd, place)
    same(sd, expected(sd_before, sd_after, {"unet"}))
    empty, several = tmp_path / "empty", tmp_path / "several"
    empty.mkdir()
    several.mkdir()
    for name in ("a.pt", "b.pt"):
        written(unet(sd_after), several / name)
    refused(sd, empty, "no .safetensors")
    refused(sd, several, "a.pt, b.pt")


# ---- two text encoders -----------------------------------------------------------------------------------------------


def test_both_text_encoders_of_xl(tmp_path):
    base = load_stable_diffusion(tiny_sd.save(tmp_path / "xl", "sdxl")).requires_grad_(False)
    after, sd = copy.deepcopy(base), copy.deepcopy(base)
    for weight in [*after.unet.parameters(), *after.text_encoders.parameters()]:
        weight *= 1.25
    one, two = (encoder.state_dict() for encoder in after.text_encoders)
    state = prefixed("model.diffusion_model.", compvis.unet(unet(after)))
    state |= prefixed("conditioner.embedders.0.transformer.", compvis.clip(one))
    state |= prefixed("conditioner.embedders.1.model.", compvis.open_clip(two))
    assert apply_checkpoint(sd, written(state, tmp_path / "xl.safetensors")) == "CompVis"
    same(sd, after.state_dict())
    sd = copy.deepcopy(base)
    assert apply_checkpoint(sd, tmp_path / "xl") == "diffusers pipeline"
    same(sd, base.state_dict())
    refused(sd, written(compvis.clip(one), tmp_path / "text.pt"), "two text encoders", named=False)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_pickles_with_code_are_refused(sd, tmp_path):
    torch.save({"state_dict": {"conv_in.bias": torch.zeros(16)}, "callback": print}, tmp_path / "a.ckpt")
    refused(sd, tmp_path / "a.ckpt", "could run code", "`model.state_dict()` again")
    torch.save(sd.unet, tmp_path / "b.pt")
    refused(sd, tmp_path / "b.pt", "could run code")


def test_unknown_layouts_show_their_first_keys(sd, tmp_path):
    refused(
        sd, written({"b.weight": torch.ones(1), "a.weight": torch.ones(1)}, tmp_path / "x.pt"), "a.weight, b.weight"
    )
    refused(sd, written({"first_stage_model.x": torch.ones(1)}, tmp_path / "vae.pt"), "first_stage_model.x")
    torch.save({"conv_in.bias": torch.zeros(16), "names": ["a"]}, tmp_path / "list.pt")
    refused(sd, tmp_path / "list.pt", "names of type list")
    torch.save([torch.zeros(1)], tmp_path / "bare.pt")
    refused(sd, tmp_path / "bare.pt", "a list of Tensor", "state dictionary")


def test_weights_of_another_architecture_are_refused(sd, sd_before, tmp_path):
    state = {f"{ATTN}.weight": torch.zeros(16, 1024)}
    refused(sd, written(state, tmp_path / "two.pt"), f"{ATTN}.weight", "(16, 1024)", "(16, 16)", "SD 2.x?")
    state = compvis.unet(unet(sd_before))
    state["time_embed.0.weight"] = torch.zeros(4, 16)
    refused(sd, written(state, tmp_path / "ldm.safetensors"), "time_embed.0.weight", "(4, 16)", "(64, 16)")
    state = {**unet(sd_before), "add_embedding.linear_1.weight": torch.zeros(2, 2)}
    refused(sd, written(state, tmp_path / "xl.pt"), "add_embedding.linear_1.weight", "another architecture")


def test_values_that_are_not_finite_are_refused(sd, sd_before, tmp_path):
    state = {name: value.clone() for name, value in unet(sd_before).items()}
    state["conv_out.bias"][1] = float("nan")
    refused(sd, written(state, tmp_path / "nan.pt"), "conv_out.bias", "not finite")


def test_keys_of_which_nothing_is_known_are_refused(sd, sd_before, tmp_path):
    extra = {**whole(sd_before), "cond_stage_model.adapter.weight": torch.zeros(1)}
    refused(sd, written(extra, tmp_path / "a.ckpt"), "cond_stage_model.adapter.weight")
    extra = {**whole(sd_before), "model.diffusion_model.gate.weight": torch.zeros(1)}
    refused(sd, written(extra, tmp_path / "b.ckpt"), "model.diffusion_model.gate.weight")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_file_is_refused(sd, sd_before, tmp_path, suffix):
    path = written(unet(sd_before), tmp_path / f"model{suffix}")
    path.write_bytes(path.read_bytes()[:-1000])
    refused(sd, path, "cannot be loaded")
    path.write_bytes(b"nonsense that is long enough")
    refused(sd, path, "neither safetensors nor")
    path.write_bytes(b"")
    refused(sd, path, "cannot be loaded")
    path.write_bytes(pickle.dumps({"conv_in.bias": 1}))
    refused(sd, path, "could run code")
