"""Files that vouch for themselves: JSON with a schema version and a hash of all else in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from unlearnbench.errors import Damaged, UserError
from unlearnbench.hashing import digest
from unlearnbench.printable import printable

Sealed = TypeVar("Sealed", bound=BaseModel)


def sealed(values: dict[str, Any]) -> str:
    """Content hash of a record's JSON values, of any schema version."""
    return digest({name: value for name, value in values.items() if name != "content_hash"})


def first_of(error: ValidationError | RecursionError) -> str:
    """The first thing that is wrong with values, and where."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(printable(str(part)) for part in first["loc"]) or "the file"
    return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def opened(
    path: Path,
    kind: type[Sealed],
    what: str,
    version: int,
    remedy: str,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values,
) -> Sealed:
    """A sealed file, checked; `Damaged` names it and what is wrong, a newer schema than `version` is a `UserError`."""
    try:
        values = json.loads(path.read_bytes())
        given = values["schema_version"]
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
