"""Look up which code is known to give equal numbers: fingerprints by version, in fingerprints.json.

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
"""Engines and originals go by their task's name, judges and judge weights by the judge's."""
Standing = Literal["present", "older", "unknown"]
FILE = Path(__file__).parent / "fingerprints.json"


@cache
def known_hashes() -> dict[str, dict[str, dict[str, list[str]]]]:
    """Kind -> name -> version -> hashes."""
    loaded: dict[str, dict[str, dict[str, list[str]]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return loaded


def version_of(kind: Kind, name: str, code_hash: str) -> int | None:
    """Return the version with this hash; None for code of other projects, or code that was never released."""
    versions = known_hashes().get(kind, {}).get(name, {})
    return next((int(version) for version, hashes in versions.items() if code_hash in hashes), None)


def standing(kind: Kind, name: str, code_hash: str) -> Standing:
    """Say whether a hash is of the present version, of an older one, or unknown."""
    version = version_of(kind, name, code_hash)
    if version is None:
        return "unknown"
    return "present" if version == max(map(int, known_hashes()[kind][name])) else "older"


def lineage(kind: Kind, name: str, code_hash: str) -> str:
    """Return a text that is equal for code known to give equal numbers: `v1`, or the hash itself."""
    version = version_of(kind, name, code_hash)
    return f"v{version}" if version else code_hash


@cache
def owners(kind: Kind, code_hash: str) -> list[str]:
    """List the names that have this hash in any version."""
    return [name for name in known_hashes().get(kind, {}) if version_of(kind, name, code_hash) is not None]
