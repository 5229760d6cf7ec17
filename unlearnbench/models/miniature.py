"""Stable Diffusion in miniature: the same parts with a few million weights, trained in minutes on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.diffusion.model import Batch
from unlearnbench.hashing import seed_of
from unlearnbench.models.stable_diffusion import StableDiffusion
from unlearnbench.models.tokenizer import word_tokenizer
from unlearnbench.reporting import track
from unlearnbench.training import minimise, seeded

TOKENS, WIDTH = 16, 64
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
STEPS, BATCH, RATE, EMA, DROP = 2000, 64, 1e-3, 0.995, 0.1
TOWARDS, CAP = 0.7, 20.0
"""Timesteps are drawn as T u^TOWARDS and weighted by 1 / alpha_bar up to CAP, as v-prediction does: which digit a word
means shows only at high noise, where uniform sampling draws few timesteps and losses are small."""
VAE_STEPS, VAE_BATCH, VAE_RATE, KL = 500, 64, 2e-3, 1e-6
RECIPE = {"steps": STEPS, "batch": BATCH, "rate": RATE, "ema": EMA, "drop": DROP, "vae_steps": VAE_STEPS}
RECIPE |= {"towards": TOWARDS, "cap": CAP}
FILES = {
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
"""Paths of the weights in a diffusers folder."""


def new_vae() -> Any:
    """Create the VAE: 2x2 pixels per latent, four channels, 0.6 M parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        scaling_factor=1.0,
    )


def new_unet() -> Any:
    """Create the U-Net: 8x8 latents, cross-attention on both levels, 2.4 M parameters."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(48, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_text_encoder(tokens: Any) -> Any:
    """Create CLIP's text model with two layers of width 64."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return CLIPTextModel(config)


def falling(rate: float, steps: int) -> Any:
    """Learning-rate schedule: constant for half of the steps, then a cosine to zero."""

    def at(step: int) -> float:
        return rate * 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * step / steps - 1)))

    return at


def train_vae(images: Tensor, seed: int, device: str) -> nn.Module:
    """Train on reconstruction with a small KL term, then rescale the weights so that latents have unit variance."""
    with seeded(seed_of("vae", seed) >> 1):
        vae = new_vae().to(device)

        def losses() -> Iterator[Tensor]:
            for _ in track(range(VAE_STEPS), VAE_STEPS, "autoencoder"):
                x = images[torch.randint(len(images), (VAE_BATCH,))].to(device)
                posterior = vae.encode(x).latent_dist
                again = vae.decode(posterior.sample(), return_dict=False)[0]
                yield (again - x).square().mean() + (again - x).abs().mean() + KL * posterior.kl().mean()

        minimise(losses(), dict(vae.named_parameters()), falling(VAE_RATE, VAE_STEPS), optimiser="adamw", clip=1.0)
        with torch.no_grad():
            spread = vae.encode(images[::7].to(device)).latent_dist.mode().std()
            # quant_conv gives mean and log-variance, post_quant_conv takes latents: both ends are rescaled alike
            vae.quant_conv.weight[:4] /= spread
            vae.quant_conv.bias[:4] /= spread
            vae.quant_conv.bias[4:] -= 2 * spread.log()
            vae.post_quant_conv.weight *= spread
    return vae


def caption_loss(model: StableDiffusion, batch: Batch) -> Tensor:
    """The denoising loss with the timesteps and weights of `TOWARDS` and 10 % empty captions."""
    n, T = len(batch.x0), len(model.alpha_bar)
    t = (T * torch.rand(n, device=batch.x0.device) ** TOWARDS).long().clamp(max=T - 1)
    noise = torch.randn_like(batch.x0)
    kept = torch.rand(n, device=batch.x0.device) >= DROP
    condition = model.embed(batch.y).where(kept, model.null(n))
    error = (model(model.add_noise(batch.x0, noise, t), t, condition) - noise).square().mean(dim=(1, 2, 3))
    return ((1 / model.alpha_bar[t]).clamp(max=CAP) * error).mean()


def train_miniature(model: StableDiffusion, stream: Iterable[Batch], steps: int, seed: int) -> None:
    """Train denoiser and text encoder together on `steps` batches: AdamW and EMA on `caption_loss`."""
    parameters = dict(model.unet.named_parameters(prefix="unet"))
    parameters |= dict(model.text_encoders.named_parameters(prefix="text_encoders"))

    def losses() -> Iterator[Tensor]:
        for batch in track(islice(stream, steps), steps, "steps"):
            yield caption_loss(model, batch)

    with seeded(seed_of("training", seed) >> 1):
        minimise(losses(), parameters, falling(RATE, steps), optimiser="adamw", ema=EMA, clip=1.0)


def halves(network: nn.Module) -> dict[str, Tensor]:
    """Convert weights to half precision, as they are shipped."""
    state = network.state_dict()
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


def write_configuration(folder: Path, words: Sequence[str]) -> None:
    """Write everything of a diffusers folder except weights: configurations, a whole-word tokenizer, schedule and
    index.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    tokens = word_tokenizer(words, TOKENS)
    vae, unet, text_encoder, scheduler = new_vae(), new_unet(), new_text_encoder(tokens), DDIMScheduler(**SCHEDULE)
    pipeline: Any = StableDiffusionPipeline(
        vae, text_encoder, tokens, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.save_config(folder)
    for name in ("vae", "unet", "scheduler"):
        getattr(pipeline, name).save_config(folder / name)
    text_encoder.config.save_pretrained(folder / "text_encoder")
    tokens.save_pretrained(folder / "tokenizer")
