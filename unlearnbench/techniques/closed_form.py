"""Closed-form edits of cross-attention: text states of prompts, and projections that map them to other outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import UserError
from unlearnbench.method import TextMethod
from unlearnbench.task import Task

Tokens = Literal["last", "all"]


class Term(NamedTuple):
    """scale x || W c - W0 g ||^2, summed over rows: W should map c to what W0 maps g to."""

    c: Tensor
    """Inputs (N, D)."""
    g: Tensor
    """Inputs (N, D) whose current outputs are the targets; c itself to keep its current outputs."""
    scale: float


@dataclass(frozen=True)
class ClosedForm(TextMethod):
    """Base of methods that solve for each key and value projection of cross-attention."""

    requires = frozenset({"concept", "xattn"})
    lamb: float = 0.5
    """Weight of || W - W0 ||^2, the change of a projection, > 0 (the paper's lambda; the code's `lamb`, 0.5)."""

    @abstractmethod
    def terms(self, model: Diffusion, task: Task) -> list[Term]:
        """The terms that the new weights minimise, in addition to lamb || W - W0 ||^2."""

    @torch.no_grad()
    def unlearn(self, model: Diffusion, task: Task, prepared: Any = None) -> Diffusion:
        """Edit the projections in place."""
        edit(model, self.terms(cross_attention(model), task), self.lamb)
        return model


def cross_attention(model: Diffusion) -> Any:
    """Return the model after checking that it has text, `kv` and `positions`; otherwise raise `Unsupported`."""
    model.select("xattn")
    return model


def edit(model: Diffusion, terms: Iterable[Term], lamb: float) -> None:
    """Set every key and value projection to the W that minimises the sum of terms + lamb || W - W0 ||^2."""
    layers = [linear for pair in cross_attention(model).kv() for linear in pair]
    change = correction(terms, lamb, like=layers[0].weight)  # all of them read the same text states
    for linear in layers:
        linear.weight.copy_(applied(linear.weight, change))


def solved(W0: Tensor, terms: Iterable[Term], lamb: float) -> Tensor:
    """The least-squares W (out, D), computed in float64 and returned in W0's dtype.

    W = W0 (lamb I + sum s g c^T) (lamb I + sum s c c^T)^-1, written as W0 plus a change due to the terms with g != c,
    so that W0 is returned exactly if nothing changes. Raises `UserError` unless lamb > 0.
    """
    return applied(W0, correction(terms, lamb, like=W0))


def correction(terms: Iterable[Term], lamb: float, like: Tensor) -> Tensor:
    """(sum s (g - c) c^T) (lamb I + sum s c c^T)^-1, float64 (D, D), the same for every projection of D inputs.

    `like` (out, D) gives D and the device. Raises `UserError` unless lamb > 0.
    """
    if lamb <= 0:
        raise UserError(f"lamb={lamb} leaves the solution open: give a positive number, such as 0.5")
    pull = torch.zeros(like.shape[1], like.shape[1], dtype=torch.float64, device=like.device)
    gram = lamb * torch.eye(like.shape[1], dtype=torch.float64, device=like.device)
    for c, g, scale in terms:
        c, g = c.double(), g.double()
        pull += scale * (g - c).T @ c
        gram += scale * c.T @ c
    return torch.linalg.solve(gram, pull, left=False)


def applied(W0: Tensor, change: Tensor) -> Tensor:
    """W0 + W0 change, for W0 (out, D) and a `correction` (D, D), in W0's dtype."""
    return (W0.double() + W0.double() @ change).to(W0.dtype)


def aligned(model: Diffusion, y: Tensor, other: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Text states (N, D) of prompts y and of the prompts `other` that replace them, token by token.

    "last" uses each prompt's last subject token; "all" that token and all later ones, as far as both prompts go. This
    includes the end and padding tokens, which encode the whole prompt.
    """
    text = cross_attention(model)
    rows: list[tuple[Tensor, Tensor]] = []
    for a, i, b, j in zip(*_placed(text, y), *_placed(text, other), strict=True):
        n = 1 if tokens == "last" else len(a) - max(i, j)
        rows.append((a[i : i + n], b[j : j + n]))
    return torch.cat([a for a, _ in rows]), torch.cat([b for _, b in rows])


def states(model: Diffusion, y: Tensor, tokens: Tokens) -> Tensor:
    """Text states (N, D) of prompts y: each prompt's last subject token, or all its tokens from start to padding."""
    found, last = _placed(cross_attention(model), y)
    return (
        torch.stack([row[i] for row, i in zip(found, last, strict=True)]) if tokens == "last" else found.flatten(0, 1)
    )


def _placed(text: Any, y: Tensor) -> tuple[Tensor, list[int]]:
    return text.embed(y).states, text.positions(y).tolist()
