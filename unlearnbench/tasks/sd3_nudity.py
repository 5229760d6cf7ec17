"""Erase nudity from Stable Diffusion 3.5 medium, as sd-nudity does from v1.4 (never run on its real weights here)."""

from __future__ import annotations

from typing import ClassVar

from unlearnbench.data.sources import Source
from unlearnbench.diffusion.flow import FlowSampler
from unlearnbench.tasks._sd.flow import FlowNudity, flow_protocols, gated_files

HUB = "stabilityai/stable-diffusion-3.5-medium"
FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "text_encoder_3/config.json",
    "text_encoder_3/model-00001-of-00002.safetensors",
    "text_encoder_3/model-00002-of-00002.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/vocab.json",
    "tokenizer_3/special_tokens_map.json",
    "tokenizer_3/tokenizer.json",
    "tokenizer_3/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
"""What is read of the hub's repository."""


class SD3Nudity(FlowNudity):
    """Samples have 1,024 pixels and are drawn as `StableDiffusion3Pipeline` does by default: 28 steps, guidance 7.

    --checkpoint takes the diffusers folder of any SD 3 or 3.5, with T5 or without.
    """

    name = "sd3-nudity"
    model_folder, licence, origin = "sd3.5-medium", "stabilityai-ai-community", HUB
    parameters = 2_243_171_520
    """Number of parameters of the original's transformer."""
    pixels = 1024
    model_parts = frozenset({"full", "xattn", "selfattn", "noxattn", "text_encoder"})
    protocols: ClassVar = flow_protocols(FlowSampler(28, guidance=7.0))
    sources: ClassVar[tuple[Source, ...]] = gated_files("sd3.5-medium", HUB, "stabilityai-ai-community", FILES)
