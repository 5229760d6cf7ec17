"""List the differences between two records: first how they were made, then the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from unlearnbench import registry
from unlearnbench.leaderboard.tables import head, shown
from unlearnbench.metric import Metric
from unlearnbench.records.numerics import describe_numerics
from unlearnbench.records.provenance import flat
from unlearnbench.records.schema import TIMED, Record

NOTHING = "—"
COST = "time, memory"
OUTCOMES = ("area", "missing", "parts")
"""Parts of an attack's record that are results."""


class Difference(NamedTuple):
    """One thing that differs, as shown."""

    group: str
    what: str
    a: str
    b: str
    change: str = ""
    """b - a of a score, in its unit."""
    outcome: bool = False
    """Whether it is a result of an attack, not how the attack was made."""

    @property
    def cells(self) -> list[str]:
        """What, A, B and B - A, as tables show it."""
        return [self.what, self.a, self.b, self.change]


def record_differences(a: Record, b: Record) -> list[Difference]:
    """Every difference except the dates and revisions of the two; scores come last."""
    rows: list[Difference] = []
    sides = [{}, {}]  # type: list[dict[str, dict[str, Any]]]
    for side, record in zip(sides, (a, b), strict=True):
        for group, values in _parts(record):
            side.setdefault(group, {}).update(values)
    for group, left in sides[0].items():
        right = sides[1].get(group, {})
        for what in dict.fromkeys([*left, *right]):
            rows += _apart(group, what, left.get(what, NOTHING), right.get(what, NOTHING))
    return [*rows, *_scores(a, b), *_attacks(a, b)]


def alike(rows: list[Difference]) -> str | None:
    """Say what differs if the results are equal: times and memory, and perhaps the seed; else None."""
    groups = {row.group for row in rows}
    if groups - {COST, "seed"}:
        return None
    return "seed and times" if "seed" in groups else "times"


def _parts(record: Record) -> Iterator[tuple[str, dict[str, Any]]]:
    method, environment = record.method, record.environment
    yield "task", {"task": record.task, "concept": record.forget, "data": record.data}
    yield "seed", {str(name): seed for name, seed in record.seeds.items()}
    names = {"name": method.name, "division": method.division, "preset": method.preset}
    yield "method", {**names, "overrides": method.overrides or None, "requires": ", ".join(method.requires) or None}
    yield "tuned on", flat(method.selection.model_dump(mode="json")) if method.selection else {}
    yield "hyper-parameter", flat(method.settings)
    yield "protocol", {**flat(record.protocol.settings), "name": record.protocol.name, "hash": record.protocol.hash}
    yield "judge", {"name": record.judge.name, "version": record.judge.version, "hash": record.judge.hash}
    yield "judge", {"threshold": record.judge.threshold, "error": record.judge_error}
    for role, witness in sorted(record.witnesses.items()):
        yield "judge", {f"{role}, {part}": value for part, value in witness.model_dump(mode="json").items()}
    yield "judge", {"witnesses' error": record.witness_error}
    yield "weights", {str(name): hash for name, hash in record.weights.items()}
    codes = {name: score.code_hash for name, score in record.scores.items()}
    yield "code", {"method": method.code_hash, "engine": record.engine_hash, **codes}
    yield (
        "library",
        {
            "python": environment.get("python"),
            **(environment.get("packages") or {}),
            **(environment.get("seeing") or {}),
        },
    )
    about = (
        "device",
        "device_type",
        "threads",
        "precision",
        "memory",
        "compile",
        "nvidia_driver",
        "cuda_toolkit",
        "system",
    )
    yield "device", {name: environment.get(name) for name in about}
    yield "device", {"computed in": describe_numerics(environment.get("numerics")) or None}
    yield "commit", {"commit": environment.get("commit"), "uncommitted changes": environment.get("dirty")}
    yield "result", {"status": record.status, "reason": record.reason, "step": record.step}
    yield "result", {"per-image values": record.images}


def _apart(group: str, what: str, a: Any, b: Any, outcome: bool = False) -> Iterator[Difference]:
    """The difference of two values, if they differ; of two mappings one for each entry that does."""
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        left, right = (flat(value) if isinstance(value, Mapping) else {} for value in (a, b))
        for name in dict.fromkeys([*left, *right]):
            yield from _apart(group, f"{what}: {name}", left.get(name, NOTHING), right.get(name, NOTHING), outcome)
    elif a != b:
        texts = [_text(value) for value in (a, b)]
        if texts[0] == texts[1]:  # the difference is beyond the digits that are shown
            texts = [str(value) for value in (a, b)]
        yield Difference(group, what, texts[0], texts[1], outcome=outcome)


def _text(value: Any) -> str:
    """A value as shown: numbers with six digits, hashes with their first 12 characters."""
    if isinstance(value, float):
        return f"{value:.6g}" if not value.is_integer() else str(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_text, value))}]"
    text = "none" if value is None else str(value)
    return text[:12] if len(text) in (40, 64) and set(text) <= set("0123456789abcdef") else text


def _scores(a: Record, b: Record) -> Iterator[Difference]:
    metrics = registry.load_metrics()
    unknown = sorted((set(a.scores) | set(b.scores)) - set(metrics))
    for name in [*(name for name in metrics if name not in TIMED), *unknown, *TIMED]:
        left, right = a.scores.get(name), b.scores.get(name)
        group = COST if name in TIMED else "score"
        then, now = (None if score is None else score.value for score in (left, right))
        if then != now:
            yield Difference(group, *_shown(metrics.get(name), name, then, now))
        elif left and right:
            for part in ("n", "missing", "interval", "floor", "reason", "parts"):
                yield from _apart(group, f"{name}, {part}", getattr(left, part), getattr(right, part))


def _attacks(a: Record, b: Record) -> Iterator[Difference]:
    """Yield attacks that only one record has, and those with other results, settings or code."""
    for label in dict.fromkeys([*a.attacks, *b.attacks]):
        left, right = a.attacks.get(label), b.attacks.get(label)
        if left is None or right is None:
            states = ["not tried" if one is None else one.status for one in (left, right)]
            yield Difference("attack", label, states[0], states[1])
            continue
        if left.value != right.value:
            texts = [NOTHING if one.value is None else f"{100 * one.value:.1f}" for one in (left, right)]
            gap = None if left.value is None or right.value is None else 100 * (right.value - left.value)
            change = NOTHING if gap is None else f"{gap:+.1f}"
            yield Difference("attack", f"{label}, ASR (%)", texts[0], texts[1], change, outcome=True)
        for part in ("status", "area", "limit", "missing", "parts", "settings", "code_hash"):
            values = getattr(left, part), getattr(right, part)
            yield from _apart("attack", f"{label}, {part}", *values, outcome=part in OUTCOMES)


def _shown(metric: Metric | None, name: str, a: float | None, b: float | None) -> tuple[str, str, str, str]:
    """A score with both values and their difference, in the unit that tables show."""
    scale, digits = (metric.scale, metric.digits) if metric else (1.0, 6)
    gap = None if a is None or b is None else (b - a) * scale
    change = NOTHING if gap is None else f"{gap:+.{digits}f}"
    if gap is not None and not float(change):
        change = f"{gap:+.1g}"  # too small for the decimals shown
    if metric is None:
        left, right = (NOTHING if value is None else f"{value:.6g}" for value in (a, b))
        return name, left, right, change
    return head(metric), shown(metric, a), shown(metric, b), change
