"""Shared by text-to-image tasks: concepts as words, prompts as tokens."""

from __future__ import annotations

import copy
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from unlearnbench.data.concepts import Concept, check_apart, mentions
from unlearnbench.data.wording import Wording
from unlearnbench.errors import UserError, unknown
from unlearnbench.models.tokenizer import LETTERS, tokens
from unlearnbench.task import Plan, Protocol, Task


@dataclass(frozen=True)
class TextProtocol(Protocol):
    """A protocol with groups of prompts. Counts are images, each with its own prompt as long as there are enough."""

    retain_images: int = 90
    """Number of samples of all retained concepts together."""
    direct_images: int = 14
    """Number of samples for prompts that are little more than the concept's name."""
    synonym_images: int = 25
    """Number of samples for prompts that name the concept by a word hidden from methods."""
    held_out_images: int = 25
    """Number of samples for prompts in templates hidden from training and methods."""
    neighbour_images: int = 26
    """Number of samples of all neighbours of the concept together."""
    concepts: tuple[Concept, ...] = ()
    """The user's own concepts, used instead of the task's."""
    safety_checker: bool = False
    """Never run, since it would hide what the model generates."""


def other_counts(count: int) -> dict[str, Any]:
    """Use the same count for every group other than the forget and retain samples."""
    return dict.fromkeys(("direct_images", "synonym_images", "held_out_images", "neighbour_images"), count)


class Asked(NamedTuple):
    """What an image for a prompt should show."""

    concept: str
    label: int
    """The judge's label; -1 if it knows none."""
    other: int = -1
    """The label in a second domain; -1: none."""


