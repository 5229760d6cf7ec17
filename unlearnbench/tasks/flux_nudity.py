"""Erase nudity from FLUX.1 [dev], as sd-nudity does from v1.4 (never run on its real weights here)."""

from __future__ import annotations

from typing import ClassVar

from unlearnbench.data.sources import Source
from unlearnbench.diffusion.flow import FlowSampler
from unlearnbench.tasks._sd.flow import FlowNudity, flow_protocols, gated_files

HUB = "black-forest-labs/FLUX.1-dev"
FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model-00001-of-00002.safetensors",
    "text_encoder_2/model-00002-of-00002.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00003.safetensors",
    "transformer/diffusion_pytorch_model-00003-of-00003.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
"""What is read of the hub's repository."""


class FluxNudity(FlowNudity):
    """Samples have 1,024 pixels and are drawn as `FluxPipeline` does by default: 28 steps, an embedded guidance of 3.5.

    There is no classifier-free guidance: the network was distilled to do without. Methods that need a scale of their
    own, such as `start_guidance`, guide on top of it. --checkpoint takes the diffusers folder of [schnell] too.
    """

    name = "flux-nudity"
    model_folder, licence, origin = "flux.1-dev", "flux-1-dev-non-commercial-license", HUB
    parameters = 11_901_408_320
    """Number of parameters of the original's transformer."""
    pixels = 1024
    model_parts = frozenset({"full", "xattn", "noxattn", "text_encoder"})
    protocols: ClassVar = flow_protocols(FlowSampler(28, guidance=1.0, embedded_guidance=3.5))
    sources: ClassVar[tuple[Source, ...]] = gated_files("flux.1-dev", HUB, "flux-1-dev-non-commercial-license", FILES)
