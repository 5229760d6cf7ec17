"""Identify what a record measured. Runs are pooled, anchored, compared and replaced by identity, not by label alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench import registry
from unlearnbench.attacks.spec import AttackSpec
from unlearnbench.records.lineage import Kind, lineage, standing
from unlearnbench.records.numerics import trained_in_tf32
from unlearnbench.records.schema import AttackRecord, Record

if TYPE_CHECKING:
    from unlearnbench.method import Method

SHORT = 8
"""Characters of a hash that are shown, unless more are needed to tell two apart."""
NONE = "none"


class Identity(NamedTuple):
    """Everything that must be equal for two runs to be seeds of the same thing. The device is not part of it.

    A metric's code is not part of it either: it is compared score by score (`measured_by`).
    """

    task: str
    protocol: str
    """Name and hash."""
    forget: str
    label: str
    """Method, preset and overrides."""
    original: str
    """Hash of the weights that unlearning starts from."""
    data: str
    """Hash of the data read besides the weights, or "none"."""
    judge: str
    """Name, version, hash and threshold of the judge and of each witness, as JSON."""
    engine: str
    """Version of the code that all methods of the task share."""
    code: str
    """Version of the method's own code."""
    settings: str
    """All hyper-parameters, as JSON."""
    precision: str
    """Floating-point format, whether the optimiser keeps 8 bits, and whether convolutions were trained in TF32."""
    division: str
    access: str
    """Data that the method needs from the task."""

    @property
    def table(self) -> tuple[str, str, str]:
        """Task, protocol and concept, which all runs of one table share."""
        return self.task, self.protocol, self.forget

    @property
    def conditions(self) -> tuple[str, ...]:
        """Everything that two methods must share for their scores to be comparable."""
        return (*self.table, self.original, self.data, self.judge, self.engine)


CONDITIONS = ("original", "data", "judge", "engine")
"""Parts in which rows of one table may differ, but which must agree for a comparison."""
OF_METHOD = ("code", "settings", "precision", "division", "access")
NAMES = {
    "protocol": "protocol",
    "original": "original",
    "data": "data",
    "judge": "judge",
    "engine": "engine version",
    "code": "method code",
    "settings": "settings",
    "precision": "precision",
    "division": "division",
    "access": "access",
}
"""Names of the parts in messages."""
IMPLIED = ("division", "access")
"""Parts that are named only where nothing else differs, since code or settings determine them."""


def record_identity(record: Record) -> Identity:
    """Return a record's identity."""
    method, environment = record.method, record.environment
    return Identity(
        task=record.task,
        protocol=f"{record.protocol.name} {record.protocol.hash}",
        forget=record.forget,
        label=record.label(),
        original=_original(record),
        data=record.data or NONE,
        judge=_json(_judges(record)),
        engine=lineage("engine", record.task, record.engine_hash),
        code=lineage("method", method.name, method.code_hash),
        settings=_json(_settings(method.name, method.settings)),
        precision=_precision(environment),
        division=method.division,
        access=", ".join(method.requires) or NONE,
    )


def _precision(environment: dict[str, Any]) -> str:
    said = environment.get("precision") or "fp32"
    eight = " with adam8bit" if "adam8bit" in (environment.get("memory") or ()) else ""
    return f"{said}{eight}{' trained in TF32' if trained_in_tf32(environment) else ''}"


def _original(record: Record) -> str:
    found = record.weights.get("original")
    return NONE if found is None else lineage("original", record.task, found)


