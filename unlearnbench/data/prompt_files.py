"""Read prompt files: tables of prompts with their seeds, as papers' repositories and the Hugging Face Hub have them."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unlearnbench.errors import UserError, message
from unlearnbench.printable import printable

PROMPTS = ("prompt", "adv_prompt", "sensitive prompt")
"""Columns that hold the prompts: of most files; of MMA-Diffusion's; of Ring-A-Bell's."""
SEEDS = ("evaluation_seed", "sd_seed", "seed")
"""Columns that hold the seeds: of ESD's and later repositories; of I2P on the hub; of files of your own."""
SCALES = ("evaluation_guidance", "sd_guidance_scale", "guidance")
"""Columns that hold the guidance scale, in the same order."""
HIGHEST_SEED = 2**63
EXACT = 2**53
"""Up to here every integer is a float; a larger seed that is written as 1.0e16 or 1…1.0 was rounded before."""
SHOWN = 8
"""How many column names a message lists: a file without a header would have its first prompts shown."""


class PromptRow(NamedTuple):
    """One row of a prompt file."""

    prompt: str
    """The text as it is in the file, with its spaces and line breaks; "" if the cell is empty."""
    seed: int
    guidance: float
    """Guidance scale; 0 if the file has none."""
    number: int
    """Number of the row, counted from 1 without the header."""
    cells: Mapping[str, str]
    """All cells of the row by column, as text."""

    @property
    def is_empty(self) -> bool:
        """Whether the prompt has no words."""
        return not self.prompt.strip()


def read_prompts(
    path: Path, *, column: str | None = None, default_seed: Callable[[int], int] | None = None
) -> list[PromptRow]:
    """Read the rows of a prompt file in order. Cells are text: `null`, `NA` and `1984` are prompts like any others.

    Formats, by the end of the name: .jsonl, .json (a list of objects), .parquet, .tsv; anything else is read as CSV in
    UTF-8, with or without a byte order mark. Texts with commas, quotes or line breaks must be quoted in CSV.

    Args:
        path: The file. Its first row names the columns.
        column: The column with the prompts; by default the first one of `PROMPTS` that the file has.
        default_seed: Gives the seed for a row's number in a file without a column of seeds. Without it, such a file is
            refused.

    Returns:
        Rows with seeds in [0, 2**63), exactly as in the file. Nothing is dropped: empty prompts are rows too.

    Raises:
        UserError: The file cannot be read, lacks a column, or a row has a wrong number of cells, no valid seed, or a
            guidance scale that is no number; the message names the file and the row.
    """
    columns, rows = _table(path)
    names = PROMPTS if column is None else (column,)
    prompts, seeds, scales = (_first_of(path, columns, each) for each in (names, SEEDS, SCALES))
    if prompts is None:
        raise _lacks(path, columns, names)
    if seeds is None and default_seed is None:
        raise _lacks(path, columns, SEEDS)
    return [
        PromptRow(
            cells[prompts],
            _seed(path, number, seeds, cells[seeds]) if seeds else default_seed(number),  # type: ignore[misc]
            _scale(path, number, scales, cells[scales]) if scales else 0.0,
            number,
            cells,
        )
        for number, cells in enumerate(rows, 1)
    ]


def require_column(path: Path, rows: Sequence[PromptRow], column: str) -> None:
    """Refuse rows of a file that lacks a column."""
    if rows and column not in rows[0].cells:
        raise _lacks(path, list(rows[0].cells), (column,))


def as_number(cell: str) -> float | None:
    """The finite number in a cell; None if there is none."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _seed(path: Path, number: int, column: str, cell: str) -> int:
    whole = re.fullmatch(r"(\d{1,25})(\.0*)?", cell.strip())
    if whole is None or int(whole[1]) >= (EXACT if whole[2] else HIGHEST_SEED):
        what = printable(cell.strip())[:30] or "empty"
        raise UserError(
            f"{path}, row {number}, has no seed (its {column} is {what}): images could not be paired; write a whole "
            "number from 0 to 2**63 - 1, in digits"
        )
    return int(whole[1])


def _scale(path: Path, number: int, column: str, cell: str) -> float:
    if not cell.strip():
        return 0.0
    if (scale := as_number(cell)) is None:
        raise UserError(
            f"{path}, row {number}: its {column}, {printable(cell)[:30]!r}, is no number: write a guidance scale such "
            "as 7.5, or nothing"
        )
    return scale


def _first_of(path: Path, columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of these names that is a column."""
    name = next((name for name in names if name in columns), None)
    if name is not None and columns.count(name) > 1:
        raise UserError(f"{path} has {columns.count(name)} columns {name!r}: keep the one that is meant")
    return name


