"""Files of the user's own prompts, as `--prompts forget=FILE.csv` names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from unlearnbench.data.prompt_files import PromptRow, read_prompts
from unlearnbench.errors import UserError, unknown
from unlearnbench.hashing import file_hash, seed_of
from unlearnbench.names import require_name

PromptSide = Literal["forget", "retain", "attack"]
GROUP, CONCEPT = "group", "concept"
"""Columns that name a row's group, and the concept that its image should show."""


class PromptFile(NamedTuple):
    """A file of prompts, and what they are for."""

    side: PromptSide
    path: Path
    sha256: str

    @property
    def name(self) -> str:
        """Side and file, as records name it."""
        return f"{self.side}-{self.path.stem}"

    def rows(self) -> list[PromptRow]:
        """Read the rows. Raises `UserError` if the file changed since it was named, or a row has no prompt."""
        if file_hash(self.path) != self.sha256:
            raise UserError(f"{self.path} was changed while it was in use: run the command again")
        return read_rows(self.path)


def prompt_files(words: Sequence[str], *, takes_prompts: bool, task: str) -> tuple[PromptFile, ...]:
    """The files of words such as `forget=mine.csv`, each read once to check it.

    Raises `UserError` for a word without a side, a file that cannot be read, two files of one name, and a task that
    draws no prompts.
    """
    if words and not takes_prompts:
        raise UserError(f"--prompts is for text-to-image tasks: {task} has labels, so leave it out")
    files: dict[str, PromptFile] = {}
    for word in words:
        side, path = split_word("prompts", word, get_args(PromptSide))
        rows = read_rows(path)
        file = PromptFile(side, path, file_hash(path))  # type: ignore[arg-type]
        require_name("the file of --prompts", file.name)
        for group in dict.fromkeys(group_of(file, row) for row in rows):
            require_name(f"{path}: the group", group)
        if file.name in files and files[file.name] != file:
            raise UserError(
                f"--prompts names two files {path.stem} for {side}: rename one, records tell them apart by it"
            )
        files[file.name] = file
    return tuple(files.values())


def split_word(option: str, word: str, sides: Sequence[str]) -> tuple[str, Path]:
    """Split `forget=mine.csv` into side and path."""
    side, equals, path = word.partition("=")
    if not equals or (side not in sides and Path(word).exists()):
        raise UserError(f"--{option} {word}: say what it is for, such as --{option} {sides[0]}={word}")
    if side not in sides:
        raise unknown(f"side of --{option} {word}:", side, sides)
    if not path:
        raise UserError(f"--{option} {word}: name a file after the =")
    return side, Path(path)


def read_rows(path: Path) -> list[PromptRow]:
    """Read rows of which each has a prompt; a row without a seed takes one from its prompt (see `own_seed`)."""
    rows = read_prompts(path, default_seed=lambda number: -1)
    empty = next((row for row in rows if row.is_empty), None)
    if empty is not None:
        raise UserError(f"{path}, row {empty.number}, has no prompt: write one, or delete the row")
    return rows


def own_seed(sampling_seed: int, prompt: str, number: int) -> int:
    """The seed of the noise for the `number`-th row with this prompt, below 2**32: other rows do not change it."""
    return seed_of("sampling", sampling_seed, "own prompts", prompt, number) >> 32


def group_of(file: PromptFile, row: PromptRow) -> str:
    """The row's group; the file's name where it has none."""
    return row.cells.get(GROUP, "").strip() or file.path.stem
