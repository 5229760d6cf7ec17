"""kohya's names of LoRA modules, which have underscores for dots, and either diffusers' or Stability's block names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from unlearnbench.models.external.compvis import UNET, _unet_names

STARTS = {"unet.": ("lora_unet_",), "text_encoder.": ("lora_te_", "lora_te1_"), "text_encoder_2.": ("lora_te2_",)}
BLOCK = re.compile(r"lora_unet_(?P<block>(?:input_blocks|output_blocks)_\d+_\d+|middle_block_\d+)_(?P<inner>.+)$")
RESNET = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection", "op", "conv")
OUTSIDE = ("time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2", "input_blocks.0.0", "out.0", "out.2")
"""Modules of Stability's U-Net inside its residual blocks, and outside all blocks."""


def flat_names(modules: Iterable[str], weights: Iterable[str], unet_config: Any) -> dict[str, str]:
    """Map kohya's module names to the model's weights; those that fit nothing are left out."""
    own = list(weights)
    flat = {
        start + ("" if part == "unet." else "text_model_") + _flattened(name[len(part) : -len(".weight")]): name
        for name in own
        for part, starts in STARTS.items()
        if name.startswith(part) and name.endswith(".weight")
        for start in starts
    }
    return {**_of_blocks(modules, own, unet_config), **flat}


def _of_blocks(modules: Iterable[str], weights: list[str], unet_config: Any) -> dict[str, str]:
    """Names such as `lora_unet_input_blocks_4_1_proj_in`, which SD XL's trainer writes, by way of diffusers' names."""
    inner = {_flattened(name): name for name in RESNET}
    for name in weights:
        if found := re.match(r"unet\..*\.attentions\.\d+\.(.+)\.weight$", name):
            inner[_flattened(found[1])] = found[1]
    outside = {f"lora_unet_{_flattened(name)}": name for name in OUTSIDE}
    original: dict[str, str] = {}
    for module in modules:
        found = BLOCK.match(module)
        if module in outside:
            original[f"{UNET}{outside[module]}.weight"] = module
        elif found and found["inner"] in inner:
            block = re.sub(r"_(?=\d)", ".", found["block"])
            original[f"{UNET}{block}.{inner[found['inner']]}.weight"] = module
    return _translated(original, unet_config) if original else {}


def _translated(original: Mapping[str, str], unet_config: Any) -> dict[str, str]:
    """Translate with diffusers, which reads some layers' biases wherever there is a weight, so all get one."""
    biases = [key.removesuffix("weight") + "bias" for key in original]
    names = _unet_names([*original, *biases], unet_config)
    return {original[key]: f"unet.{name}" for name, key in names.items() if key in original}


def _flattened(name: str) -> str:
    return name.replace(".", "_")
