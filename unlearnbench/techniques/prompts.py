"""Prompts around a concept's names, for methods whose papers write their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def spelt(model: Any, y: Tensor) -> list[str]:
    """The texts of prompts y (n, L) or (n, 2, L), without start, end and padding."""
    rows = y[:, 0] if y.dim() == 3 else y
    texts = []
    for row, last in zip(rows, model.positions(y).tolist(), strict=True):
        text = model.tokenizers[0].decode(row[1 : last + 1])
        texts.append(" ".join(text.replace("</w>", " ").split()))  # a copied tokenizer leaves the ends of words
    return texts


def filled(names: Iterable[str], templates: Iterable[str]) -> list[str]:
    """Every template around every name, all templates of the first name first; "{}" stands for the name."""
    texts = list(templates)
    return [text.replace("{}", name) for name in names for text in texts]


def in_turn(n: int, size: int) -> Iterator[Tensor]:
    """Yield batches (size,) of numbers below n, each once, in random order, before any comes again."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(n)])
        yield order[:size]
        order = order[size:]
