"""Stable Diffusion 3 and 3.5 as a `Diffusion`, built on diffusers' networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from unlearnbench.diffusion.flow import FlowSchedule
from unlearnbench.diffusion.model import Condition
from unlearnbench.models.text_flow import TextFlow, is_t5

T5_TOKENS = 256
"""Tokens that T5 reads: `max_sequence_length` of `StableDiffusion3Pipeline` (huggingface/diffusers at 0.42.1)."""


class StableDiffusion3(TextFlow):
    """SD 3 and 3.5: two CLIP encoders, and T5, which may be left out.

    A condition's states (B, 77 + 256, D) are the penultimate states of both CLIPs side by side, padded with zeros to
    T5's width, and then T5's; without T5 these are zeros, as in diffusers. `pooled` is the pooled states of both CLIPs.
    """

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        text_encoders: Sequence[nn.Module],
        tokenizers: Sequence[Any],
        schedule: Mapping[str, Any],
        size: int | None = None,
        t5_length: int = T5_TOKENS,
    ):
        config: Any = transformer.config
        side = size or int(config.sample_size)
        shape = (int(config.in_channels), side, side)
        flow = FlowSchedule(dict(schedule))
        super().__init__(transformer, vae, text_encoders, tokenizers, flow, shape, t5_length, "logit_normal")
        self.t5_length = t5_length

    @property
    def image_tokens(self) -> int:
        """Patches of an image."""
        _, height, width = self.shape
        patch = int(self.transformer.config.patch_size)
        return (height // patch) * (width // patch)

    @property
    def _has_t5(self) -> bool:
        return is_t5(self.tokenizers[-1])

    def _first_state(self, k: int) -> int:
        return self.lengths[0] if is_t5(self.tokenizers[k]) else 0

    def embed(self, y: Tensor, words: Sequence[Tensor] | None = None) -> Condition:
        """Text states (B, 77 + 256, D) and pooled states (B, D') of both CLIPs; see the class."""
        given: Sequence[Tensor | None] = words or [None] * len(self.text_encoders)
        both = [self._clip(y, k, given[k], output_hidden_states=True) for k in (0, 1)]
        clip = torch.cat([output.hidden_states[-2] for output in both], dim=-1)
        pooled = torch.cat([output[0] for output in both], dim=-1)
        width = int(self.transformer.config.joint_attention_dim)
        t5 = self._t5(y, given[-1]) if self._has_t5 else clip.new_zeros(len(y), self.t5_length, width)
        return Condition(torch.cat([F.pad(clip, (0, width - clip.shape[-1])), t5], dim=1), pooled, ids=y)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The velocity (B, C, H, W)."""
        return self.transformer(
            hidden_states=x_t,
            timestep=t,
            encoder_hidden_states=condition.states,
            pooled_projections=condition.pooled,
            return_dict=False,
        )[0]
