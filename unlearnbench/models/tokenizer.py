"""CLIP's tokenizer for a small world: byte-pair merges that make each given word one token, letters for the rest."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

END = "</w>"
LETTERS = [*string.ascii_lowercase, *string.digits, *string.punctuation]


def tokens(tokenizers: Sequence[Any], prompts: Sequence[str]) -> Tensor:
    """Prompts as ids (n, L), or (n, 2, L) for two tokenizers, padded or cut to the first one's length."""
    length = int(tokenizers[0].model_max_length)
    rows = [
        tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        for tokenizer in tokenizers
    ]
    return rows[0] if len(rows) == 1 else torch.stack(rows, dim=1)


def word_tokenizer(words: Iterable[str], length: int, pad: str = "<|endoftext|>") -> Any:
    """A `CLIPTokenizer` of `length` tokens a prompt, start and end included; any ASCII word can be spelt.

    Words must be of lower-case letters, or single digits, as CLIP splits text so.
    """
    from transformers import CLIPTokenizer

    tokens = [*LETTERS, *(letter + END for letter in LETTERS)]
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        left, *rest = pieces(word, ranks)
        for right in rest:  # new merges come last, so that no earlier word is split otherwise than before
            ranks[left, right] = len(ranks)
            left += right
            tokens.append(left)
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    merges: Any = list(ranks)
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=length)


def pieces(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding (Sennrich et al., ACL 2016): merge the neighbours of lowest rank until there are none."""
    parts = [*word[:-1], word[-1] + END]
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
