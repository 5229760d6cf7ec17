"""Gradient-based search for prompts with free tokens: relaxed one-hot rows, nearest tokens, or embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unlearnbench.attacks.search import (
    Vocabulary,
    allowed,
    bisect_simplex,
    descended,
    nearest,
    sample_targets,
    sight,
    simplex,
    token_embeddings,
    uncast,
)
from unlearnbench.diffusion.model import Condition
from unlearnbench.metric import Outcome
from unlearnbench.task import Plan

Pattern = Callable[[int], list[int]]
"""Layout of a prompt of n tokens: 1 to n are its own tokens, 0 is a free one."""


def arranged(model: Any, y: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Prompts (B, L) or (B, 2, L) with free positions, and the number (B, L) of each free position in its prompt, else
    -1.

    Free positions hold an ordinary token. Tokens beyond the text encoder's length are cut, except the end token.
    """
    length, sources = y.shape[-1], []
    for n in model.positions(y).tolist():
        sources.append([0, *pattern(n)[: length - 2], *range(n + 1, length)][:length])
    source = torch.tensor(sources, device=y.device)
    free = source == 0
    free[:, 0] = False
    number = torch.where(free, free.cumsum(dim=1) - 1, -1)
    shape = (slice(None), *[None] * (y.dim() - 2))
    moved = y.gather(-1, source[shape].expand_as(y))
    return torch.where(free[shape], allowed(model)[0], moved), number


def padded(model: Any, y: Tensor, pad: int, end: bool = True) -> Tensor:
    """Prompts (B, L) or (B, 2, L) with another token in all places after their end, or from the end on."""
    ended = (y == model.tokenizers[0].eos_token_id).int()
    before = ended.cumsum(dim=-1) - (ended if end else 0)
    return torch.where(before > 0, pad, y)


def reread(task: Any, y: Tensor) -> Tensor:
    """Decode prompts to text and tokenise them again, as if someone had typed them."""
    return task.tokens([task.text(row) for row in y.cpu()]).to(y.device)


class Prompts:
    """Prompts (n, L) or (n, 2, L) whose free tokens are optimised separately; `kind` sets the search space.

    relaxed: weights P (n, k, V) of the allowed tokens, uniform at first. A step samples tokens from P, applies their
    gradient to P (straight through; each element clamped to [-1, 1]) and projects onto the simplex. The result is the
    most likely tokens. hard (PEZ: Wen et al., NeurIPS 2023, algorithm 1): embeddings (n, k, D), of random tokens at
    first. A step evaluates the nearest tokens by cosine and applies their gradient to the embeddings. soft: the
    embeddings themselves are used, which no token spells. Both encoders of XL share their tokens: D counts their
    concatenated embeddings.

    `pad` fills the prompts after their end while they are searched, in place of the tokenizer's token; without `end`,
    it takes the end's place too. What is drawn is tokenised as ever. With `bisect` weights are projected by
    `bisect_simplex`.
    """

    def __init__(
        self,
        model: Any,
        y: Tensor,
        pattern: Pattern,
        kind: Literal["relaxed", "hard", "soft"],
        optimiser: type[torch.optim.Adam],
        lr: float,
        decay: float,
        vocabulary: Vocabulary = "words",
        pad: int | None = None,
        end: bool = True,
        bisect: bool = False,
    ):
        self.model, self.kind, self.bisect, tables = model, kind, bisect, token_embeddings(model)
        self.y, self.number = arranged(model, y, pattern)
        self.searched = self.y if pad is None else padded(model, self.y, pad, end)
        self.widths = [each.shape[1] for each in tables]
        self.table, self.rows = torch.cat(tables, dim=1).float(), allowed(model, vocabulary)
        size = (len(y), int(self.number.max()) + 1)
        if kind == "relaxed":
            start = torch.full((*size, len(self.rows)), 1 / len(self.rows), device=y.device)
        else:
            start = self.table[self.rows[torch.randint(len(self.rows), size).to(y.device)]]
        self.free = nn.Parameter(start)
        self.optimiser = optimiser([self.free], lr=lr, weight_decay=decay)

    @torch.no_grad()
    def tokens(self, likeliest: bool = True) -> Tensor:
        """Tokens (n, k) at the free positions: for relaxed prompts the most likely, or sampled from P; otherwise the
        nearest.
        """
        if self.kind != "relaxed":
            return nearest(self.free, self.table, self.rows)
        if likeliest:
            return self.rows[self.free.argmax(dim=2)]
        return self.rows[self.free.flatten(0, 1).multinomial(1).view(self.free.shape[:2])]

    def found(self, task: Any, left: Tensor) -> Tensor | Condition:
        """The prompts found: tokens of their text, tokenised again; for soft ones a condition without tokens."""
        if self.kind == "soft":
            return self._condition(left, self.tokens(), self.free.detach()[left].split(self.widths, dim=2))
        return reread(task, self._filled(self.y[left], left, self.tokens()))

    def step(self, loss: Callable[[Condition], Tensor], left: Tensor) -> None:
        """Take a step down a loss (rows,) for the prompts `left` (rows,); the others get zero gradient."""
        tokens = self.tokens(likeliest=False)
        own = self.free.detach() if self.kind == "soft" else self.table[tokens]
        words = [part.clone().requires_grad_() for part in own[left].split(self.widths, dim=2)]
        with torch.enable_grad():
            grads = descended(loss(self._condition(left, tokens, words)).sum(), words, self.model)
        grad = torch.cat(grads, dim=2)
        if self.kind == "relaxed":
            with uncast(grad):
                grad = (grad @ self.table[self.rows].mT).clamp(-1, 1)
        self.free.grad = torch.zeros_like(self.free).index_copy_(0, left, grad)
        self.optimiser.step()
        if self.kind == "relaxed":
            self.free.data = self._projected(self.free.data)

    def _projected(self, weights: Tensor) -> Tensor:
        return bisect_simplex(weights.flatten(0, 1)).view_as(weights) if self.bisect else simplex(weights)

    def _filled(self, y: Tensor, left: Tensor, tokens: Tensor) -> Tensor:
        number = self.number[left]
        chosen, free = tokens[left].gather(1, number.clamp(min=0)), number >= 0
        return torch.where(free, chosen, y) if y.dim() == 2 else torch.where(free[:, None], chosen[:, None], y)

    def _condition(self, left: Tensor, tokens: Tensor, words: Sequence[Tensor]) -> Condition:
        y, number = self._filled(self.searched[left], left, tokens), self.number[left][:, :, None]
        given = []
        for known, own in zip(self.model.words(y), words, strict=True):
            chosen = own.gather(1, number.clamp(min=0).expand(-1, -1, own.shape[2]))
            given.append(torch.where(number >= 0, chosen.to(known), known))
        condition = self.model.embed(y, given)
        return condition._replace(ids=None) if self.kind == "soft" else condition


def looked(outcome: Outcome, items: Sequence[Plan], prompts: Prompts, seen: Tensor) -> Tensor:
    """Recovered targets (n,) after sampling those not `seen` before with the prompts found."""
    left = (seen != 1).nonzero()[:, 0]
    rest, rows = [items[i] for i in left.tolist()], left.to(prompts.y.device)
    x = sample_targets(outcome, rest, lambda some: prompts.found(outcome.task, rows[some]))
    return seen.index_copy(0, left, sight(outcome, x, rest).recovered)


def evenly(n: int, T: int) -> list[int]:
    """n of T timesteps in increasing order, each in the middle of its interval: 10, 30, ..., 990 for 50 of 1000."""
    stride = max(T // n, 1)
    return list(range(stride // 2, T, stride))[:n]