def _settings(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that a built-in method no longer has and that never had another value."""
    return _built_in(method).current(settings) if method in registry.known_methods() else settings


@cache
def _built_in(method: str) -> type[Method]:
    return registry.load_method(method)


def same_run(then: Record, now: Record, metrics: Mapping[str, str]) -> bool:
    """Whether a record is of the very run that `now` drafts, scored by metrics of these code hashes.

    Either its key says so, or all that the key is made of is equal or known to give equal numbers (see `lineage`).
    """
    if then.key == now.key:
        return True
    surroundings = ("device_type", "precision", "memory", "compile")
    alike = all(then.environment.get(name) == now.environment.get(name) for name in surroundings)
    if not alike or then.seeds != now.seeds or record_identity(then) != record_identity(now):
        return False
    if then.status not in ("ok", "unreliable"):
        return True
    return all(measured_by(then, name) == lineage("metric", name, code) for name, code in metrics.items())


def _judges(record: Record) -> dict[str, Any]:
    """The judge and its witnesses, as far as they may differ."""
    found: dict[str, Any] = {}
    every: list[tuple[str, Any]] = [("judge", record.judge), *sorted(record.witnesses.items())]
    for role, one in every:
        about = {"": one.hash, " name": one.name, " version": one.version}
        found |= {f"{role}{part}": value for part, value in {**about, " threshold": one.threshold}.items()}
    return found


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)


def group_records(records: Iterable[Record]) -> dict[Identity, list[Record]]:
    """Group records by identity, in the order in which they come."""
    groups: dict[Identity, list[Record]] = {}
    for record in records:
        groups.setdefault(record_identity(record), []).append(record)
    return groups


def older_parts(record: Record) -> list[str]:
    """List the parts of this project that were older than the present version when the record was made.

    For example `["engine", "method", "metrics"]`. Code that this project does not know, such as that of other
    packages, is not listed; `validate` reports it.
    """
    method, judge = record.method, record.judge
    parts: list[tuple[str, Kind, str, str]] = [
        ("engine", "engine", record.task, record.engine_hash),
        ("method", "method", method.name, method.code_hash),
        ("judge", "judge weights", judge.name, judge.hash),
        ("original", "original", record.task, record.weights.get("original") or ""),
    ]
    parts += [("metrics", "metric", name, score.code_hash) for name, score in record.scores.items()]
    return list(dict.fromkeys(what for what, kind, name, hash in parts if standing(kind, name, hash) == "older"))


def older_flag(records: Iterable[Record]) -> str:
    """Return `other version: engine, method` for records made with older versions of these parts, else ""."""
    parts = dict.fromkeys(part for record in records for part in older_parts(record))
    return f"other version: {', '.join(parts)}" if parts else ""


# ---- names ---------------------------------------------------------------------------------------------------------


def suffixes(identities: Iterable[Identity]) -> dict[Identity, str]:
    """Map each identity to what distinguishes it from others with its label and table; "" where there are none.

    For example `original 3fa2b1c0` or `code 91ab23cd; settings lr=0.001`. No two suffixes are equal.
    """
    families: dict[tuple[Any, ...], list[Identity]] = {}
    for one in dict.fromkeys(identities):
        families.setdefault((*one.table, one.label), []).append(one)
    named: dict[Identity, str] = {}
    for family in families.values():
        if len(family) == 1:
            named[family[0]] = ""
            continue
        parts = [name for name in (*CONDITIONS, *OF_METHOD) if len({getattr(one, name) for one in family}) > 1]
        parts = [name for name in parts if name not in IMPLIED] or parts
        words = {name: _words(name, [getattr(one, name) for one in family]) for name in parts}
        texts = ["; ".join(text for name in parts if (text := words[name][place])) for place in range(len(family))]
        named |= dict(zip(family, _distinct(texts), strict=True))
    return named


def unique_labels(identities: Iterable[Identity]) -> dict[Identity, str]:
    """Map each identity to a name that is unique in its table: the label, with a suffix where needed."""
    return {one: f"{one.label} ({more})" if more else one.label for one, more in suffixes(identities).items()}


def strip_suffix(label: str) -> str:
    """Return the label without the suffix that `unique_labels` added."""
    return label.partition(" (")[0]


def _words(part: str, values: Sequence[str]) -> list[str]:
    """Name each value of one part."""
    if part == "judge":
        return _entries(values, lambda name, value: f"{name} {value}")
    if part == "settings":
        texts = _entries(values, lambda name, value: f"{name}={value}", " ")
        return [f"settings {text}" if text else "settings without them" for text in texts]
    if part == "protocol":
        names, hashes = zip(*(value.rsplit(" ", 1) for value in values), strict=True)
        return [f"protocol {name} {hash}" for name, hash in zip(names, _shortened(hashes), strict=True)]
    return [f"{part} {value}" for value in _shortened(values)]


def _entries(values: Sequence[str], shown: Callable[[str, str], str], between: str = "; ") -> list[str]:
    """Name JSON objects by the entries that differ, without commas, because these separate names in options."""
    every = [json.loads(value) for value in values]
    names = sorted({name for one in every for name in one})
    differ = [name for name in names if len({_json({name: one.get(name)}) for one in every}) > 1]
    columns = {name: _shortened([_plainly(one[name]) if name in one else NONE for one in every]) for name in differ}
    return [between.join(shown(name, columns[name][place]) for name in differ) for place in range(len(every))]


def _plainly(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace(", ", " ").replace(",", " ")


def _shortened(values: Sequence[str]) -> list[str]:
    """Shorten hashes to as many characters as tell them apart; leave other texts as they are."""
    for length in (SHORT, 12, 16, 64):
        short = [value[:length] if _is_hash(value) else value for value in values]
        if len(set(short)) == len(set(values)):
            return short
    return list(values)


def _is_hash(value: str) -> bool:
    return re.fullmatch(r"[0-9A-Za-z]{40,}", value) is not None


def _distinct(texts: Sequence[str]) -> list[str]:
    """Add a number to equal texts that stand for different things."""
    return [f"{text} [{texts[:place].count(text) + 1}]" if texts.count(text) > 1 else text
            for place, text in enumerate(texts)]  # fmt: skip


# ---- differences ---------------------------------------------------------------------------------------------------


def describe_differences(then: Identity, now: Identity, between: str = ", ", parts: Sequence[str] = ()) -> list[str]:
    """Describe how two identities differ, with both values: `method code (91ab23cd, 5c01d2e3)`.

    Compares everything but task, concept and label, or only the given `parts`.
    """
    asked = parts or ("protocol", *CONDITIONS, *OF_METHOD)
    found = [name for name in asked if getattr(then, name) != getattr(now, name)]
    found = [name for name in found if name not in IMPLIED] or found
    texts = []
    for name in found:
        pair = _words(name, [getattr(then, name), getattr(now, name)])
        first, second = (text.removeprefix(f"{name} ") for text in pair)
        texts.append(f"{NAMES[name]} ({first}{between}{second})")
    return texts


def matching(records: Iterable[Record], like: Record, control: str) -> tuple[list[Record], str | None]:
    """Find a control's runs that are comparable with a record; if there are none although others exist, say why.

    They have the control's default settings and the record's task, protocol, concept, original, data, judge and engine
    version. If there are several versions of such a control, the one with the most runs counts; of equally many, the
    newest.
    """
    own = record_identity(like)
    found = [
        (one, record)
        for record in records
        for one in [record_identity(record)]
        if one.table == own.table and one.label == control and one.division == "default"
    ]
    fitting = [(one, record) for one, record in found if one.conditions == own.conditions]
    if fitting:
        of = {id(record): one for one, record in fitting}
        return largest([record for _, record in fitting], lambda record: of[id(record)]), None
    if not found:
        return [], None
    apart = [[name for name in CONDITIONS if getattr(one, name) != getattr(own, name)] for one, _ in found]
    lacks = min(apart, key=len)
    return [], f"{control} is of another {' and '.join(NAMES[name] for name in lacks)}"


# ---- what agrees within a row --------------------------------------------------------------------------------------


def largest(records: Sequence[Record], version: Callable[[Record], Hashable]) -> list[Record]:
    """Return the largest set of records with one version, of equally large sets the newest; skip version None."""
    sets: dict[Hashable, list[Record]] = {}
    for record in records:
        if (found := version(record)) is not None:
            sets.setdefault(found, []).append(record)
    return max(sets.values(), key=lambda some: (len(some), max(one.created for one in some)), default=[])


def measured_by(record: Record, metric: str) -> str | None:
    """Return the version of a metric's code that scored a record; None where it has no such score."""
    score = record.scores.get(metric)
    return None if score is None else lineage("metric", metric, score.code_hash)


def attacked_by(label: str, attack: AttackRecord) -> tuple[str, str]:
    """Return settings and version of an attack's code."""
    return _json(attack.settings), lineage("attack", AttackSpec.parse(label).name, attack.code_hash)


def scored_alike(records: Sequence[Record], metric: str) -> list[Record]:
    """Return the records whose values of a metric can be pooled: most of those scored by one version of its code."""
    return largest(records, lambda record: measured_by(record, metric))


def attacked_alike(records: Sequence[Record], label: str) -> list[Record]:
    """Return the records whose results of an attack can be pooled: most of those with equal settings and code."""

    def version(record: Record) -> Hashable:
        return attacked_by(label, record.attacks[label]) if label in record.attacks else None

    return largest(records, version)


def left_out(records: Sequence[Record]) -> list[str]:
    """List results that are not pooled over the seeds of a row because they were measured differently from most.

    For example `ua: seeds 1 of other metric code left out`.
    """
    lost: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    pools: list[tuple[str, str, list[Record], list[Record]]] = []
    for name in dict.fromkeys(name for record in records for name in record.scores):
        having = [record for record in records if name in record.scores]
        pools.append((name, "metric code", having, scored_alike(records, name)))
    for name in dict.fromkeys(name for record in records for name in record.attacks):
        having = [record for record in records if name in record.attacks]
        pools.append((name, "attack code or settings", having, attacked_alike(records, name)))
    for name, what, having, kept in pools:
        ids = {id(record) for record in kept}
        seeds = tuple(record.seeds["unlearning"] for record in having if id(record) not in ids)
        if seeds:
            lost.setdefault((what, seeds), []).append(name)
    return [
        f"{_few(names)}: seeds {', '.join(map(str, seeds))} of other {what} left out"
        for (what, seeds), names in lost.items()
    ]


def _few(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
