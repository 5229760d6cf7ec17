"""Which versions of code are known to give equal numbers."""

from __future__ import annotations


def lineage(kind: str, name: str, code_hash: str) -> str:
    """What names the version of some code: equal for all code that is known to give the same numbers.

    `kind` is "engine" (`name` is then the task's), "method", "metric", "judge" or "attack"; `code_hash` is the hash
    that a record keeps of it. Code of which nothing is known is a version of its own, named by its hash.
    """
    return code_hash
