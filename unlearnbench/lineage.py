"""Which code is known to give equal numbers: fingerprints by version, from tables/fingerprints.json.

A version is raised by hand when numbers change on purpose. Code that was rewritten and gives the same numbers has
another fingerprint under the same version; `python -m tests.fingerprints` adds it after a run has shown that.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal

Kind = Literal["engine", "method", "metric", "attack", "judge", "original", "judge weights"]
"""An engine goes by its task's name, an original too; judges and their weights by the judge's."""
FILE = Path(__file__).parent / "tables" / "fingerprints.json"
SHORT = 8


@cache
def table() -> dict[str, dict[str, dict[str, list[str]]]]:
    """Kind -> name -> version -> hashes."""
    loaded: dict[str, dict[str, dict[str, list[str]]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return loaded


def version_of(kind: Kind, name: str, code_hash: str) -> int | None:
    """The version that a hash belongs to; None for code of others, or of an engine that is not known any more."""
    versions = table().get(kind, {}).get(name, {})
    return next((int(version) for version, hashes in versions.items() if code_hash in hashes), None)


def known(kind: Kind, name: str, code_hash: str) -> bool:
    """Whether a hash is one of this project's own."""
    return version_of(kind, name, code_hash) is not None


def newest(kind: Kind, name: str) -> int | None:
    """The present version; None for what is not this project's own."""
    return max(map(int, table().get(kind, {}).get(name, {})), default=None)


def lineage(kind: Kind, name: str, code_hash: str) -> str:
    """Equal for code that is known to give equal numbers: `esd v1`, or the hash itself."""
    version = version_of(kind, name, code_hash)
    return code_hash if version is None else f"{name} v{version}"


def brief(kind: Kind, name: str, code_hash: str) -> str:
    """The same for people: `v1`, or the first letters of the hash."""
    version = version_of(kind, name, code_hash)
    return code_hash[:SHORT] if version is None else f"v{version}"
