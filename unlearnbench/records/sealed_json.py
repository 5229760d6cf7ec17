"""JSON files with a schema version and a hash of their content, which shows later changes."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from unlearnbench.errors import Damaged, UserError
from unlearnbench.hashing import digest
from unlearnbench.printable import printable

Sealed = TypeVar("Sealed", bound=BaseModel)

LARGEST = 16 * 2**20
"""Largest file in bytes; this project's largest record has less than a hundredth of it."""
DEEPEST = 30
"""Deepest nesting of objects and lists."""


def sealed(values: dict[str, Any]) -> str:
    """Content hash of a record's JSON values, of any schema version."""
    return digest({name: value for name, value in values.items() if name != "content_hash"})


class Unsound(ValueError):
    """JSON that parsers disagree about, or that no file of this project can contain."""


def parsed(text: bytes) -> Any:
    """Parse JSON strictly.

    Python's parser also accepts NaN, infinities and numbers too large for a float, and keeps the last of equal keys.
    Here they raise `Unsound`, as does nesting deeper than `DEEPEST`.
    """
    values = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite)
    level = [values]
    for _ in range(DEEPEST):
        level = [
            item
            for each in level
            if isinstance(each, (dict, list))
            for item in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return values
    raise Unsound(f"objects lie more than {DEEPEST} deep in one another")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Unsound(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return found


def _no_number(text: str) -> float:
    raise Unsound(f"{text} is no JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise Unsound(f"{text[:20]} is too large for a number")
    return value


def first_of(error: ValidationError | RecursionError) -> str:
    """Describe the first error in some values, and where it is."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(printable(str(part)) for part in first["loc"]) or "the file"
    return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def open_sealed(
    path: Path,
    kind: type[Sealed],
    what: str,
    version: int,
    remedy: str,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values,
) -> Sealed:
    """Read and check a sealed file.

    Raises `Damaged` with what is wrong, and `UserError` for a schema that is newer than `version`.
    """
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise Damaged(f"{what} {path} is no regular file: {remedy}")
    if stat.S_ISREG(status.st_mode) and status.st_size > LARGEST:
        raise Damaged(f"{what} {path} has {status.st_size:,} bytes, at most {LARGEST:,} are read: {remedy}")
    try:
        values = parsed(path.read_bytes())
        given = values["schema_version"]
    except Unsound as error:
        raise Damaged(f"{what} {path} is damaged ({error}): {remedy}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{what} {path} is damaged (it is no JSON object with a schema_version): {remedy}") from error
    if isinstance(given, int) and given > version:
        raise UserError(
            f"{what} {path} has schema {given}, this unlearnbench knows up to {version}: install a newer one"
        )
    try:
        found = kind.model_validate(upgrade(values))
    except (ValidationError, RecursionError) as error:
        raise Damaged(f"{what} {path} is damaged ({first_of(error)}): {remedy}") from error
    if values.get("content_hash", "") != sealed(values):
        raise Damaged(f"{what} {path} was changed after it was written (its content hash does not fit): {remedy}")
    return found


class FrozenPart(BaseModel):
    """A model that is frozen and refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SealedPart(BaseModel):
    """A model that is frozen and refuses unknown fields, NaN and infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
