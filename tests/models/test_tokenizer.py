"""The small tokenizer: each word one token, everything else spelt, as the real CLIP tokenizer does it."""

import pytest
import torch

from tests.support import tiny_sd
from unlearnbench.models import tokenizer as module
from unlearnbench.models.tokenizer import LETTERS, word_tokenizer

WORDS = [*tiny_sd.WORDS, "zero", "two", "four", "five", "six", "eight", "nine", "seventeen", "ones", "on"]


@pytest.fixture(scope="module")
def tokens():
    return word_tokenizer(WORDS, 16)


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_one_token(tokens, word):
    assert len(tokens(word).input_ids) == 3
    assert tokens.decode(tokens(word).input_ids, skip_special_tokens=True).strip() == word


def test_other_words_are_spelt_and_none_is_unknown(tokens):
    ids = tokens("a quick seven, 7!").input_ids
    assert tokens.decode(ids, skip_special_tokens=True) == "a quick seven , 7 !"
    assert ids.count(tokens.eos_token_id) == 1


def test_the_order_of_words_does_not_matter_for_them():
    again = word_tokenizer(WORDS[::-1], 16)
    assert all(len(again(word).input_ids) == 3 for word in WORDS)


def test_prompts_are_padded_to_the_length(tokens):
    ids = tokens(["seven"], padding="max_length", max_length=16, truncation=True).input_ids[0]
    assert len(ids) == 16
    assert ids[3:] == [tokens.eos_token_id] * 13


def test_letters_are_no_words_of_others(tokens):
    assert len(set(LETTERS)) == len(LETTERS)
    assert len(tokens.get_vocab()) == len(set(tokens.get_vocab().values()))


def test_prompts_that_recur_have_a_row_at_each_place(tokens):
    prompts = ["a red seven", "blue", "a red seven", "blue", "green"]
    for tokenizers in ([tokens], [tokens, word_tokenizer(WORDS, 16, pad="!")]):
        alone = [module.tokens(tokenizers, [prompt])[0] for prompt in prompts]
        assert torch.equal(module.tokens(tokenizers, prompts), torch.stack(alone))