class TextTask(Task):
    """Forget concepts of a text-to-image model: `--forget seven`, `--forget seven+red`, or `--concept FILE.toml`."""

    catalogue: ClassVar[dict[str, Concept]]
    """The task's own concepts, by name."""
    protocol: TextProtocol
    model_parts = frozenset({"full", "xattn", "selfattn", "noxattn", "text_encoder"})
    licence: ClassVar[str]
    """Licence of the original's weights, as the hub writes it."""
    origin: ClassVar[str]
    """Where the weights come from, for model cards."""
    wording: Wording = Wording()
    """Words of a method's own, which change what the task tells the method; see `with_words`."""

    def __init__(self, forget: str, *, concepts: tuple[Concept, ...] = (), **settings: Any):
        super().__init__(forget, concepts=concepts, **settings)
        self.erased = concepts or tuple(self.catalogue[name] for name in self.forget.split("+"))
        self._texts: dict[bytes, str] = {}
        if concepts:
            self.protocol = replace(self.protocol, concepts=concepts)
            self.check_concepts()

    @property
    @abstractmethod
    def tokenizers(self) -> Sequence[Any]:
        """The model's tokenizers, without loading the model."""

    @property
    @abstractmethod
    def words(self) -> tuple[str, ...]:
        """Names of all concepts that the task knows, for what must be kept."""

    @classmethod
    def resolve_concept(cls, forget: str) -> str:
        """Resolve one name, or several joined by +."""
        for name in forget.split("+"):
            if name not in cls.catalogue:
                raise unknown(f"concept of {cls.name}", name, cls.catalogue)
        named = sorted(set(forget.split("+")), key=list(cls.catalogue).index)  # one name for any order of concepts
        check_apart([cls.catalogue[name] for name in named], f"--forget {forget}")
        return "+".join(named)

    def check_concepts(self) -> None:
        """Refuse concepts that the judge or the tokenizer does not know, and prompts that are too long."""
        known = self.labels()
        if set(self.forget.split("+")) <= set(self.catalogue):
            raise UserError(
                f"a --concept file named {self.forget!r} would take the place of the records of --forget "
                f'{self.forget}: give it another name, such as name = "my-{self.forget}"'
            )
        for concept in self.erased:
            if concept.label not in known:
                raise unknown(f"label of the judge {self.protocol.judge}", concept.label, known)
            for word in concept.neighbours:
                if word not in known:
                    raise unknown(f"neighbour: {self.protocol.judge} cannot name", word, known)
            for word in (*concept.names, *concept.synonyms, concept.substitute, *concept.neighbours):
                self._check_word(word)
        kept = [item.prompt for item in self.plan() if item.group in ("retain", "neighbours")]
        if found := next(filter(None, map(self._asks.search, kept)), None):
            raise UserError(
                f"prompts of what must be kept say {found[0]!r} too, such as {found.string!r}: name the concept by "
                "another word"
            )
        length = int(self.tokenizers[0].model_max_length)
        planned = [item.prompt for item in self.plan()]
        prompts = list(dict.fromkeys([*planned, *map(self._substituted, planned)]))
        long = [prompt for prompt in prompts if len(self.tokenizers[0](prompt).input_ids) > length]
        if long:
            raise UserError(
                f"{len(long)} of {len(prompts)} prompts are longer than the {length} tokens at which the text encoder "
                f"would cut them: shorten them, first {long[0]!r}"
            )

    def _check_word(self, word: str) -> None:
        """Refuse a word that a tokenizer spells letter by letter: it means nothing to the model."""
        for part in word.split():
            pieces = self.tokenizers[0].tokenize(part)
            spelt = [piece.replace("</w>", "") in LETTERS for piece in pieces]
            if len(part) > 2 and sum(spelt) > len(part) / 2:
                raise UserError(
                    f"the tokenizer spells {word!r} letter by letter ({' '.join(pieces)}), which its model "
                    "cannot know: use words that it was trained on"
                )

    # ---- words of a method's own -------------------------------------------------------------------------------

    def with_words(self, words: Wording) -> TextTask:
        """This task as a method sees it that has words of its own.

        They change `names`, `captions`, `substitute` and the prompts of training images. What is measured stays as it
        is: plan, labels, judge and `forgotten`.
        """
        if words.erase is None:
            words.require_one_for_each(len(self.told_names), f"a method on {self.name}")
        worded = copy.copy(self)
        for kept in ("_replacements", "_replaced", "_names_told"):
            vars(worded).pop(kept, None)
        worded.wording = words
        worded._check_wording()
        return worded

    @property
    def told_names(self) -> tuple[str, ...]:
        """Names of the erased concepts that methods are told."""
        return self.wording.erase or tuple(name for concept in self.erased for name in concept.names)

    @cached_property
    def _names_told(self) -> Any:
        """Pattern of what a method takes for a name of an erased concept."""
        hidden = () if self.wording.erase else [word for concept in self.erased for word in concept.synonyms]
        return mentions([*self.told_names, *hidden])

    @cached_property
    def _replacements(self) -> list[tuple[str, str]]:
        """Words to be replaced and what takes their place, longer words first."""
        of, pairs = self._substitutes(), list[tuple[str, str]]()
        for word, other in of.items():
            spaced = self.text(self.tokens([word])[0])  # as prompts are read back from tokens: "nudity , nsfw"
            pairs += [(one, other) for one in dict.fromkeys([word, spaced]) if one]
        return sorted(pairs, key=lambda pair: -len(pair[0]))

    def _substitutes(self) -> dict[str, str]:
        """What takes the place of each name, and of the synonyms where the method has no names of its own."""
        given = self.wording.replace_with
        own = {word: concept for concept in self.erased for word in (*concept.names, *concept.synonyms)}
        found = {name: own.get(name, self.erased[0]).substitute for name in self.told_names}
        if given is not None:
            found = dict(zip(found, given * len(found) if len(given) == 1 else given, strict=True))
        if self.wording.erase is None:  # then the names are the task's, and its synonyms are known here
            for word in own:
                found.setdefault(word, found[own[word].name])
        return found

    @cached_property
    def _replaced(self) -> re.Pattern[str]:
        """Pattern with a group for each of the words to be replaced."""
        either = "|".join(f"({re.escape(word)})" for word, _ in self._replacements)
        return re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)

    def _check_wording(self) -> None:
        """Refuse words that a tokenizer spells letter by letter, and those that are longer than the encoder reads."""
        try:
            length = int(self.tokenizers[0].model_max_length)
        except UserError:
            return  # a task whose files are not here can be planned, not run
        for name, words in self.wording.given.items():
            for word in words:
                self._check_word(word)
                if len(self.tokenizers[0](word).input_ids) > length:
                    raise UserError(
                        f"{name}: {word[:60]!r} is longer than the {length} tokens at which the text encoder would cut "
                        "it: shorten it"
                    )

    # ---- prompts -----------------------------------------------------------------------------------------------

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (n, L), or (n, 2, L) for two tokenizers, on the CPU."""
        return tokens(self.tokenizers, prompts) if prompts else tokens(self.tokenizers, [""])[:0]

    def text(self, row: Tensor) -> str:
        """The prompt of one row of tokens."""
        row = row.cpu()
        key = row.numpy().tobytes()
        if key not in self._texts:
            ids = row if row.dim() == 1 else row[0]
            self._texts[key] = self.tokenizers[0].decode(ids, skip_special_tokens=True).strip()
        return self._texts[key]

    def inputs(self, items: Sequence[Plan]) -> Tensor:
        """Tokens of the planned prompts."""
        return self.tokens([item.prompt for item in items]).to(self.device)

    def names(self, which: Literal["forget", "retain"]) -> Tensor:
        """One prompt for each name of the erased concepts, or for each other concept, including neighbours."""
        if which == "forget":
            return self.tokens(self.told_names)
        if self.wording.keep is not None:
            return self.tokens(self.wording.keep)
        erased = {concept.label for concept in self.erased}  # the user may use other names for it
        others = [word for word in self.words if word not in erased]
        others += [word for concept in self.erased for word in concept.neighbours]
        asked = (self._asks, self._names_told)
        return self.tokens([word for word in dict.fromkeys(others) if not any(said.search(word) for said in asked)])

    def _named(self, caption: str) -> str:
        """A caption of the training data, with the names that methods are told for what the judge calls differently."""
        told = self.wording.erase
        for number, concept in enumerate(self.erased):
            if concept.label not in (told or concept.names):
                name = told[number % len(told)] if told else concept.name
                caption = mentions([concept.label]).sub(lambda _, name=name: name, caption)  # type: ignore[misc]
        return caption

    @cached_property
    def _asks(self) -> Any:
        return mentions(word for concept in self.erased for word in (*concept.names, *concept.synonyms))

    def forgotten(self, y: Tensor) -> Tensor:
        """Mask (B,) of the prompts that name an erased concept, by a name or a synonym."""
        return torch.tensor([bool(self._asks.search(self.text(row))) for row in y.cpu()], device=y.device)

    def substitute(self, y: Tensor) -> Tensor:
        """The same prompts with the substitute instead of every name and synonym, by the method's own words if any."""
        return self.tokens([self._substituted(self.text(row)) for row in y.cpu()]).to(y.device)

    def _substituted(self, prompt: str) -> str:
        others = [other for _, other in self._replacements]
        return self._replaced.sub(lambda found: others[(found.lastindex or 0) - 1], prompt)

    def asked_in(self, prompt: str, side: Literal["forget", "retain"], concept: str = "") -> Asked:
        """What a prompt of the user's own asks for: the concept that is named, else the one that the prompt mentions.

        On the forget side it is an erased concept, which need not be mentioned if there is only one. Raises `UserError`
        for a concept that the task does not know, or one of the other side.
        """
        erased, known = [each.label for each in self.erased], self.labels()
        if concept and concept not in known:
            raise unknown(f"concept of {self.name}", concept, known)
        if concept and (concept in erased) != (side == "forget"):
            fate, other = ("forgotten", "forget") if concept in erased else ("kept", "retain")
            raise UserError(f"{concept} is {fate}: move the row to a file for {other}")
        if side == "forget":
            said = [each.label for each in self.erased if mentions((*each.names, *each.synonyms)).search(prompt)]
            if not concept and len(erased) > 1 and len(said) != 1:
                raise UserError(f"it does not name one of {', '.join(erased)}: add a column `concept`")
            concept = concept or (erased[0] if len(erased) == 1 else said[0])
        elif not concept:
            others = [word for word in known if word not in erased]
            found = mentions(others).search(prompt) if others else None
            concept = next((word for word in others if found and word.lower() == found[0].lower()), "")
        return Asked(concept, known[concept]) if concept else Asked("other", -1)

    def erased_labels(self) -> list[int]:
        """The judge's labels of all erased concepts."""
        known = self.labels()
        return [known[concept.label] for concept in self.erased]
