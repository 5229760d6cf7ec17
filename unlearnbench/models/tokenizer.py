"""CLIP's tokenizer for a small vocabulary: merges make each given word one token; other words are spelt in letters."""

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
    """Tokenise prompts to ids (n, L), or (n, 2, L) for two tokenizers, padded or cut to the first one's length."""
    length = int(tokenizers[0].model_max_length)
    place = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}  # captions of a data set recur
    which = torch.tensor([place[prompt] for prompt in prompts], dtype=torch.long)
    padded = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    rows = [tokenizer(list(place), **padded).input_ids[which] for tokenizer in tokenizers]
    return rows[0] if len(rows) == 1 else torch.stack(rows, dim=1)


def word_tokenizer(words: Iterable[str], length: int, pad: str = "<|endoftext|>") -> Any:
    """Create a `CLIPTokenizer` with `length` tokens per prompt, including start and end. It can spell any ASCII word.

    Words must consist of lower-case letters, or be single digits, since CLIP splits text this way.
    """
    from transformers import CLIPTokenizer

    tokens = [*LETTERS, *(letter + END for letter in LETTERS)]
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        left, *rest = pieces(word, ranks)
        for right in rest:  # new merges come last, so that earlier words are split as before
            ranks[left, right] = len(ranks)
            left += right
            tokens.append(left)
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    merges: Any = list(ranks)
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=length)


def pieces(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding (Sennrich et al., ACL 2016): merge the neighbours of lowest rank as long as there are any."""
    parts = [*word[:-1], word[-1] + END]
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
