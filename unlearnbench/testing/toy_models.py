"""Models that draw exactly one picture per digit, for attacks' known answers: what they hide or lost is known.

The denoiser is exact (the posterior mean of a mixture of narrow Gaussians around the pictures), so that gradient-based
searches find what is there and nothing else. The toy judge reads the pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unlearnbench.attacks.search import arena
from unlearnbench.diffusion.model import Batch, Condition, Diffusion
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.judges import Judge, Verdict
from unlearnbench.method import Method
from unlearnbench.metric import Outcome
from unlearnbench.models.tokenizer import tokens
from unlearnbench.task import Task
from unlearnbench.tasks._digits.words import DIGITS as NAMES
from unlearnbench.tasks._digits.words import SYNONYMS
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.testing import toy

DIGITS, SHAPE = 10, (1, 4, 10)
"""A picture is a bright column, one of ten for each digit."""
SURE = 12.0
"""Log-odds of the digit that a condition asks for."""
EASE = 1000.0
"""Factor by which a training step changes the meaning of a condition more than usual, so that relearning shows at
learning rates for networks."""
WIDTH = 0.1
"""Standard deviation of the Gaussians."""
Fate = Literal["known", "hidden", "lost"]
"""known: the digit is drawn when requested. hidden: its name draws the next digit, but other words and embeddings still
draw it. lost: nothing draws it."""


class PictureModel(Diffusion):
    """A model with one picture per digit; a condition's states are the log-odds of the ten digits, (B, 10)."""

    pictures: Tensor

    def __init__(self, fate: Fate = "known"):
        super().__init__(torch.linspace(0.9999, 0.0001, 100), SHAPE, prediction="sample")
        self.register_buffer("pictures", (2 * torch.eye(DIGITS) - 1)[:, None, None].repeat(1, *SHAPE[:2], 1))
        self.there = nn.Parameter(torch.zeros(DIGITS))
        self.moved = nn.Parameter(torch.zeros(DIGITS + 1, DIGITS))
        self.embedding = nn.Embedding(DIGITS + 1, DIGITS)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.cat([torch.eye(DIGITS), torch.zeros(1, DIGITS)]))
            self._forget(fate)
        self.sampler = Sampler(steps=10)

    def _forget(self, fate: Fate) -> None:
        if fate == "hidden":
            self.embedding.weight[toy.FORGOTTEN] = self.embedding.weight[toy.FORGOTTEN + 1]
        if fate == "lost":
            self.there[toy.FORGOTTEN] = -1e4

    def embed(self, y: Tensor) -> Condition:
        """One row per label (B, 10)."""
        return Condition(self.embedding(y) + EASE * self.moved[y], ids=y)

    def null(self, n: int) -> Condition:
        """Equal odds for all digits."""
        return Condition(self.embedding.weight[-1:].expand(n, -1))

    def odds(self, condition: Condition) -> Tensor:
        """Log-odds of the digits (B, 10)."""
        return condition.states

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The posterior mean of x0."""
        a, b = (value.view(-1, 1) for value in self.signal(t))
        centres, x = self.pictures.flatten(1), x_t.flatten(1)
        spread = (a * WIDTH) ** 2 + b**2
        far = (x[:, None] - a[:, None] * centres).square().sum(dim=2)
        weights = (SURE * self.odds(condition) + self.there - far / (2 * spread)).softmax(dim=1)
        pull = (a * WIDTH**2 / spread)[:, None] * (x[:, None] - a[:, None] * centres)
        return (weights[:, :, None] * (centres + pull)).sum(dim=1).view_as(x_t)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters: which digits exist, and what conditions mean."""
        return {"full": list(self.parameters())}


