"""What is to be forgotten, by its names and by what a judge calls it; read from TOML for `--concept`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic import with_config as configured

from unlearnbench.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@configured(ConfigDict(extra="forbid", strict=False))
@dataclass(frozen=True)
class Concept:
    """One concept. Methods are told `names`, `substitute` and, as what must stay, `neighbours`; never the rest."""

    names: tuple[str, ...]
    """Words that prompts name it with."""
    synonyms: tuple[str, ...] = ()
    """Further words for it, kept from methods: is the concept gone, or its name alone?"""
    substitute: str = ""
    """The word put in its place."""
    neighbours: tuple[str, ...] = ()
    """What is most like it, where damage shows first."""
    prompts: tuple[str, ...] = ()
    """Prompts with {} for a name, in place of the task's own."""
    judge: str = ""
    """The judge's label that shows it; the first name when left out."""

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def label(self) -> str:
        """The judge's label."""
        return self.judge or self.name


def mentions(words: Iterable[str]) -> re.Pattern[str]:
    """Finds any of these words in a prompt, longer ones first, never within another word."""
    either = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)


def read_concepts(path: Path) -> tuple[str, tuple[Concept, ...]]:
    """A concept file: `name`, as records and folders show it, and a table [[concept]] for each thing erased."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"--concept {path} cannot be read ({(error.strerror or '').lower()}): give a .toml file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"--concept {path} is no TOML ({error}): see `unlearnbench run --help` for an example"
        ) from error
    strange = sorted(set(values) - {"name", "concept"})
    if strange or not isinstance(values.get("concept"), list) or not values["concept"]:
        what = f"{strange[0]!r} is unknown" if strange else "it has no [[concept]]"
        raise UserError(
            f"--concept {path}: {what}: write `name = …` and one [[concept]] table for each thing to forget"
        )
    concepts = made(values["concept"], f"--concept {path}")
    name = values.get("name", "+".join(concept.name for concept in concepts))
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+_-]{0,59}", name):
        raise UserError(f"--concept {path}: name {name!r} cannot name a folder: use letters, digits, +, - and _")
    return name, concepts


def made(tables: Sequence[Any], where: str) -> tuple[Concept, ...]:
    """Concepts from tables of values; says which field of which one does not fit."""
    try:
        concepts = TypeAdapter(tuple[Concept, ...]).validate_python(tuple(tables))
    except ValidationError as error:
        first = error.errors()[0]
        number, *field = first["loc"] or (0,)
        place = f"concept {int(number) + 1}" + (f", {field[0]}" if field else "")
        raise UserError(f"{where}: {place}: {first['msg'].lower()}") from error
    for number, concept in enumerate(concepts, 1):
        words = [*concept.names, *concept.synonyms, *concept.neighbours, *concept.prompts]
        if not concept.names or not concept.substitute or not all(word.strip() for word in words):
            raise UserError(f"{where}: concept {number} needs `names` and a `substitute`, none of them empty")
        without = [prompt for prompt in concept.prompts if "{}" not in prompt]
        if without:
            raise UserError(f"{where}: prompt {without[0]!r} of concept {number} has no {{}} for the name")
        if mentions([*concept.names, *concept.synonyms]).search(concept.substitute):
            raise UserError(
                f"{where}: the substitute {concept.substitute!r} of concept {number} names the concept itself"
            )
    return concepts
