"""Take a concept's part out of the values of cross-attention while a network predicts, with unchanged weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.diffusion.model import Condition, Diffusion, Guidance
from unlearnbench.techniques.closed_form import cross_attention
from unlearnbench.training import unsplit

Values = Callable[[nn.Linear, Tensor], Tensor]
"""Called as `change(projection, values)` with a value projection and its output (B, L, D); returns what takes its
place."""


def change_values(model: Diffusion, change: Values) -> None:
    """Let every value projection of cross-attention give change(projection, values) in place of its values.

    Copies of the model copy `change` too, if it is an object and no function.
    """
    for _, projection in cross_attention(model).kv():
        projection.register_forward_hook(_Changed(change))


class _Changed:
    """The hook, an object so that it is copied with what it calls."""

    def __init__(self, change: Values):
        self.change = change

    def __call__(self, projection: nn.Linear, args: tuple[Any, ...], values: Tensor) -> Tensor:
        return self.change(projection, values)


def span_coefficients(products: Tensor, gram: Tensor) -> Tensor:
    """a (..., n) such that sum_k a_k t_k is the orthogonal projection of a vector on the span of vectors t_k.

    `products` (..., n) are its inner products with them, `gram` (..., n, n) those between them. What the projection
    leaves of it lies in their orthogonal complement. The t_k may depend on one another, or be zero.
    """
    return (torch.linalg.pinv(gram, rtol=1e-6, hermitian=True) @ products[..., None])[..., 0]


class PairedGuidance(Guidance):
    """Plain guidance that says, in `paired`, that a batch has all null rows before all of their prompts' rows."""

    paired = False

    def __call__(
        self, model: Diffusion, x_t: Tensor, t: Tensor, i: int, condition: Condition, null: Condition, w: float
    ) -> Tensor:
        """Guided noise prediction (B, C, H, W)."""
        if w == 1:
            return super().__call__(model, x_t, t, i, condition, null, w)
        self.paired = True
        try:
            with unsplit("a prompt and the null condition beside it are changed together"):
                return super().__call__(model, x_t, t, i, condition, null, w)
        finally:
            self.paired = False
