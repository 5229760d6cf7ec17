"""Check where a record comes from: settings follow from preset and overrides, and hashes belong to a known version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.method import Method
from unlearnbench.records.lineage import Kind, owners, standing
from unlearnbench.records.numerics import check_numerics
from unlearnbench.records.provenance import flat
from unlearnbench.records.schema import Record
from unlearnbench.records.tuning import read_tuning, tuning_path
from unlearnbench.verification.finding import Issue, Note

NAMED = ("default", "published", "released", "tuned")
"""Presets that are divisions by themselves."""
EARLIEST = datetime(2020, 1, 1, tzinfo=timezone.utc)
"""No record of the project is older."""


def hashes(record: Record) -> Iterator[Issue]:
    """Check that engine, method, judge, original weights and metrics belong to a version of the project."""
    method = record.method.name
    found: list[tuple[str, Kind, str, str]] = [
        ("engine", "engine", record.task, record.engine_hash),
        ("judge", "judge weights", record.judge.name, record.judge.hash),
        ("original weights", "original", record.task, record.weights["original"] or ""),
    ]
    if method in registry.known_methods():
        found.append(("method", "method", method, record.method.code_hash))
    else:
        yield Note(f"the method {method} is not known here", "of a method that is not known here")
    found += [("metric", "metric", name, score.code_hash) for name, score in record.scores.items()]
    for what, kind, name, hash in found:
        known = standing(kind, name, hash)
        thing = f"{what} {name}" if what in ("method", "metric") else what
        if known == "unknown":
            yield Note(f"no version of its {thing} is {hash[:12]}", f"of unknown origin: {what}", strict=True)
        elif known == "older":
            yield Note(f"its {thing} is of an older version", f"of another version: {what}")


def check_identity(record: Record) -> Iterator[Issue]:
    """Check that names and seeds given twice agree."""
    if record.task not in registry.tasks():
        return
    settings = record.protocol.settings
    if record.judge.name != settings.get("judge"):
        yield f"its judge is {record.judge.name}, its protocol's is {settings.get('judge')}"
    if record.seeds["sampling"] != settings.get("sampling_seed"):
        yield f"its sampling seed is {record.seeds['sampling']}, its protocol's is {settings.get('sampling_seed')}"
    of = owners("method", record.method.code_hash)
    if of and record.method.name not in of:
        yield f"says that its method is {record.method.name}, but its code is that of {of[0]}"


def check_precision(record: Record) -> Iterator[Issue]:
    """Check that what a run and its attacks say they computed in is what their precision means."""
    precision = str(record.environment.get("precision") or "float32")
    recipe = "training recipe" in record.method.requires
    yield from check_numerics(record.environment.get("numerics"), precision, recipe)
    for label, attack in record.attacks.items():
        for issue in check_numerics(attack.made_with.get("numerics"), precision):
            yield f"{label}: {issue}"


@cache
def _loaded(name: str) -> type[Method]:
    return registry.load_method(name)


def created(record: Record, now: datetime | None = None) -> Iterator[Issue]:
    """Check that the date is valid and in the past."""
    try:
        when = datetime.fromisoformat(record.created)
    except ValueError:
        yield f"created is {record.created[:40]!r}, which is no date of ISO 8601"
        return
    if when.tzinfo is None:
        yield f"created is {record.created}, without a time zone"
    elif when > (now or datetime.now(timezone.utc)) + timedelta(days=1):
        yield f"created is {record.created}, in the future"
    elif when < EARLIEST:
        yield f"created is {record.created}, before {EARLIEST.year}"


def division(record: Record, results: Path) -> Iterator[Issue]:
    """Check the division and the settings against preset and overrides.

    A preset's settings are compared only if the method's code has the present version; earlier versions may have had
    others.
    """
    method = record.method
    meant = method.preset if method.preset in NAMED and not method.overrides else "custom"
    if method.division != meant:
        given = f"preset {method.preset}" + (
            f" and overrides {', '.join(method.overrides)}" if method.overrides else ""
        )
        yield f"its division is {method.division}, but {given} make it {meant}"
    if method.selection is not None and method.preset != "tuned":
        yield f"says what it was tuned on, but its preset is {method.preset}"
    if method.name not in registry.known_methods():
        return
    cls = _loaded(method.name)
    if cls.incomplete:
        return  # its settings name files
    wrong = {key: value for key, value in method.overrides.items() if method.settings.get(key, ...) != value}
    for key, value in wrong.items():
        yield f"is run with {key}={value} by its overrides, but {key} is {method.settings.get(key)} in its settings"
    if standing("method", method.name, method.code_hash) != "present":
        return
    if method.requires != tuple(sorted(cls.requires)):
        yield f"says that {method.name} needs {', '.join(method.requires) or 'nothing'}, which is not so"
    chosen = _preset(cls, record, results)
    if isinstance(chosen, dict):
        if isinstance(settings := _configured(cls, {**chosen, **method.overrides}), str):
            yield settings
        else:
            yield from _apart(record, cls, settings)
    elif chosen is not None:
        yield chosen


def _preset(cls: type[Method], record: Record, results: Path) -> dict[str, Any] | Issue | None:
    """A preset's settings, or the reason that they are unknown; None if `tuned` is checked with its tuning already."""
    method = record.method
    if method.preset != "tuned":
        try:
            return cls.preset(method.preset, record.task)
        except UserError as error:
            return str(error)
    path = tuning_path(results, record.task, method.name)
    if not path.is_file():
        return Note("the tuning of its settings is not here", "whose tuning is not here", strict=True)
    if not method.overrides:
        return None
    try:
        return read_tuning(path).settings
    except (UserError, OSError):
        return None  # named with the tunings


def _configured(cls: type[Method], settings: dict[str, Any]) -> dict[str, Any] | str:
    try:
        return json.loads(json.dumps(cls.configured(settings).settings()))
    except UserError as error:
        return str(error)


def _apart(record: Record, cls: type[Method], meant: dict[str, Any]) -> Iterator[Issue]:
    recorded, wanted = flat(cls.current(record.method.settings)), flat(meant)
    changed = ", ".join(
        f"{name} {recorded.get(name, '—')} there and {wanted.get(name, '—')} here"
        for name in dict.fromkeys([*recorded, *wanted])
        if recorded.get(name) != wanted.get(name)
    )
    if changed:
        label = "".join([record.method.preset, *(f"+{key}" for key in record.method.overrides)])
        yield f"its settings are not those of {record.method.name} {label} ({record.method.division}): {changed}"
