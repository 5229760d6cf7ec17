"""Summarize attacks over the seeds of a method and against `retrain`: curves, excess, and the worst case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from unlearnbench import registry
from unlearnbench.attacks.base import STANDARD
from unlearnbench.attacks.spec import AttackSpec, standard_first
from unlearnbench.records.identity import attacked_alike, attacked_by
from unlearnbench.records.schema import AttackRecord, Record
from unlearnbench.statistics import Interval, clip_interval, difference, over_seeds

GOLD = "retrain"


class AttackResult(NamedTuple):
    """One attack on one method, over its seeds."""

    value: float | None
    """Mean ASR over seeds."""
    interval: Interval | None
    n: int
    """Targets of all seeds together."""
    missing: int
    area: float | None
    box: str
    reason: str | None
    """Why there is no value."""
    applies: bool
    sound: bool = True
    """Whether every seed has a value, and no target is missing."""
    excess: float | None = None
    """ASR minus that of retrain under the same attack; None without retrain."""
    excess_interval: Interval | None = None
    excess_area: float | None = None


NOT_TRIED = AttackResult(None, None, 0, 0, None, "", None, applies=True)
"""An attack that no run of a row was attacked with."""


class Worst(NamedTuple):
    """The worst case of the fixed ensemble."""

    value: float | None
    interval: Interval | None
    label: str | None
    """The attack with this worst case."""
    tried: int
    """Attacks of the ensemble with a reliable value, and with a comparison to retrain if others have one."""
    of: int
    """Attacks of the ensemble that the task allows, or may allow."""
    over_retrain: bool
    """Whether it is the excess over retrain; else it is plain ASR."""

    @property
    def bound(self) -> bool:
        """Whether it is a lower bound: an attack of the ensemble is missing and may find more."""
        return self.value is not None and self.tried < self.of


def found(records: Sequence[Record], label: str) -> list[AttackRecord]:
    """One attack's results by seed, those with the most common settings and code."""
    return [record.attacks[label] for record in attacked_alike(records, label)]


def curve(attacks: Iterable[AttackRecord]) -> list[tuple[float, float]]:
    """Recovered share against budget: (budget, share) wherever the share rises, over the targets of all seeds.

    Missing targets are left out; the last point is at the largest limit.
    """
    every = list(attacks)
    targets = [pair for each in every for pair in zip(each.recovered, each.spent, strict=True) if pair[0] is not None]
    if not targets:
        return []
    costs = sorted({0.0, *(cost for hit, cost in targets if hit), max(each.limit for each in every)})
    return [(cost, sum(bool(hit) and spent <= cost for hit, spent in targets) / len(targets)) for cost in costs]


def attack_result(records: Sequence[Record], gold: Sequence[Record], label: str) -> AttackResult | None:
    """Summarize one attack on one method; None where no run was attacked with it.

    `gold` are comparable runs of retrain (`identity.matching`). Those attacked with other settings or code are not
    used.
    """
    own = found(records, label)
    if not own:
        return None
    mine = _summary(own)
    if mine.value is not None and {record.label() for record in records} == {GOLD}:
        return mine._replace(excess=0.0, excess_area=0.0)
    by = attacked_by(label, own[0])
    tried = [record.attacks[label] for record in gold if label in record.attacks]
    floor = [each for each in tried if attacked_by(label, each) == by]
    if mine.value is None or not floor or (gold_one := _summary(floor)).value is None:
        return mine
    return mine._replace(
        excess=mine.value - gold_one.value,
        excess_interval=difference((mine.value, mine.interval), (gold_one.value, gold_one.interval)),
        excess_area=None if mine.area is None or gold_one.area is None else mine.area - gold_one.area,
    )


def _summary(own: Sequence[AttackRecord]) -> AttackResult:
    known = [each for each in own if each.value is not None]
    values = [each.value for each in known if each.value is not None]
    areas = [each.area for each in known if each.area is not None]
    first = own[0]
    reason = next((each.reason for each in own if each.value is None), None)
    if not values:
        missing = sum(each.missing for each in own)
        return AttackResult(None, None, first.n, missing, None, first.box, reason, first.applies, sound=False)
    same = all(each.recovered == known[0].recovered for each in known)  # methods without randomness are one run
    targets = [each.n - each.missing for each in known]
    interval = known[0].interval if same else clip_interval(over_seeds(values, None, targets), 0.0, 1.0)
    area = sum(areas) / len(areas) if areas else None
    missing = sum(each.missing for each in own)
    sound = all(each.status == "ok" for each in own)
    n = sum(each.n for each in own)
    return AttackResult(sum(values) / len(values), interval, n, missing, area, first.box, reason, True, sound)


@cache
def _boxes() -> dict[str, str]:
    return {name: attack.box for name, attack in registry.load_attacks().items()}


def box_of(label: str) -> str:
    """ "white" for an attack that uses the weights, "black" for one that uses only outputs, "" if unknown."""
    return _boxes().get(AttackSpec.parse(label).name, "")


def worst(every: Mapping[str, AttackResult | None], box: str | None = None) -> Worst | None:
    """Find the worst case of the fixed ensemble, over attacks with one kind of access or all; None if none was tried.

    It is the excess over retrain where there is one, else plain ASR. An attack that was skipped, failed, or was not
    tried on the method or on retrain makes it a lower bound; one that the task does not allow is left out.
    """
    asked = [label for label in STANDARD if box in (None, box_of(label))]
    tried = {label: each for label in asked if (each := every.get(label))}
    allowed = {label: each for label, each in tried.items() if each.applies}
    known = {label: each for label, each in allowed.items() if each.value is not None}
    if not tried or not allowed:
        return None
    of = len(allowed) + len(asked) - len(tried)
    if not known:
        return Worst(None, None, None, 0, of, False)
    over = any(each.excess is not None for each in known.values())
    known = {label: each for label, each in known.items() if not over or each.excess is not None}
    values = {label: (each.excess if over else each.value) or 0.0 for label, each in known.items()}
    label = max(values, key=lambda name: values[name])
    interval = known[label].excess_interval if over else known[label].interval
    return Worst(values[label], interval, label, sum(each.sound for each in known.values()), of, over)


def attack_labels(records: Iterable[Record]) -> list[str]:
    """Every attack of these records, those of the ensemble first."""
    return standard_first(label for record in records for label in record.attacks)


def of_row(records: Sequence[Record], gold: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    """The fields of a `BoardRow` about attacks: results by label, worst cases by access, and the runs attacked."""
    every = {label: attack_result(records, gold, label) for label in names}
    tried = [record for record in records if record.attacks]
    ua = [score.value for record in tried if (score := record.scores.get("ua")) and score.value is not None]
    return {
        "attacked_n": len(tried),
        "attacked_ua": sum(ua) / len(ua) if ua else None,
        "attacks": {label: result or NOT_TRIED for label, result in every.items()},
        "worst": {box: worst(every, box) for box in (None, "white", "black")},
    }
