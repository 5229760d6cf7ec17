"""Concepts to forget: their names and the label that a judge gives them. `--concept` reads them from TOML."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic import with_config as configured

from unlearnbench.errors import UserError, unknown
from unlearnbench.printable import hidden

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@configured(ConfigDict(extra="forbid", strict=False))
@dataclass(frozen=True)
class Concept:
    """One concept. Methods see `names`, `substitute` and, as concepts to keep, `neighbours`; never the other fields."""

    names: tuple[str, ...]
    """Words that name it in prompts."""
    synonyms: tuple[str, ...] = ()
    """Other words for it, hidden from methods: they show whether the concept is gone or only its name."""
    substitute: str = ""
    """The word that replaces it."""
    neighbours: tuple[str, ...] = ()
    """The most similar concepts, where damage shows first."""
    prompts: tuple[str, ...] = ()
    """Prompts with {} for a name, used instead of the task's own."""
    judge: str = ""
    """The judge's label for it; the first name if empty."""

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def label(self) -> str:
        """The judge's label."""
        return self.judge or self.name


LONGEST = 10_000
"""Maximum length of a word or prompt, in characters; text encoders read about a hundred tokens at most."""
KNOWN = tuple(field.name for field in fields(Concept))


def mentions(words: Iterable[str]) -> re.Pattern[str]:
    """Compile a pattern that finds any of these words in a prompt: longer words first, whole words only."""
    either = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)


def read_concepts(path: Path) -> tuple[str, tuple[Concept, ...]]:
    """Read a concept file: `name`, as records and folders show it, and a table [[concept]] for each concept to erase.

    `name` defaults to the file's name.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows write a byte order mark
    except OSError as error:
        raise UserError(
            f"--concept {path} cannot be read ({(error.strerror or '').lower()}): give a .toml file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--concept {path} is no TOML ({error}): see README.md for an example") from error
    except RecursionError as error:
        raise UserError(f"--concept {path} is nested too deeply: see README.md for an example") from error
    strange = sorted(set(values) - {"name", "concept"})
    if strange or not isinstance(values.get("concept"), list) or not values["concept"]:
        what = f"{strange[0]!r} is unknown" if strange else "it has no [[concept]]"
        raise UserError(
            f"--concept {path}: {what}: write `name = …` and one [[concept]] table for each thing to forget"
        )
    concepts = build_concepts(values["concept"], f"--concept {path}")
    name = values.get("name", path.stem)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+_-]{0,59}", name):
        raise UserError(
            f"--concept {path}: name {name!r} cannot name a folder: write `name = …` of letters, digits, +, - and _"
        )
    return name, concepts


def build_concepts(tables: Sequence[Any], where: str) -> tuple[Concept, ...]:
    """Build concepts from tables of values. Errors name the concept and the field that is wrong."""
    try:
        concepts = TypeAdapter(tuple[Concept, ...]).validate_python(tuple(tables))
    except ValidationError as error:
        first = error.errors()[0]
        number, *field = first["loc"] or (0,)
        place = f"{where}: concept {int(number) + 1}"
        if first["type"] == "unexpected_keyword_argument":
            raise UserError(f"{place}: {unknown('field', str(field[0]), KNOWN)}") from error
        raise UserError(f"{place}{f', {field[0]}' if field else ''}: {first['msg'].lower()}") from error
    for number, concept in enumerate(concepts, 1):
        given = {"names": concept.names or ("",), "synonyms": concept.synonyms, "substitute": (concept.substitute,)}
        given |= {"neighbours": concept.neighbours, "prompts": concept.prompts}
        for what, words in given.items():
            for word in words:
                if len(word) > LONGEST or (character := hidden(word)):
                    why = f"longer than {LONGEST:,} characters" if len(word) > LONGEST else f"has {character!r} in it"
                    raise UserError(f"{where}: concept {number}, {what}: {word[:40]!r} {why}: give plain, shorter text")
            if not all(word.strip() for word in words):
                raise UserError(f"{where}: concept {number}, {what}: empty: give a word, or words, in its place")
        without = [prompt for prompt in concept.prompts if "{}" not in prompt]
        if without:
            raise UserError(f"{where}: concept {number}, prompts: {without[0]!r} has no {{}} for the name")
    check_apart(concepts, where)
    return concepts


def check_apart(concepts: Sequence[Concept], where: str) -> None:
    """Refuse a word that two concepts share, and a substitute that names an erased concept and would bring it back."""
    owners: dict[str, int] = {}
    for number, concept in enumerate(concepts, 1):
        for what, words in (("names", concept.names), ("synonyms", concept.synonyms)):
            for word in words:
                if (owner := owners.setdefault(word.lower(), number)) != number:
                    raise UserError(f"{where}: concept {number}, {what}: {word!r} is of concept {owner} already")
    for number, concept in enumerate(concepts, 1):
        if found := mentions(owners).search(concept.substitute):
            raise UserError(
                f"{where}: concept {number}, substitute: {concept.substitute!r} names {found[0]!r}, which is to be "
                "forgotten: give another in a --concept file"
            )