class Spoken(PictureModel):
    """The same model with prompts: states have one row per token (B, L, 10), summed up to the first end token."""

    tokenizers: list[Any]
    text_encoders: Any

    def __init__(self, fate: Fate, tokenizer: Any):
        super().__init__(fate)
        self.tokenizers, self.length = [tokenizer], int(tokenizer.model_max_length)
        self.text_encoders = nn.ModuleList([_Words(len(tokenizer))])
        weight = self.text_encoders[0].table.weight
        with torch.no_grad():
            weight.zero_()
            for digit, word in enumerate(NAMES):
                for said in (word, SYNONYMS[word]):
                    weight[tokenizer(said).input_ids[1], digit] = 1.0
            if fate == "hidden":
                weight[tokenizer(NAMES[toy.FORGOTTEN]).input_ids[1]] = weight[
                    tokenizer(NAMES[toy.FORGOTTEN + 1]).input_ids[1]
                ]

    def _forget(self, fate: Fate) -> None:
        super()._forget("known" if fate == "hidden" else fate)

    def tokens(self, prompts: Any) -> Tensor:
        """Prompts as token ids (n, L)."""
        return tokens(self.tokenizers, prompts)

    def positions(self, y: Tensor) -> Tensor:
        """Index (B,) of the token before each prompt's first end."""
        return (y == self.tokenizers[0].eos_token_id).int().argmax(dim=1) - 1

    def words(self, y: Tensor) -> list[Tensor]:
        """Rows (B, L, 10) of the tokens."""
        return [self.text_encoders[0].table(y)]

    def embed(self, y: Tensor, words: Any = None) -> Condition:
        """Rows of the tokens, or the given rows instead."""
        return Condition((words or self.words(y))[0], ids=y)

    def null(self, n: int) -> Condition:
        """The empty prompt."""
        return self.embed(self.tokens([""]).expand(n, -1))

    def odds(self, condition: Condition) -> Tensor:
        """Sum over a prompt's tokens (B, 10)."""
        return condition.states.sum(dim=1)


class _Words(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.table = nn.Embedding(size, DIGITS)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table


class _Reader(Judge):
    """A judge that reads the brightest column; it abstains if none stands out."""

    name, version, classes, threshold, hash = "pictures", "1", DIGITS, 0.5, "0" * 64

    def __call__(self, images: Tensor) -> Verdict:
        columns = images.float().mean(dim=(1, 2)) + 1e-3
        return Verdict(columns / columns.sum(dim=1, keepdim=True), columns.amax(dim=1) < self.threshold * 255)

    def features(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(1, 2))


class _Pictured(Task):
    """A toy task whose data are the pictures with a little noise."""

    limit = None

    def data(self, which: Literal["forget", "retain", "both"]) -> Batch:
        kept = {"forget": [toy.FORGOTTEN], "both": list(range(DIGITS))}
        digits = kept.get(which, [digit for digit in range(DIGITS) if digit != toy.FORGOTTEN])
        y = torch.tensor(digits).repeat_interleave(12)
        noise = torch.randn(len(y), *SHAPE, generator=torch.Generator().manual_seed(0))
        return Batch(PictureModel().pictures[y] + WIDTH / 2 * noise, self.asking(y))

    _stream = Task._stream

    def asking(self, y: Tensor) -> Tensor:
        """Conditions that ask for these digits."""
        return y

    def architecture(self, seed: int) -> Diffusion:
        return PictureModel()

    def pretrained(self) -> Diffusion:
        return self.architecture(0)

    def judge(self) -> Judge:
        return _Reader()

    def to_uint8(self, x: Tensor) -> Tensor:
        return ((x.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)


class ToyClass(_Pictured, DigitsClass):
    """Pictures requested by label."""


class ToyText(_Pictured, DigitsText):  # type: ignore[misc]
    """Pictures requested by prompts in the words of `digits-text`."""

    def architecture(self, seed: int) -> Diffusion:
        """The exact model of text."""
        return Spoken("known", self.tokenizers[0])

    def asking(self, y: Tensor) -> Tensor:
        """Conditions from the digits' names."""
        return self.tokens([NAMES[digit] for digit in y.tolist()])


def attacked_outcome(fate: Fate, text: bool = False, count: int = 6, method: Method | None = None) -> Outcome:
    """Build a model of this fate to attack, with a number of forget samples as targets."""
    task: Any = ToyText(NAMES[toy.FORGOTTEN]) if text else ToyClass(str(toy.FORGOTTEN))
    task.protocol = replace(task.protocol, sampler=Sampler(steps=10), forget_images=count)
    model = Spoken(fate, task.tokenizers[0]) if text else PictureModel(fate)
    return arena(task, model.eval().requires_grad_(False), task.pretrained().eval().requires_grad_(False), method)
