"""Which code is known to give equal numbers: fingerprints by version, from tables/fingerprints.json.

A version is raised by hand when numbers change on purpose. Code that was rewritten and gives the same numbers has
another fingerprint under the same version; `python -m tests.studies.fingerprints` adds it after runs have shown that.
Records before schema 6 hold hashes of files: those of the last commit before fingerprints stand under version 1, since
runs gave equal numbers; older ones are version 0, which are known, but not to be equal to one another.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal

Kind = Literal["engine", "method", "metric", "attack", "judge", "original", "judge weights"]
"""An engine goes by its task's name, an original too; judges and their weights by the judge's."""
Standing = Literal["present", "older", "unknown"]
FILE = Path(__file__).parents[1] / "tables" / "fingerprints.json"


@cache
def table() -> dict[str, dict[str, dict[str, list[str]]]]:
    """Kind -> name -> version -> hashes."""
    loaded: dict[str, dict[str, dict[str, list[str]]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return loaded


def version_of(kind: Kind, name: str, code_hash: str) -> int | None:
    """The version that a hash belongs to; None for code that is not this project's, or was never released."""
    versions = table().get(kind, {}).get(name, {})
    return next((int(version) for version, hashes in versions.items() if code_hash in hashes), None)


def standing(kind: Kind, name: str, code_hash: str) -> Standing:
    """Whether a hash is of the present version, of an older one, or of none that is known."""
    version = version_of(kind, name, code_hash)
    if version is None:
        return "unknown"
    return "present" if version == max(map(int, table()[kind][name])) else "older"


def lineage(kind: Kind, name: str, code_hash: str) -> str:
    """Equal for code that is known to give equal numbers: `esd v1`, or the hash itself."""
    version = version_of(kind, name, code_hash)
    return f"{name} v{version}" if version else code_hash


@cache
def owners(kind: Kind, code_hash: str) -> list[str]:
    """The names that have this hash in any version."""
    return [name for name in table().get(kind, {}) if version_of(kind, name, code_hash) is not None]
