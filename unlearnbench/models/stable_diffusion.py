"""Stable Diffusion 1.x, 2.x and XL as a `Diffusion`, built on diffusers' networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.diffusion.model import Condition, Diffusion, Hook, evaluating
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.diffusion.schedulers import Scheduled, sample_latents, scheduler_for
from unlearnbench.errors import UserError
from unlearnbench.models.tokenizer import tokens
from unlearnbench.training import computed, unsplit


class StableDiffusion(Diffusion):
    """Denoiser, VAE and text encoders of a latent text-to-image model.

    y are token ids (B, L), one row per prompt, or (B, 2, L) for the two tokenizers of XL. x0 are latents, scaled as the
    U-Net expects; `encode` and `decode` convert from and to images. A safety checker is never run.
    """

    unet: Any
    vae: Any

    def __init__(
        self,
        unet: nn.Module,
        vae: nn.Module,
        text_encoders: Sequence[nn.Module],
        tokenizers: Sequence[Any],
        schedule: dict[str, Any],
        size: int | None = None,
        zero_null: bool = False,
    ):
        from diffusers import DDPMScheduler

        scheduler: Any = DDPMScheduler.from_config(schedule)
        config: Any = unet.config
        side = size or int(config.sample_size)
        shape = (int(config.in_channels), side, side)
        super().__init__(scheduler.alphas_cumprod, shape, scheduler.config.prediction_type, clip=False)
        self.unet, self.vae, self.text_encoders = unet, vae, nn.ModuleList(text_encoders)
        self.tokenizers, self.schedule, self.zero_null = list(tokenizers), dict(schedule), zero_null
        self.sampler: Sampler = Scheduled()

    # ---- text ------------------------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Tokens per prompt, including start and end."""
        return int(self.tokenizers[0].model_max_length)

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Tokenise prompts, padded or truncated to the encoder's length; see `too_long`."""
        return tokens(self.tokenizers, prompts).to(self.alpha_bar.device)

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that `tokens` would truncate."""
        return [prompt for prompt in prompts if len(self.tokenizers[0](prompt, verbose=False).input_ids) > self.length]

    def positions(self, y: Tensor) -> Tensor:
        """Index (B,) of each prompt's last subject token, the one before its first end; 0 (the start) if empty."""
        ids = y[:, 0] if y.dim() == 3 else y  # both tokenizers of XL split text the same way
        return (ids == self.tokenizers[0].eos_token_id).int().argmax(dim=1) - 1

    def joined(self, y: Tensor) -> Tensor:
        """Join several prompts to one (1, ...), separated by commas."""
        joint = self.tokens([""])
        rows, into = (y, joint) if y.dim() == 3 else (y[:, None], joint[:, None])
        last = self.positions(y).tolist()
        for k, tokenizer in enumerate(self.tokenizers):
            comma = tokenizer(",").input_ids[1:-1]
            ids = [
                token
                for row, end in zip(rows[:, k].tolist(), last, strict=True)
                for token in [*comma, *row[1 : end + 1]]
            ]
            ids = [*ids[len(comma) :], tokenizer.eos_token_id]
            if len(ids) >= self.length:
                raise UserError(f"{len(y)} names in one prompt are over {self.length} tokens: give fewer names")
            into[0, k, 1 : len(ids) + 1] = torch.tensor(ids)
        return joint

    def mentioned(self, y: Tensor, names: Tensor) -> Tensor:
        """Mask (B, L) of the tokens that spell one of these names, each given as a prompt."""
        rows, given = ((ids[:, 0] if ids.dim() == 3 else ids) for ids in (y, names))
        found = torch.zeros_like(rows, dtype=torch.bool)
        for name, last in zip(given, self.positions(names).tolist(), strict=True):
            word = name[1 : last + 1]
            if not len(word):
                continue
            starts = (rows.unfold(1, len(word), 1) == word).all(dim=2)  # (B, L - n + 1)
            for offset in range(len(word)):
                found[:, offset : offset + starts.shape[1]] |= starts
        return found

    def words(self, y: Tensor) -> list[Tensor]:
        """Token embeddings (B, L, D) without positions, which each text encoder starts from."""
        rows = y if y.dim() == 3 else y[:, None]
        encoders: Any = self.text_encoders
        return [encoder.get_input_embeddings()(rows[:, k]) for k, encoder in enumerate(encoders)]

    def embed(self, y: Tensor, words: Sequence[Tensor] | None = None) -> Condition:
        """Text states (B, L, D); for XL the concatenated penultimate states of both encoders, and the pooled ones.

        `words`, as `words` returns them, replace the token embeddings, so that adversaries can search there.
        """
        given: Sequence[Tensor | None] = words or [None] * len(self.text_encoders)
        if len(self.text_encoders) == 1:
            return Condition(self._encoded(self.text_encoders[0], y, given[0])[0], ids=y)
        outputs = [
            self._encoded(encoder, y[:, k], given[k], output_hidden_states=True)
            for k, encoder in enumerate(self.text_encoders)
        ]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled = outputs[-1][0]
        return Condition(states, pooled, {"time_ids": self._time_ids(len(y)).to(states)}, y)

    def _encoded(self, encoder: Any, ids: Tensor, words: Tensor | None = None, **options: Any) -> Any:
        mask = None
        if getattr(encoder.config, "use_attention_mask", False):
            mask = (ids != self.tokenizers[0].pad_token_id).long()
        if words is None:
            return encoder(ids, attention_mask=mask, **options)
        given = encoder.get_input_embeddings().register_forward_hook(lambda module, args, output: words)
        try:
            return encoder(ids, attention_mask=mask, **options)
        finally:
            given.remove()

    def _time_ids(self, n: int) -> Tensor:
        """Original size, crop corner and target size (n, 6), as if nothing had been cropped."""
        ids = torch.full((n, 6), self.shape[1] * self.scale_factor, device=self.alpha_bar.device)
        ids[:, 2:4] = 0
        return ids

    def null(self, n: int) -> Condition:
        """The empty prompt; zeros for XL models that were trained this way."""
        empty = self.embed(self.tokens([""]))
        if self.zero_null and empty.pooled is not None:
            empty = empty._replace(states=torch.zeros_like(empty.states), pooled=torch.zeros_like(empty.pooled))
        return _repeated(empty, n)

    # ---- images ----------------------------------------------------------------------------------------------------

    @property
    def scale_factor(self) -> int:
        """Pixels per latent, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] to scaled latents: a sample of the posterior, or its mode without
        generator.
        """
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return (latents - shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents to images (B, 3, H, W) in about [-1, 1]."""
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return self.vae.decode(latents / self.vae.config.scaling_factor + shift, return_dict=False)[0]

    # ---- denoiser --------------------------------------------------------------------------------------------------

    def signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """As `Diffusion.signal`; between integer timesteps (LMS), sigma is interpolated."""
        if not t.is_floating_point():
            return super().signal(t)
        sigmas = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()
        low = t.floor().long().clamp(max=len(sigmas) - 1)
        high = (low + 1).clamp(max=len(sigmas) - 1)
        sigma = sigmas[low] + (t - low).to(sigmas) * (sigmas[high] - sigmas[low])
        signal = (1 / (sigma**2 + 1).sqrt()).view(-1, 1, 1, 1)
        return signal, sigma.view(-1, 1, 1, 1) * signal

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The U-Net's raw output (B, C, H, W)."""
        added = None
        if condition.pooled is not None and condition.extra is not None:
            added = {"text_embeds": condition.pooled, "time_ids": condition.extra["time_ids"]}
        return self.unet(x_t, t, encoder_hidden_states=condition.states, added_cond_kwargs=added, return_dict=False)[0]

    def sample(
        self,
        y: Tensor | Condition,
        seeds: Sequence[int],
        *,
        sampler: Sampler | None = None,
        start: tuple[Tensor, int] | None = None,
        until: int | Tensor = 0,
        hook: Hook | None = None,
    ) -> Tensor:
        """Sample latents for prompts y; `decode` converts them to images."""
        chosen = sampler or self.sampler
        if not isinstance(chosen, Scheduled):
            return super().sample(y, seeds, sampler=chosen, start=start, until=until, hook=hook)
        condition = y if isinstance(y, Condition) else self.embed(y)
        with evaluating(self):
            return sample_latents(self, condition, seeds, chosen, self.schedule, start, until, hook)

    def timesteps(self, sampler: Sampler | None = None) -> Tensor:
        """The sampler's timesteps as integers, in decreasing order."""
        chosen = sampler or self.sampler
        if not isinstance(chosen, Scheduled):
            return super().timesteps(chosen)
        return scheduler_for(self.schedule, chosen).timesteps.long().to(self.alpha_bar.device)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parts of the U-Net by the papers' names, and the text encoder.

        "full"; "xattn" (ESD-x: attn2), "selfattn" (attn1), "noxattn" (ESD-u: all but attn2, the time embedding and the
        output layers, a norm and a convolution); "text_encoder" (layers and final norm, AdvUnlearn).
        """
        named = list(self.unet.named_parameters())
        skipped = ("attn2", "time_embed")
        encoders = [item for encoder in self.text_encoders for item in encoder.named_parameters()]
        return {
            "full": [value for _, value in named],
            "xattn": [value for name, value in named if "attn2" in name],
            "selfattn": [value for name, value in named if "attn1" in name],
            "noxattn": [
                value
                for name, value in named
                if not name.startswith(("conv_norm_out.", "conv_out.")) and not any(part in name for part in skipped)
            ],
            "text_encoder": [
                value for name, value in encoders if "encoder.layers." in name or "final_layer_norm" in name
            ],
        }

    def shared_with_teacher(self, part: str | None) -> list[nn.Module]:
        """The VAE; the text encoders too unless they may be trained, or have dropout."""
        encoders: Any = self.text_encoders
        drops = any(getattr(encoder.config, "attention_dropout", 0.0) for encoder in encoders)
        return [self.vae] if part in (None, "text_encoder") or drops else [self.vae, self.text_encoders]

    def kv(self) -> list[tuple[nn.Linear, nn.Linear]]:
        """Key and value projections of every cross-attention, in the U-Net's order, for closed-form edits."""
        return [(block.to_k, block.to_v) for name, block in self.unet.named_modules() if name.endswith("attn2")]

    @contextmanager
    def attention(self) -> Iterator[dict[str, list[Tensor]]]:
        """Collect cross-attention maps (B, heads, positions, L) by layer within this block, one per call of the
        network.

        They are differentiable. Attention is computed explicitly meanwhile and kept for the backward pass, which costs
        memory.
        """
        checkpointing = bool(getattr(self.unet, "is_gradient_checkpointing", False))
        if checkpointing:
            self.unet.disable_gradient_checkpointing()
        maps: dict[str, list[Tensor]] = {}
        blocks = {name: block for name, block in self.unet.named_modules() if name.endswith("attn2")}
        before = {name: block.processor for name, block in blocks.items()}
        for name, block in blocks.items():
            block.set_processor(_Recorded(maps.setdefault(name, [])))
        try:
            with computed(), unsplit("the loss reads attention maps inside the network"):
                yield maps
        finally:
            for name, block in blocks.items():
                block.set_processor(before[name])
            if checkpointing:
                self.unet.enable_gradient_checkpointing()


class _Recorded:
    """An attention processor that keeps the probabilities."""

    def __init__(self, maps: list[Tensor]):
        self.maps = maps

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (attn.head_to_batch_dim(part) for part in (query, key, value))
        probabilities = attn.get_attention_scores(query, key, attention_mask)
        self.maps.append(probabilities.unflatten(0, (-1, attn.heads)))
        out = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        return attn.to_out[1](attn.to_out[0](out))


def _repeated(condition: Condition, n: int) -> Condition:
    def rows(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rows(inner) for key, inner in value.items()}
        return None if value is None else value.expand(n, *value.shape[1:])

    return Condition(*map(rows, condition))
