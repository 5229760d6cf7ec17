"""Files of papers on objects: MACE's other words for CIFAR-10's classes, ESD's prompts of Imagenette's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from unlearnbench.data.prompt_files import PromptRow, read_prompts, require_column
from unlearnbench.data.published_files import published_file
from unlearnbench.errors import UserError, message
from unlearnbench.printable import hidden, printable

SYNONYMS = published_file("10_objects_paraphrase.json").source
IMAGENETTE_PROMPTS = published_file("small_imagenet_prompts.csv").source
LONGEST = 60
"""Characters of a word; the longest of the published file has 15."""


def read_synonyms(path: Path, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read other words for each class from an object of lists, as MACE's file is.

    Raises `UserError` for a file that is none, or lacks a class, and for a word that is empty, too long or hidden.
    """
    try:
        found = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({message(error)[:100]}): fetch {SYNONYMS.name} again"
        ) from error
    synonyms = {}
    for name in classes:
        words = found.get(name) if isinstance(found, dict) else None
        if not isinstance(words, list) or not words:
            raise UserError(f"{path} has no list of other words for {name}: fetch {SYNONYMS.name} again")
        for word in words:
            if not isinstance(word, str) or not word.strip() or len(word) > LONGEST or hidden(word):
                raise UserError(
                    f"{path}, {name}: {printable(str(word))[:40]!r} is no plain word of up to {LONGEST} characters: "
                    f"fetch {SYNONYMS.name} again"
                )
        synonyms[name] = tuple(dict.fromkeys(word.strip() for word in words))
    return synonyms


def read_class_prompts(path: Path, classes: Sequence[str]) -> dict[str, list[PromptRow]]:
    """Read the rows of each class from a prompt file with a column `class`, which may be written in any case.

    Raises `UserError` for a file that lacks the column, or rows of a class.
    """
    rows = read_prompts(path)
    require_column(path, rows, "class")
    of = {name: [row for row in rows if row.cells["class"].strip().casefold() == name.casefold()] for name in classes}
    for name, own in of.items():
        if not own:
            raise UserError(f"{path} has no prompts of the class {name}: fetch {IMAGENETTE_PROMPTS.name} again")
    return of
