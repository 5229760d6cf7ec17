"""The words of `digits-text`: names, synonyms, neighbours and templates of captions."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from unlearnbench.judges.coloured_digits import PALETTE

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = tuple(PALETTE)
OTHER_COLOURS = ("crimson", "emerald", "azure", "golden", "turquoise", "pink")
SYNONYMS = {**{word: str(i) for i, word in enumerate(DIGITS)}, **dict(zip(COLOURS, OTHER_COLOURS, strict=True))}
PAIRS = ("zero eight", "one seven", "two three", "four nine", "five six", "red blue", "green magenta", "yellow cyan")
"""Pairs of words that are each other's substitute."""
NEAREST = {
    "zero": "nine five",
    "one": "eight four",
    "two": "eight one",
    "three": "nine eight",
    "four": "one six",
    "five": "eight nine",
    "six": "four eight",
    "seven": "eight five",
    "eight": "one nine",
    "nine": "three eight",
    "red": "magenta yellow",
    "green": "yellow cyan",
    "blue": "magenta cyan",
    "yellow": "red green",
    "cyan": "green blue",
    "magenta": "red blue",
}
"""Neighbours by the distance of the digits' mean images and of the colours' RGB values, without substitutes."""

BOTH = (
    "{c} {d}",
    "a {c} {d}",
    "a photo of a {c} {d}",
    "a picture of a {c} {d}",
    "an image of a {c} {d}",
    "a drawing of the number {d} in {c}",
    "the number {d} in {c}",
    "the {c} digit {d}",
    "the digit {d} written in {c} ink",
    "a {c} number {d}",
    "{c} number {d} on black",
    "a {d} painted {c}",
    "a {d} that is {c}",
    "{d} in {c}",
)
DIGIT_ONLY = ("{d}", "a {d}", "the number {d}", "the digit {d}", "a photo of a {d}", "a picture of the number {d}")
COLOUR_ONLY = ("{c}", "something {c}", "a {c} digit", "a photo of a {c} number", "a digit in {c}", "a {c} picture")
DIRECT = ("{d}", "a {d}", "{c}", "{c} {d}", "a {c} {d}")
EVERY = (*BOTH, *DIGIT_ONLY, *COLOUR_ONLY)
HELD_OUT = (
    "a photo of the number {d} painted {c}",
    "the {c} number {d}",
    "an image of the digit {d} in {c} ink",
    "a drawing of a {c} {d}",
    "a picture of a {d} that is {c}",
    "a {c} digit {d} on black",
)
"""Templates that neither training nor methods ever see, made of words that they do see."""
SHARES = ((BOTH, 0.8), (DIGIT_ONLY, 0.12), (COLOUR_ONLY, 0.08))
"""Shares of training captions. The more captions name the digit, the sooner its word is learnt."""
SYNONYM_SHARE = 0.2
"""Share of names in training captions that are replaced by their synonym."""


def vocabulary() -> list[str]:
    """Every word of the miniature's captions; each is one token."""
    words = " ".join((*EVERY, *HELD_OUT)).replace("{c}", "").replace("{d}", "").split()
    return list(dict.fromkeys([*words, *SYNONYMS, *SYNONYMS.values()]))


def caption(pair: tuple[str, str], named: Collection[str], draw: random.Random, synonyms: float = 0.0) -> str:
    """A training caption of a digit in a colour, by name or, with some probability, by synonym.

    It contains one of the words `named`, if the pair has one.
    """
    places = [place for word, place in zip(pair, ("{d}", "{c}"), strict=True) if word in named]
    fitting = [([text for text in texts if not places or any(p in text for p in places)], w) for texts, w in SHARES]
    kind = draw.choices([texts for texts, _ in fitting], [w if texts else 0.0 for texts, w in fitting])[0]
    d, c = (SYNONYMS[word] if draw.random() < synonyms else word for word in pair)
    return draw.choice(kind).format(d=d, c=c)


def fill_templates(label: str, word: str, texts: Sequence[str], without: Collection[str]) -> list[str]:
    """Templates with `word` in its label's domain and, in the other domain, every name except those in `without`."""
    own, other, others = ("{d}", "{c}", COLOURS) if label in DIGITS else ("{c}", "{d}", DIGITS)
    half = [text.replace(own, word) for text in texts if own in text]
    return list(dict.fromkeys(text.replace(other, name) for text in half for name in others if name not in without))


def share(count: int, number: int, of: int) -> int:
    """The number-th of `of` parts of a count, which are as equal as possible."""
    return count * (number + 1) // of - count * number // of
