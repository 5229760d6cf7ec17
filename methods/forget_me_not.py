"""Forget-Me-Not: minimise the cross-attention to the concept's tokens (Zhang et al., CVPR workshops 2024)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from unlearnbench import Condition, Diffusion, Task, TextMethod, minimise
from unlearnbench.errors import UserError


@dataclass(frozen=True)
class ForgetMeNot(TextMethod):
    """L = sum over layers of || a_t^n ||^2 (algorithm 1), a_t^n the attention of x_t to the concept's tokens n.

    x_t is a noised image of the concept, and its prompt names the concept. The sum runs over cross-attention layers,
    heads and positions, and is averaged over images. loss="norm" is the code's: one norm over all of these, images
    included. `ends` adds the end tokens, which encode the whole prompt, to n (with SD 1.x's padding that is every token
    after the prompt). The method does not define what should be attended to instead, nor what must be kept.

    With `part` None the cross-attention is trained, as the paper draws it. The code trains the whole denoiser and clips
    the gradient's norm at 1 (`clip`). Both use AdamW's weight decay of 0.01. With `inversion_steps`, the concept is
    first learned as `inversion_tokens` new words by textual inversion (Gal et al., ICLR 2023) on the forget images;
    these words then replace its name in "a photo of ...". The release does so (500 steps, 4 tokens), and it helps where
    the name is a poor description. The new words start at random words of the vocabulary and are not kept.

    No task here is what the paper or its code ran: identities, with a handful of photographs, on Stable Diffusion 2.1.
    No configuration for nudity was released, so there is no preset "published" or "released". The code's configuration
    for identities is `steps=35 lr=2e-6 batch_size=1 loss=norm ends=true part=full clip=1 inversion_steps=500`; those of
    its numbers that do not depend on photographs are the default on Stable Diffusion.
    """

    resumes = True
    requires = frozenset({"forget images", "concept", "xattn"})
    presets = {
        "default": {"digits-text": {"lr": 3e-4, "ends": True}, "sd*": {"steps": 35, "lr": 2e-6, "batch_size": 1}}
    }
    space = {"lr": (1e-6, 1e-3), "steps": (20, 120), "loss": ("squares", "norm"), "ends": (False, True)}
    steps: int = 60
    """Updates of the weights (the code's `max_train_steps`, 35)."""
    lr: float = 1e-4
    """AdamW's learning rate (the code's `learning_rate`, 2e-6)."""
    batch_size: int = 16
    """Forget images in a step (the code's `train_batch_size`, 1)."""
    loss: Literal["squares", "norm"] = "squares"
    """What is minimised: the sum of "squares" of the attention (the paper's algorithm 1), or one "norm" over all (the
    code)."""
    ends: bool = False
    """Whether the end tokens count as the concept's (the code's `use_pooler`)."""
    part: str | None = None
    """Part of the model to train; None: "xattn" (the paper). The code takes "full" (`only_optimize_ca` false)."""
    clip: float | None = None
    """Largest norm of the gradient (the code's `max_grad_norm`, 1); None: not clipped."""
    inversion_steps: NonNegativeInt = 0
    """Steps of textual inversion beforehand (the code's `max_train_steps_ti`, 500); 0: the concept keeps its name."""
    inversion_tokens: PositiveInt = 4
    """New words that textual inversion learns (the code's 4); read where `inversion_steps` > 0."""
    inversion_lr: float = 1e-3
    """AdamW's learning rate of textual inversion (the code's `learning_rate_ti`, 1e-3)."""

    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Train with AdamW on the loss above."""
        part = model.select(self.part or "xattn")
        words = self.inverted(model, task) if self.inversion_steps else None
        minimise(self.losses(model, task, words), part, self.lr, optimiser="adamw", clip=self.clip)
        return model

    def losses(self, model: Any, task: Task, words: list[Tensor] | None = None) -> Iterator[Tensor]:
        """Yield the loss of each step; `words` replace the concept's name where they are given."""
        names = task.names("forget").to(task.device)
        for batch in task.batches(self.steps, self.batch_size, "forget"):
            if words is None:
                condition, at = model.embed(batch.y), model.mentioned(batch.y, names)
            else:
                condition, at = renamed(model, words, len(batch.y))
            if not at.any():
                raise UserError(
                    "no caption of the forget images names the concept: give a name that its captions use, or set "
                    "inversion_steps=500"
                )
            if self.ends:
                ids = condition.ids[:, 0] if condition.ids.dim() == 3 else condition.ids
                at = at | (ids == model.tokenizers[0].eos_token_id)
            t, _, x_t = model.noised(batch.x0)
            with model.attention() as maps:
                model(x_t, t, condition)
            yield self.attended([a for layer in maps.values() for a in layer], at)

    def attended(self, maps: list[Tensor], at: Tensor) -> Tensor:
        """The loss of attention maps (B, heads, positions, L) at tokens (B, L), a scalar."""
        squares = torch.stack([(a.float().square() * at[:, None, None]).sum() for a in maps]).sum()
        return squares.sqrt() if self.loss == "norm" else squares / len(at)

    def inverted(self, model: Any, task: Task) -> list[Tensor]:
        """Learn new words, a tensor (tokens, D) for each text encoder, with which the model draws the forget images."""
        most = model.length - int(model.positions(model.tokens(["a photo of"]))) - 2
        if self.inversion_tokens > most:
            raise UserError(f"inversion_tokens={self.inversion_tokens} do not fit a prompt: give {most} at most")
        words = {}
        for k, encoder in enumerate(model.text_encoders):
            table = encoder.get_input_embeddings().weight.detach()
            chosen = torch.randint(len(table), (self.inversion_tokens,))
            words[str(k)] = nn.Parameter(table[chosen.to(table.device)].clone())

        def losses() -> Iterator[Tensor]:
            for batch in task.batches(self.inversion_steps, self.batch_size, "forget"):
                t, noise, x_t = model.noised(batch.x0)
                condition, _ = renamed(model, list(words.values()), len(batch.y))
                yield (model(x_t, t, condition) - model.target(batch.x0, noise, t)).square().mean()

        minimise(losses(), words, self.inversion_lr, optimiser="adamw")
        return [value.detach() for value in words.values()]


def renamed(model: Any, words: list[Tensor], n: int) -> tuple[Condition, Tensor]:
    """The prompt "a photo of ..." with these words, n times, and a mask (n, L) of the tokens that they are."""
    y = model.tokens(["a photo of"] * n)
    first, last = int(model.positions(y)[0]) + 1, int(model.positions(y)[0]) + 1 + len(words[0])
    y = torch.cat([y[..., :first], torch.zeros_like(y[..., first:last]), y[..., first : first - last]], dim=-1)
    given = model.words(y)
    for row, new in zip(given, words, strict=True):
        row[:, first:last] = new.to(row)
    at = torch.zeros(n, y.shape[-1], dtype=torch.bool, device=y.device)
    at[:, first:last] = True
    return model.embed(y, words=given), at
