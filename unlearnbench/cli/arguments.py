"""Parse and check values given on the command line."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from unlearnbench.data.wording import EMPTY
from unlearnbench.errors import UserError

if TYPE_CHECKING:
    from unlearnbench.records.schema import Record


RESULTS: Final = Path("results")
"""The folder of records where none is named: in the current folder, for every command."""
Results = Annotated[
    Path | None, typer.Option("--results", help="Folder of records. [default: results]", show_default=False)
]
OldOut = Annotated[
    Path | None, typer.Option("--out", help="Deprecated name of --results.", metavar="DIR", show_default=False)
]
RecordsIn = Annotated[
    Path | None,
    typer.Option("--results", help="Folder of records; a RECORD that is not found is looked up in it.", metavar="DIR"),
]


class Device(str, Enum):
    """Devices to compute on."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def results_folder(results: Path | None, old: Path | None = None, place: Path | None = None) -> Path:
    """The folder of records: `--results`, its deprecated name `--out`, or an argument; `RESULTS` where none is given.

    Says on stderr where `--out` stands for it, and where the default folder is the one that a checkout of this project
    ships. Raises `UserError` where two of them name different folders.
    """
    from unlearnbench.cli.console import err
    from unlearnbench.records.folder import shipped_results

    given = [("--results", results), ("--out", old), ("the argument", place)]
    named = [(name, path) for name, path in given if path is not None]
    if len({path for _, path in named}) > 1:
        (first, one), (second, other) = named[:2]
        raise UserError(f"{first} {one} and {second} {other} are two folders of records: leave one out")
    if old is not None:
        err.print(f"note: --out is deprecated: write --results {old}", highlight=False, soft_wrap=True)
    if named:
        return named[0][1]
    if (shipped := shipped_results()) is not None and RESULTS.resolve() == shipped:
        err.print(f"note: using {RESULTS}, the records shipped with this checkout", highlight=False, soft_wrap=True)
    return RESULTS


def parse_settings(settings: list[str], option: str = "set", such_as: str = "lr=1e-4") -> dict[str, Any]:
    """Parse `key=value` words into a dictionary."""
    for word in settings:
        name, _, text = word.partition("=")
        if option == "set" and name in EMPTY and word.startswith(f"{name}=") and not text.strip():
            empty, meaning = EMPTY[name]
            raise UserError(f"--{option} {word}: write --{option} '{name}={empty}', which {meaning}, or give words")
        if not re.fullmatch(r"[\w-]+=.+", word):
            raise UserError(f"--{option} {word}: write key=value, such as --{option} {such_as}")
    return dict(word.split("=", 1) for word in settings)


def parse_share(text: str, option: str = "sample", of: str = "images") -> float:
    """Parse `5%` or `0.05`, the value of an option, into a share in (0, 1]."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", text, re.ASCII)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < share <= 1:
        raise UserError(f"--{option} {text}: write a share of the {of} above 0 and up to 100%, such as 5% or 0.05")
    return share


def record_in(path: Path, results: Path | None) -> Path:
    """The place of a record: as given or, where nothing lies there, within the folder of records."""
    return path if results is None or path.exists() else results / path


def opened_record(path: Path, results: Path | None = None) -> tuple[Path, Record]:
    """Read a record from its file, or from a folder that holds exactly one; return the file and the record.

    A path that does not exist is looked up in the folder `results`.
    """
    from unlearnbench.records.folder import record_files_below
    from unlearnbench.records.schema import read_record

    path = record_in(path, results)
    if path.is_dir():
        found = record_files_below(path)
        if len(found) != 1:
            which = f"name one of them, such as {found[0]}" if found else "give the path of a seed-*.json"
            raise UserError(f"{len(found) or 'no'} records below {path}: {which}")
        path = found[0]
    if path.suffix != ".json" or not path.is_file():
        raise UserError(f"no record at {path}: give the path of a seed-*.json")
    try:
        return path, read_record(path)
    except OSError as error:
        raise UserError(f"cannot read {path} ({(error.strerror or '').lower()}): make it readable") from error
