"""What Stable Diffusion 3 and FLUX share: a transformer that sees text and image together, behind CLIP and T5."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.diffusion.flow import Density, Flow, FlowSchedule
from unlearnbench.diffusion.model import Condition
from unlearnbench.errors import Unsupported, UserError


class NoUNet(Unsupported, AttributeError):
    """A method or an attack reached into the U-Net of a model that has none."""

    def __init__(self, model: TextFlow):
        super().__init__(
            f"{type(model).__name__} has a transformer with joint attention, no U-Net with cross-attention, whose "
            "layers are read or changed here: use Stable Diffusion 1.x, 2.x or XL"
        )


class _InPlaceOfUNet:
    """A transformer, as far as the engine knows of denoisers: their checkpointing."""

    def __init__(self, model: TextFlow):
        self._model = model

    def enable_gradient_checkpointing(self) -> None:
        """As a U-Net's."""
        self._model.transformer.enable_gradient_checkpointing()

    def disable_gradient_checkpointing(self) -> None:
        """As a U-Net's."""
        self._model.transformer.disable_gradient_checkpointing()

    def __getattr__(self, name: str) -> Any:
        raise NoUNet(self._model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises `Unsupported`; it is here since only what can be called can be given to `torch.compile`."""
        raise NoUNet(self._model)


def padded_tokens(tokenizers: Sequence[Any], lengths: Sequence[int], prompts: Sequence[str]) -> Tensor:
    """Tokenise prompts to ids (n, K, L): a row for each tokenizer, cut to its length and padded to the longest."""
    place = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}  # captions of a data set recur
    which = torch.tensor([place[prompt] for prompt in prompts], dtype=torch.long)
    y = torch.empty(len(place), len(tokenizers), max(lengths), dtype=torch.long)
    for k, (tokenizer, length) in enumerate(zip(tokenizers, lengths, strict=True)):
        y[:, k] = tokenizer.pad_token_id
        if place:
            cut = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
            y[:, k, :length] = tokenizer(list(place), **cut).input_ids
    return y[which]


def encoder_lengths(tokenizers: Sequence[Any], t5_length: int) -> list[int]:
    """Tokens that the encoder of each tokenizer reads: CLIP's own, and for T5 `t5_length`."""
    return [t5_length if is_t5(each) else int(each.model_max_length) for each in tokenizers]


def is_t5(tokenizer: Any) -> bool:
    """Whether a tokenizer is T5's, whose prompts have an end but no start."""
    return getattr(tokenizer, "bos_token_id", None) is None


def prompt_of(tokenizers: Sequence[Any], row: Tensor) -> str:
    """The prompt of one row of tokens (K, L): T5's reading, which keeps capitals, unless it has unknown characters."""
    last = tokenizers[-1]
    known = is_t5(last) and not bool((row[-1] == last.unk_token_id).any())
    k = len(tokenizers) - 1 if known else 0
    return str(tokenizers[k].decode(row[k], skip_special_tokens=True)).strip()


class TextFlow(Flow):
    """Transformer, VAE and text encoders of a latent text-to-image flow.

    y are token ids (B, K, L): a row for each of the K tokenizers, CLIP's first and T5's last, padded to the longest. x0
    are latents, shifted and scaled as the transformer expects; `encode` and `decode` convert from and to images.

    Text and image attend to each other in every block ("joint attention"): there is no cross-attention whose keys and
    values read text states alone. `parts` and `kv` say what takes the place of a U-Net's. Text encoders stay in
    evaluation mode in training too, since T5 has dropout: diffusers' training scripts never train it.
    """

    transformer: Any
    vae: Any

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        text_encoders: Sequence[nn.Module],
        tokenizers: Sequence[Any],
        schedule: FlowSchedule,
        shape: tuple[int, int, int],
        t5_length: int,
        density: Density,
    ):
        super().__init__(schedule, shape, density)
        self.transformer, self.vae, self.text_encoders = transformer, vae, nn.ModuleList(text_encoders)
        self.tokenizers = list(tokenizers)
        self.lengths = encoder_lengths(tokenizers, t5_length)

    @property
    def unet(self) -> Any:
        """What the engine asks of a denoiser; a method that looks for a U-Net's layers there is refused."""
        return _InPlaceOfUNet(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "unet":  # by `Resources.compiled`
            raise UserError(f"--compile is for U-Nets, and {type(self).__name__} has a transformer: leave it out")
        super().__setattr__(name, value)

    def attention(self) -> Any:
        """Raises `Unsupported`: there is no cross-attention whose maps could be collected."""
        raise NoUNet(self)

    def train(self, mode: bool = True) -> TextFlow:
        """Set the mode of the transformer; text encoders and VAE stay in evaluation mode."""
        super().train(mode)
        for fixed in (self.text_encoders, self.vae):
            fixed.eval()
        return self

    # ---- text ------------------------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Tokens per prompt of CLIP's tokenizer, including start and end."""
        return self.lengths[0]

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Tokenise prompts (n, K, L), each row cut to what its encoder reads; see `too_long`."""
        return padded_tokens(self.tokenizers, self.lengths, prompts).to(self.alpha_bar.device)

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that the longest of the encoders would read cut."""
        k = self.lengths.index(max(self.lengths))
        return [each for each in prompts if len(self.tokenizers[k](each, verbose=False).input_ids) > self.lengths[k]]

    def joined(self, y: Tensor) -> Tensor:
        """Join several prompts to one (1, K, L), separated by commas."""
        prompt = ", ".join(prompt_of(self.tokenizers, row) for row in y.cpu())
        if self.too_long([prompt]):
            raise UserError(f"{len(y)} names in one prompt are over {max(self.lengths)} tokens: give fewer names")
        return self.tokens([prompt])

    def positions(self, y: Tensor) -> Tensor:
        """Index (B,) in the text states of each prompt's last token before its end: T5's, or CLIP's without T5."""
        k = len(self.tokenizers) - 1
        ends = (y[:, k] == self.tokenizers[k].eos_token_id).int().argmax(dim=1)
        return self._first_state(k) + (ends - 1).clamp(min=0)

    @abstractmethod
    def _first_state(self, k: int) -> int:
        """Where the states of tokenizer k's tokens begin among the text states."""

    def words(self, y: Tensor) -> list[Tensor]:
        """Token embeddings (B, L_k, D_k) without positions, which each text encoder starts from."""
        encoders: Any = self.text_encoders
        return [encoder.get_input_embeddings()(self._row(y, k)) for k, encoder in enumerate(encoders)]

    def _row(self, y: Tensor, k: int) -> Tensor:
        return y[:, k, : self.lengths[k]]

    @abstractmethod
    def embed(self, y: Tensor, words: Sequence[Tensor] | None = None) -> Condition:
        """Text states (B, L, D) and pooled states of CLIP, as the diffusers pipeline of the model computes them.

        `words`, as `words` returns them, replace the token embeddings, so that adversaries can search there.
        """

    def _clip(self, y: Tensor, k: int, words: Tensor | None, **options: Any) -> Any:
        encoder: Any = self.text_encoders[k]
        with _in_place_of_embeddings(encoder.get_input_embeddings(), words):
            return encoder(self._row(y, k), **options)

    def _t5(self, y: Tensor, words: Tensor | None) -> Tensor:
        encoder: Any = self.text_encoders[len(self.tokenizers) - 1]
        ids = self._row(y, len(self.tokenizers) - 1)
        states: Tensor = (encoder(input_ids=ids) if words is None else encoder(inputs_embeds=words))[0]
        return states

    def null(self, n: int) -> Condition:
        """The empty prompt."""
        empty = self.embed(self.tokens([""]))
        pooled = None if empty.pooled is None else empty.pooled.expand(n, -1)
        return Condition(empty.states.expand(n, -1, -1), pooled)

    # ---- images ----------------------------------------------------------------------------------------------------

    @property
    def scale_factor(self) -> int:
        """Pixels per latent, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] to latents: a sample of the posterior, or its mode without generator.

        They are shifted and scaled by the VAE's `shift_factor` and `scaling_factor`.
        """
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return (latents - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to images (B, 3, H, W) in about [-1, 1]."""
        config = self.vae.config
        return self.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0.0), return_dict=False)[0]

    # ---- denoiser --------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parts of the transformer by the papers' names, and the text encoders.

        "full"; "xattn": the projections of every attention in which image tokens see text, of both streams, as ESD-x in
        ESD's script for FLUX; "selfattn": those of attention among image tokens alone, which only SD 3.5 medium has;
        "noxattn": all but "xattn", the embedding of time and pooled text, and the output layers; "text_encoder": layers
        and final norms of all text encoders.
        """
        named = list(self.transformer.named_parameters())
        joint = {name: value for name, value in named if ".attn." in name and ".norm_" not in name}
        alone = [value for name, value in named if ".attn2." in name and ".norm_" not in name]
        outer = ("time_text_embed.", "norm_out.", "proj_out.")
        encoders = [item for encoder in self.text_encoders for item in encoder.named_parameters()]
        inside = ("encoder.layers.", "encoder.block.", "final_layer_norm")
        return {
            "full": [value for _, value in named],
            "xattn": list(joint.values()),
            **({"selfattn": alone} if alone else {}),
            "noxattn": [value for name, value in named if not name.startswith(outer) and name not in joint],
            "text_encoder": [value for name, value in encoders if any(part in name for part in inside)],
        }

    def kv(self) -> list[tuple[nn.Linear, ...]]:
        """The one linear layer that reads text states as the encoders give them, for closed-form edits.

        Keys and values of joint attention read states that earlier blocks have mixed with the image and modulated by
        the timestep, so that no closed form maps a word to them. UCE's script for FLUX edits this layer, the
        transformer's `context_embedder`.
        """
        return [(self.transformer.context_embedder,)]

    def shared_with_teacher(self, part: str | None) -> list[nn.Module]:
        """The VAE; the text encoders too unless they may be trained."""
        return [self.vae] if part in (None, "text_encoder") else [self.vae, self.text_encoders]


@contextmanager
def _in_place_of_embeddings(module: nn.Module, words: Tensor | None) -> Iterator[None]:
    """Within this block an embedding returns `words`, if there are any."""
    if words is None:
        yield
        return
    hook = module.register_forward_hook(lambda module, args, output: words)
    try:
        yield
    finally:
        hook.remove()
