"""Words that a method is given in place of a task's: what to erase, what takes its place, what to keep, and prompts."""

from __future__ import annotations

import json
from typing import Annotated, Any, NamedTuple

from pydantic import PlainValidator
from pydantic_core import PydanticCustomError

from unlearnbench.data.concepts import LONGEST, mentions
from unlearnbench.errors import UserError
from unlearnbench.printable import hidden

NONE = ("null", "None")
"""Texts that stand for no words of one's own."""

EMPTY = {"keep": ("[]", "keeps nothing"), "replace_with": ('[""]', "is the empty prompt")}
"""What stands for an empty text of a setting on the command line, and what it means."""


class Wording(NamedTuple):
    """Words in place of a task's own. None stands for the task's."""

    erase: tuple[str, ...] | None = None
    """Names of what is to be erased."""
    replace_with: tuple[str, ...] | None = None
    """What takes their place: one for all names, or one for each. "" is the empty prompt."""
    keep: tuple[str, ...] | None = None
    """Names of what is to be kept; () keeps nothing."""
    forget_prompts: tuple[str, ...] | None = None
    """Prompts of the training images of what is to be erased."""
    retain_prompts: tuple[str, ...] | None = None
    """Prompts of the training images of what is to be kept."""

    @property
    def given(self) -> dict[str, tuple[str, ...]]:
        """The words that differ from the task's, by name."""
        return {name: words for name, words in self._asdict().items() if words is not None}

    def prompts(self, which: str) -> tuple[str, ...] | None:
        """Prompts of the training images of one side, "forget" or "retain"."""
        return self.forget_prompts if which == "forget" else self.retain_prompts

    def check(self, whose: str) -> None:
        """Raise `UserError` for words that contradict one another or are none; `whose` are they."""
        for name, words in self.given.items():
            if not words and name != "keep":
                raise UserError(f"{name} of {whose} is empty: give at least one, or leave it out for the task's own")
            for word in words:
                if len(word) > LONGEST or (character := hidden(word)):
                    why = f"longer than {LONGEST:,} characters" if len(word) > LONGEST else f"has {character!r} in it"
                    raise UserError(f"{name} of {whose}: {word[:40]!r} {why}: give plain, shorter text")
        if self.erase is None:
            return
        small = [word.lower() for word in self.erase]
        if "" in small:
            raise UserError(f"erase of {whose} has an empty word: name what is to be erased")
        if twice := [word for place, word in enumerate(small) if word in small[:place]]:
            raise UserError(f"erase of {whose} names {twice[0]!r} twice: name it once")
        self.require_one_for_each(len(self.erase), whose)
        for word in self.replace_with or ():
            if found := mentions(self.erase).search(word):
                raise UserError(
                    f"replace_with of {whose}: {word!r} names {found[0]!r}, which is to be erased: give another"
                )

    def require_one_for_each(self, names: int, whose: str) -> None:
        """Raise `UserError` unless there is one replacement for all names, or one for each."""
        if self.replace_with is not None and len(self.replace_with) not in (1, names):
            raise UserError(
                f"replace_with of {whose} has {len(self.replace_with)} entries for {names} names to erase: "
                "give one for all, or one for each"
            )


def split_words(value: Any) -> tuple[str, ...] | None:
    """Words from a list of texts, or from one text: `a; b`, or a list as JSON. An empty text is no word at all; the
    texts `null` and `None` are None, the task's words.

    Raises a validation error for anything else, such as an empty word between two semicolons.
    """
    if isinstance(value, str):
        text = value.strip()
        if text in NONE:
            return None
        if text.startswith("["):
            try:
                value = json.loads(text)
            except ValueError:
                raise _no_words(value) from None
        else:
            value = [word.strip() for word in text.split(";")] if text else []
            if "" in value:
                raise _no_words(text)
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        raise _no_words(value)
    return tuple(word.strip() for word in value)


def split_replacements(value: Any) -> tuple[str, ...] | None:
    """The same, but an empty text is the empty prompt."""
    return ("",) if isinstance(value, str) and not value.strip() else split_words(value)


def join_words(value: Any) -> str:
    """A setting as text: words as `split_words` reads them, anything else as it prints."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        return str(value)
    plain = all(word and ";" not in word and word not in NONE and not word.startswith("[") for word in value)
    return "; ".join(value) if value and plain else json.dumps(list(value), ensure_ascii=False)


def _no_words(value: Any) -> PydanticCustomError:
    return PydanticCustomError("words", 'write words as a; b, or as a list such as ["a", "b"]')


Words = Annotated[tuple[str, ...], PlainValidator(split_words)]
"""A setting that holds words; see `split_words`."""
Replacements = Annotated[tuple[str, ...], PlainValidator(split_replacements)]
"""A setting that holds what takes the place of words; see `split_replacements`."""