def _lacks(path: Path, columns: Sequence[str], names: Sequence[str]) -> UserError:
    listed = [printable(name)[:30] for name in columns[:SHOWN] if name]
    more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
    return UserError(
        f"{path} has the columns {', '.join(listed)}{more}: {' or '.join(names)} is needed; the first row must name it"
    )


# ---- formats -------------------------------------------------------------------------------------------------------


def _table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The names of the columns, and the cells of each row by column."""
    read = {".jsonl": _json_lines, ".json": _json_list, ".parquet": _parquet}.get(path.suffix.lower(), _separated)
    try:
        columns, rows = read(path)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UserError(f"{path} cannot be read ({why}): give a file that exists and can be read") from error
    except UnicodeDecodeError as error:
        line = bytes(error.object)[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}, is not UTF-8: save the file as UTF-8") from error
    if not rows:
        raise UserError(f"{path} has no rows: give a file with a prompt in each row, below the names of the columns")
    return columns, rows


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")  # not read_text, which would change line breaks within prompts


def _separated(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    tab = path.suffix.lower() == ".tsv"
    lines = csv.reader(io.StringIO(_text(path), newline=""), delimiter="\t" if tab else ",", strict=True)
    columns: list[str] = []
    rows: list[dict[str, str]] = []
    try:
        for cells in lines:
            if not cells:  # a blank line
                continue
            if not columns:
                columns = [name.strip() for name in cells]
            elif len(cells) != len(columns):
                raise UserError(
                    f"{path}, row {len(rows) + 1}, has {len(cells)} cells, but there are {len(columns)} columns: put "
                    f'"…" around each text that contains a {"tab" if tab else "comma"}, without a space before it'
                )
            else:
                rows.append(dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        place = f"row {len(rows) + 1}" if columns else "the first row"
        raise UserError(
            f'{path}, {place}, cannot be read ({message(error)}): close each quoted text with ", and write "" for a '
            "quote within it"
        ) from error
    return columns, rows


def _json_lines(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    lines = [line for line in _text(path).split("\n") if line.strip()]
    return _objects(path, (_json(path, line, f", row {number}") for number, line in enumerate(lines, 1)))


def _json_list(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    values = _json(path, _text(path))
    if isinstance(values, dict) and values and all(isinstance(value, list) for value in values.values()):
        raise UserError(
            f"{path} holds names with lists of words, and no prompts: put the words of one name into `synonyms` of a "
            "--concept file, which `unlearnbench new-concept` writes"
        )
    if not isinstance(values, list):
        raise UserError(f"{path} is no list of rows: write a list of objects, or one object a line in a .jsonl file")
    return _objects(path, iter(values))


def _json(path: Path, text: str, place: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = message(error)[:120]
        raise UserError(f"{path}{place} is no JSON ({why}): write one object for each row") from error


def _parquet(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, use_threads=False)
    except pa.ArrowException as error:
        why = message(error)[:120]
        raise UserError(f"{path} is no readable parquet file ({why}): export the table to it again") from error
    return _objects(path, iter(table.to_pylist()))


def _objects(path: Path, values: Iterator[Any]) -> tuple[list[str], list[dict[str, str]]]:
    """Rows from typed values; every row must have the columns of the first."""
    columns: list[str] = []
    rows: list[dict[str, str]] = []
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise UserError(f"{path}, row {number}, is no object: write {{…}} with a value for each column")
        columns = columns or list(value)
        if missing := [name for name in columns if name not in value]:
            raise UserError(f"{path}, row {number}, has no {printable(missing[0])[:30]!r}, as the rows before it have")
        rows.append({name: _as_text(path, number, name, cell) for name, cell in value.items()})
    return columns, rows


def _as_text(path: Path, number: int, column: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, dict | list | bytes) and column in (*PROMPTS, *SEEDS, *SCALES):
        raise UserError(f"{path}, row {number}: its {column} is no text and no number: write one of them")
    return value if isinstance(value, str) else str(value)
