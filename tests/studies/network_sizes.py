"""Count what unlearning takes at real size: `python -m tests.studies.network_sizes` writes
unlearnbench/pipeline/networks.toml anew, from networks whose tensors have sizes but no memory.

For each network: parameters by part, and the bytes that are alive at the peak of one loss and its backward pass,
beyond weights and gradients: fixed ones, and those of each image. `--updates` runs whole updates of methods at the
size of SD v1.4 instead, and prints their peaks beside what `run --dry-run` says.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.studies.throughput import sd14
from tests.support.live_bytes import LiveBytes, sized_like_cuda
from unlearnbench import Batch, Diffusion
from unlearnbench.compute.precision import Resources
from unlearnbench.models.miniature import SCHEDULE
from unlearnbench.models.stable_diffusion import StableDiffusion
from unlearnbench.models.tokenizer import word_tokenizer
from unlearnbench.tasks.cifar10_class import CLASSES, SIZE
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.tasks.digits_text import DigitsText

TABLE = Path(__file__).parents[2] / "unlearnbench" / "pipeline" / "networks.toml"
COMMAND = "python -m tests.studies.network_sizes"
PROMPT = 77
"""Tokens of CLIP's text encoders."""
XL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""The U-Net of stabilityai/stable-diffusion-xl-base-1.0, by its unet/config.json."""


def sdxl(tokens: Any) -> StableDiffusion:
    """XL's networks of the published configurations: CLIP's text encoder, and OpenCLIP's bigG with its projection."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    small = sd14(tokens)
    big = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        max_position_embeddings=PROMPT,
        projection_dim=1280,
        hidden_act="gelu",
        eos_token_id=tokens.eos_token_id,
    )
    encoders = [small.text_encoders[0], CLIPTextModelWithProjection(big)]
    return StableDiffusion(UNet2DConditionModel(**XL), small.vae, encoders, [tokens, tokens], SCHEDULE)


def papers_cifar(tokens: Any) -> Diffusion:
    """The papers' network on CIFAR-10."""
    from unlearnbench.models.ddpm import ConditionalDDPM

    return ConditionalDDPM(len(CLASSES), SIZE)


NETWORKS: dict[str, Callable[[Any], Diffusion]] = {
    "sd-v1-4": sd14,
    "sdxl-base-1.0": sdxl,
    "cifar10-class": papers_cifar,
    "digits-class": lambda tokens: DigitsClass("3").architecture(0),
    "digits-text": lambda tokens: DigitsText("seven").architecture(0),
}


def clip_tokens() -> Any:
    """A tokenizer of a few words with prompts of CLIP's length."""
    return word_tokenizer(["a", "photo", "of", "cat"], PROMPT)


def parameters(model: Any) -> dict[str, Any]:
    """Numbers of parameters by network, and by the part that a method may train; pixels of a side of an image."""

    def count(network: Any) -> int:
        return sum(value.numel() for value in network.parameters()) if network is not None else 0

    text, vae = getattr(model, "text_encoders", None), getattr(model, "vae", None)
    return {
        "denoiser": count(model) - count(text) - count(vae),
        "vae": count(vae),
        "text_encoders": count(text),
        "pixels": model.shape[-1] * getattr(model, "scale_factor", 1),
        "parts": {name: sum(value.numel() for value in part) for name, part in model.parts().items()},
    }


def conditions(model: Any, n: int) -> Tensor:
    """Conditions of n images."""
    if not hasattr(model, "tokens"):
        return torch.zeros(n, dtype=torch.long)
    return torch.zeros(n, *((2,) if len(model.text_encoders) == 2 else ()), model.length, dtype=torch.long)


def activations(model: Any, live: LiveBytes, images: int, resources: Resources) -> int:
    """Bytes alive at the peak of one denoising loss and its backward pass, beyond weights and gradients."""
    batch = Batch(torch.zeros(images, *model.shape), conditions(model, images))
    live.restart()
    before = live.now
    with resources.training("cpu"):
        model.loss(batch).backward()  # each gradient is freed at once, see `unkept`
    return live.peak - before


def unkept(model: Any) -> None:
    """Free each parameter's gradient once it is there."""
    for value in model.parameters():
        value.register_post_accumulate_grad_hook(lambda value: setattr(value, "grad", None))


def counted(name: str, pairs: tuple[tuple[str, bool], ...] | None = None) -> dict[str, Any]:
    """A network's entry of the table; `pairs` of precision and checkpointing may be fewer than all."""
    tokens = clip_tokens()
    every = tuple((precision, saving) for precision in ("fp32", "bf16") for saving in (False, True))
    with sized_like_cuda():
        model = NETWORKS[name](tokens).train()
        return _counted(model, pairs or every)


def _counted(model: Any, pairs: tuple[tuple[str, bool], ...]) -> dict[str, Any]:
    with LiveBytes() as live:
        live.add([*model.parameters(), *model.buffers()])
        unkept(model)
        found: dict[str, Any] = {**parameters(model), "activations": {}}
        for precision, checkpointing in pairs:
            if checkpointing and not getattr(model.unet, "_supports_gradient_checkpointing", False):
                continue
            resources = Resources(precision, ("checkpointing",) if checkpointing else ())  # type: ignore[arg-type]
            resources.equip(model)
            if not checkpointing:
                model.unet.disable_gradient_checkpointing()
            activations(model, live, 1, resources)  # what the first call alone makes, such as caches
            two, four = (activations(model, live, n, resources) for n in (2, 4))
            each = (four - two) / 2
            found["activations"].setdefault(precision, {})["checkpointing" if checkpointing else "plain"] = [
                max(0, round(two - 2 * each)),
                round(each),
            ]
    return found


if __name__ == "__main__":
    import time, json, sys
    for name in sys.argv[1:]:
        t0 = time.time()
        print(name, json.dumps(counted(name)), time.time() - t0, flush=True)
