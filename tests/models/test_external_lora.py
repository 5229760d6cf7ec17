"""LoRA of every naming, merged, against what is summed by hand."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.compvis import written
from tests.support.unlearned_sd import refused, same, unet
from unlearnbench.models.external.apply import apply_checkpoint

ATTN = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"
POINT = "down_blocks.0.attentions.0.proj_in"
TEXT = "encoder.layers.1.self_attn.q_proj"


def low_rank(sd_before, rank=2):
    """Down and up by weight's name, and what up @ down is, summed by hand."""
    generator, found = torch.Generator().manual_seed(3), {}
    targets = {f"unet.{name}": unet(sd_before)[f"{name}.weight"] for name in (ATTN, CONV, POINT)}
    targets[f"text_encoder.{TEXT}"] = sd_before.text_encoders[0].state_dict()[f"{TEXT}.weight"]
    for name, weight in targets.items():
        down = torch.randn(rank, *weight.shape[1:], generator=generator)
        up = torch.randn(len(weight), rank, *(1 for _ in weight.shape[2:]), generator=generator)
        delta = torch.zeros_like(weight)
        for r in range(rank):
            delta += up[:, r].reshape(-1, *(1 for _ in weight.shape[1:])) * down[r]
        found[name] = (down, up, delta)
    return found


def lora_file(sd_before, path, naming, alpha=None):
    state = {}
    for name, (down, up, _) in low_rank(sd_before).items():
        part, rest = name.split(".", 1)
        rest = "text_model." + rest if part == "text_encoder" else rest
        if naming == "kohya":
            module = ("lora_unet_" if part == "unet" else "lora_te_") + rest.replace(".", "_")
        elif naming == "processor" and "attn2" in rest:
            module = f"{part}." + rest.replace("to_k", "processor.to_k")
        else:
            module = f"base_model.model.{part}.{rest}" if naming == "wrapped" else f"{part}.{rest}"
        ends = {
            "peft": (".lora_A.weight", ".lora_B.weight"),
            "wrapped": (".lora_A.default.weight", ".lora_B.default.weight"),
            "kohya": (".lora_down.weight", ".lora_up.weight"),
            "processor": ("_lora.down.weight", "_lora.up.weight")
            if "attn2" in rest
            else (".lora.down.weight", ".lora.up.weight"),
        }[naming]
        state |= {module + ends[0]: down, module + ends[1]: up}
        if alpha is not None:
            state[f"{module}.alpha"] = torch.tensor(alpha)
    return written(state, path)


def with_lora(sd_before, scale):
    wanted = {name: value.clone() for name, value in sd_before.state_dict().items()}
    for name, (_, _, delta) in low_rank(sd_before).items():
        own = name.replace("text_encoder.", "text_encoders.0.") + ".weight"
        wanted[own] += scale * delta
    return wanted


@pytest.mark.parametrize(
    ("naming", "alpha", "scale", "layout"),
    [
        ("peft", None, 1.0, "LoRA (diffusers)"),
        ("peft", 1.0, 0.5, "LoRA (diffusers)"),
        ("wrapped", None, 1.0, "LoRA (diffusers)"),
        ("processor", None, 1.0, "LoRA (diffusers)"),
        ("kohya", 4.0, 2.0, "LoRA (kohya)"),
        ("kohya", None, 1.0, "LoRA (kohya)"),
    ],
)
def test_lora_is_merged_with_alpha_over_rank(sd, sd_before, tmp_path, naming, alpha, scale, layout):
    assert apply_checkpoint(sd, lora_file(sd_before, tmp_path / "lora.safetensors", naming, alpha)) == layout
    same(sd, with_lora(sd_before, scale))


def test_lora_in_a_pickle(sd, sd_before, tmp_path):
    apply_checkpoint(sd, lora_file(sd_before, tmp_path / "lora.pt", "kohya", 4.0))
    same(sd, with_lora(sd_before, 2.0))


def test_alpha_in_the_header_counts(sd, sd_before, tmp_path):
    path = lora_file(sd_before, tmp_path / "lora.safetensors", "peft")
    config = {"unet.lora_alpha": 6, "text_encoder.lora_alpha": 8, "unet.r": 2, "unet.alpha_pattern": {CONV: 1}}
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": json.dumps(config)})
    apply_checkpoint(sd, path)
    scales = {f"unet.{ATTN}": 3.0, f"unet.{POINT}": 3.0, f"unet.{CONV}": 0.5, f"text_encoder.{TEXT}": 4.0}
    for name, (_, _, delta) in low_rank(sd_before).items():
        own = name.replace("text_encoder.", "text_encoders.0.") + ".weight"
        change = sd.state_dict()[own] - sd_before.state_dict()[own]
        torch.testing.assert_close(change, scales[name] * delta, atol=1e-5, rtol=1e-5)


def test_lora_that_is_not_finite_is_refused(sd, sd_before, tmp_path):
    path = lora_file(sd_before, tmp_path / "lora.safetensors", "peft")
    state = load_file(path)
    state[f"unet.{ATTN}.lora_B.weight"][0, 0] = float("inf")
    refused(sd, written(state, path), ATTN, "not finite")


def test_lora_that_does_not_fit_is_refused(sd, sd_before, tmp_path):
    state = load_file(lora_file(sd_before, tmp_path / "lora.safetensors", "peft"))
    magnitude = {**state, f"unet.{ATTN}.lora_magnitude_vector": torch.ones(16)}
    refused(sd, written(magnitude, tmp_path / "dora.safetensors"), "lora_magnitude_vector")
    single = {key: value for key, value in state.items() if key != f"unet.{ATTN}.lora_A.weight"}
    refused(sd, written(single, tmp_path / "single.safetensors"), f"unet.{ATTN}.lora_B.weight")
    wide = {**state, f"unet.{ATTN}.lora_A.weight": torch.ones(2, 768)}
    refused(sd, written(wide, tmp_path / "wide.safetensors"), "(16, 768)", "(16, 16)", "SD 1.x?")
    ranks = {**state, f"unet.{ATTN}.lora_B.weight": torch.ones(16, 3)}
    refused(sd, written(ranks, tmp_path / "ranks.safetensors"), ATTN, "different ranks", named=False)
    strange = {
        "lora_unet_nowhere.lora_down.weight": torch.ones(2, 2),
        "lora_unet_nowhere.lora_up.weight": torch.ones(2, 2),
    }
    refused(sd, written(strange, tmp_path / "strange.safetensors"), "lora_unet_nowhere")
    doubled = {**state, f"base_model.model.unet.{ATTN}.lora_A.weight": torch.ones(2, 16)}
    doubled[f"base_model.model.unet.{ATTN}.lora_B.weight"] = torch.ones(16, 2)
    refused(sd, written(doubled, tmp_path / "doubled.safetensors"), f"both for unet.{ATTN}.weight")


@pytest.mark.parametrize("config", ["{", "[]"])
def test_a_header_that_cannot_be_read_is_refused(sd, sd_before, tmp_path, config):
    path = lora_file(sd_before, tmp_path / "lora.safetensors", "peft")
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": config})
    refused(sd, path, "lora_adapter_metadata", named=False)
