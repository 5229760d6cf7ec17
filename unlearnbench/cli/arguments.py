"""Parse and check values given on the command line."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import UserError

if TYPE_CHECKING:
    from unlearnbench.records.schema import Record


class Device(str, Enum):
    """Devices to compute on."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def parse_settings(settings: list[str], option: str = "set", such_as: str = "lr=1e-4") -> dict[str, Any]:
    """Parse `key=value` words into a dictionary."""
    for word in settings:
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


def opened_record(path: Path) -> tuple[Path, Record]:
    """Read a record from its file, or from a folder that holds exactly one; return the file and the record."""
    from unlearnbench.records.folder import record_files_below
    from unlearnbench.records.schema import read_record

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
