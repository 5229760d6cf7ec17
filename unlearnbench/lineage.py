"""Which version of the project's code and weights a hash in a record belongs to."""

from __future__ import annotations

from functools import cache
from typing import Final, Literal

from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.hashing import source_hash

Kind = Literal["engine", "method", "metric", "attack", "judge", "original"]

PRESENT: Final = "present"
"""The version of the code that is running."""
UNKNOWN: Final = "unknown"
"""No version of the project has this hash."""


def lineage(kind: Kind, name: str, code_hash: str) -> str:
    """The version that a hash belongs to: `PRESENT`, the name of an older version, or `UNKNOWN`.

    `name` is that of the method, metric or attack; of an engine and of original weights the task's; of a judge the
    task's and the judge's own, as in "digits-class/digits-cnn".
    """
    return PRESENT if code_hash == present(kind, name) else UNKNOWN


def known(kind: Kind, name: str, code_hash: str) -> bool:
    """Whether any version of the project has this hash."""
    return lineage(kind, name, code_hash) != UNKNOWN


@cache
def present(kind: Kind, name: str) -> str | None:
    """The hash that a run made now would record; None where the name is not known, or needs files that are not here."""
    try:
        return _FINDERS[kind](name)
    except (UserError, OSError):
        return None


def _engine(task: str) -> str:
    from unlearnbench.stages import engine_hash

    return engine_hash(registry.load_task(task))


def _method(name: str) -> str:
    return source_hash(registry.load_method(name).sources()) if name in registry.methods() else ""


def _metric(name: str) -> str | None:
    from unlearnbench.stages import metric_code

    metric = registry.known_metric(name)
    return None if metric is None else metric_code(metric)


def _attack(name: str) -> str | None:
    from unlearnbench.stages import metric_code

    attack = registry.load_attacks().get(name)
    return None if attack is None else metric_code(attack)


def _judge(name: str) -> str | None:
    task, _, judge = name.partition("/")
    cls = registry.load_task(task)
    protocol = next((each for each in cls.protocols.values() if each.judge == judge), None)
    return None if protocol is None else cls(cls.default_forget, protocol=protocol.name).judge().hash


def _original(task: str) -> str:
    cls = registry.load_task(task)
    return cls(cls.default_forget).pretrained_identity()[0]


_FINDERS = {
    "engine": _engine,
    "method": _method,
    "metric": _metric,
    "attack": _attack,
    "judge": _judge,
    "original": _original,
}
