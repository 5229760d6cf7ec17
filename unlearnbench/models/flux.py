"""FLUX.1 as a `Diffusion`, built on diffusers' networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.diffusion.flow import FlowSchedule
from unlearnbench.diffusion.model import Condition
from unlearnbench.models.text_flow import TextFlow

T5_TOKENS = {True: 512, False: 256}
"""Tokens that T5 reads, by whether the network is guidance-distilled: FLUX.1 [dev] is, and reads as many as
`FluxPipeline` gives by default; [schnell] is not, and was made for 256 (huggingface/diffusers at 0.42.1,
docs/source/en/api/pipelines/flux.md)."""
PATCH = 2
"""Latents along a side of a token: the pipeline packs 2 x 2 of them."""


class Flux(TextFlow):
    """FLUX.1: T5's states, and CLIP's pooled state.

    Images have the VAE's `sample_size`, 1,024 pixels, unless `size` says how many latents a side has: the transformer's
    configuration has no size. A guidance-distilled network ([dev]) is told a guidance scale at every call,
    `embedded_guidance`, which sampling takes from a `FlowSampler`. Losses take the model's own, 3.5 unless it is set.
    """

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        text_encoders: Sequence[nn.Module],
        tokenizers: Sequence[Any],
        schedule: Mapping[str, Any],
        size: int | None = None,
        t5_length: int | None = None,
    ):
        config: Any = transformer.config
        decoder: Any = vae.config
        side = size or int(decoder.sample_size) // 2 ** (len(decoder.block_out_channels) - 1)
        shape = (int(config.in_channels) // PATCH**2, side, side)
        flow = FlowSchedule(dict(schedule), whole_grid=False)
        length = t5_length or T5_TOKENS[bool(config.guidance_embeds)]
        super().__init__(transformer, vae, text_encoders, tokenizers, flow, shape, length, "uniform")

    @property
    def image_tokens(self) -> int:
        """Packed patches of an image."""
        _, height, width = self.shape
        return (height // PATCH) * (width // PATCH)

    def _first_state(self, k: int) -> int:
        return 0

    def embed(self, y: Tensor, words: Sequence[Tensor] | None = None) -> Condition:
        """T5's states (B, 512, D) and CLIP's pooled state (B, D')."""
        given: Sequence[Tensor | None] = words or [None] * len(self.text_encoders)
        return Condition(self._t5(y, given[1]), self._clip(y, 0, given[0]).pooler_output, ids=y)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The velocity (B, C, H, W)."""
        _, _, height, width = x_t.shape
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full((len(x_t),), float(self.embedded_guidance), device=x_t.device)
        packed = self.transformer(
            hidden_states=pack_latents(x_t),
            timestep=t / len(self.alpha_bar),
            guidance=guidance,
            encoder_hidden_states=condition.states,
            pooled_projections=condition.pooled,
            txt_ids=torch.zeros(condition.states.shape[1], 3, device=x_t.device),
            img_ids=latent_places(height, width, x_t.device),
            return_dict=False,
        )[0]
        return unpack_latents(packed, height, width)


def pack_latents(x: Tensor) -> Tensor:
    """Latents (B, C, H, W) -> tokens (B, H/2 * W/2, 4 C), one for each patch of 2 x 2."""
    B, C, H, W = x.shape
    patches = x.view(B, C, H // PATCH, PATCH, W // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(B, (H // PATCH) * (W // PATCH), C * PATCH**2)


def unpack_latents(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack_latents`, to latents (B, C, height, width)."""
    patches = tokens.view(len(tokens), height // PATCH, width // PATCH, -1, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)


def latent_places(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """The row and column of each token of an image, (H/2 * W/2, 3) with 0 first, for rotary embeddings."""
    ids = torch.zeros(height // PATCH, width // PATCH, 3, device=device)
    ids[..., 1] = torch.arange(height // PATCH, device=device)[:, None]
    ids[..., 2] = torch.arange(width // PATCH, device=device)
    return ids.flatten(0, 1)
