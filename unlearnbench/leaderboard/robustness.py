"""What attacks found, over the seeds of a method and against `retrain`: curves, excess, and the worst case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from unlearnbench import registry
from unlearnbench.attacks.base import STANDARD
from unlearnbench.attacks.spec import AttackSpec, standard_first
from unlearnbench.records.identity import attacked_alike, attacked_by
from unlearnbench.records.schema import AttackRecord, Record
from unlearnbench.statistics import Interval, difference, over_seeds, within

GOLD = "retrain"


class Fought(NamedTuple):
    """One attack on one method, over its seeds."""

    value: float | None
    """ASR, mean over seeds."""
    interval: Interval | None
    n: int
    """Targets, in all seeds together."""
    missing: int
    area: float | None
    box: str
    reason: str | None
    """Why there is no value."""
    applies: bool
    sound: bool = True
    """Whether every seed has a value, and no target is missing."""
    excess: float | None = None
    """ASR less that of retrain under the same attack; None where there is no retrain."""
    excess_interval: Interval | None = None
    excess_area: float | None = None


class Worst(NamedTuple):
    """The worst case of the fixed ensemble."""

    value: float | None
    interval: Interval | None
    label: str | None
    """The attack that it is of."""
    tried: int
    """Attacks of the ensemble that have a value that can be relied on, and compared with retrain's if others can."""
    of: int
    """Attacks of the ensemble that the task allows, or that are not known to be forbidden by it."""
    over_retrain: bool
    """Whether it is the excess over retrain; else it is plain ASR."""

    @property
    def bound(self) -> bool:
        """Whether it is a lower bound: an attack of the ensemble is missing, and could have found more."""
        return self.value is not None and self.tried < self.of


def found(records: Sequence[Record], label: str) -> list[AttackRecord]:
    """One attack's results by seed, those of the settings and code that most have."""
    return [record.attacks[label] for record in attacked_alike(records, label)]


def curve(attacks: Iterable[AttackRecord]) -> list[tuple[float, float]]:
    """Recovered share against budget: (budget, share) wherever the share rises, all seeds' targets together.

    Missing targets are left out; the last point is at the greatest limit.
    """
    every = list(attacks)
    targets = [pair for each in every for pair in zip(each.recovered, each.spent, strict=True) if pair[0] is not None]
    if not targets:
        return []
    costs = sorted({0.0, *(cost for hit, cost in targets if hit), max(each.limit for each in every)})
    return [(cost, sum(bool(hit) and spent <= cost for hit, spent in targets) / len(targets)) for cost in costs]


def fought(records: Sequence[Record], gold: Sequence[Record], label: str) -> Fought | None:
    """One attack on one method; None where no run of it was attacked like this.

    `gold`: runs of retrain that were measured as these (`identity.matching`). Those that were attacked with other
    settings or code are no floor.
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


def _summary(own: Sequence[AttackRecord]) -> Fought:
    known = [each for each in own if each.value is not None]
    values = [each.value for each in known if each.value is not None]
    areas = [each.area for each in known if each.area is not None]
    first = own[0]
    reason = next((each.reason for each in own if each.value is None), None)
    if not values:
        missing = sum(each.missing for each in own)
        return Fought(None, None, first.n, missing, None, first.box, reason, first.applies, sound=False)
    same = all(each.recovered == known[0].recovered for each in known)  # methods without randomness are one run
    targets = [each.n - each.missing for each in known]
    interval = known[0].interval if same else within(over_seeds(values, None, targets), 0.0, 1.0)
    area = sum(areas) / len(areas) if areas else None
    missing = sum(each.missing for each in own)
    sound = all(each.status == "ok" for each in own)
    n = sum(each.n for each in own)
    return Fought(sum(values) / len(values), interval, n, missing, area, first.box, reason, True, sound)


@cache
def _boxes() -> dict[str, str]:
    return {name: attack.box for name, attack in registry.load_attacks().items()}


def box_of(label: str) -> str:
    """Whether an attack has the weights ("white") or answers alone ("black"); "" for one that is not known here."""
    return _boxes().get(AttackSpec.parse(label).name, "")


def worst(every: Mapping[str, Fought | None], box: str | None = None) -> Worst | None:
    """The worst case of the attacks in the fixed ensemble, of one kind of access or of all; None where none was tried.

    The excess over retrain counts where there is any, else plain ASR. An attack that was skipped, failed, not tried on
    the method or not on retrain makes it a lower bound; one that the task does not allow is left out.
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


def labels(records: Iterable[Record]) -> list[str]:
    """Every attack of these records, those of the ensemble first."""
    return standard_first(label for record in records for label in record.attacks)


def columns(records: Sequence[Record], gold: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    """What a board's row says of attacks: for each label its ASR, interval, area and excess; the worst cases.

    `attacked_n` runs were attacked, and `attacked_ua` is the UA of those alone.
    """
    every = {label: fought(records, gold, label) for label in names}
    tried = [record for record in records if record.attacks]
    ua = [score.value for record in tried if (score := record.scores.get("ua")) and score.value is not None]
    row: dict[str, Any] = {"attacked_n": len(tried), "attacked_ua": sum(ua) / len(ua) if ua else None}
    for label, each in every.items():
        nothing = Fought(None, None, 0, 0, None, "", None, True)
        one = each or nothing
        low, high = one.interval or (None, None)
        below, above = one.excess_interval or (None, None)
        row |= {label: one.value, f"{label}_low": low, f"{label}_high": high, f"{label}_n": one.n}
        row |= {f"{label}_why": one.reason, f"{label}_applies": one.applies}
        row |= {f"{label}_missing": one.missing, f"{label}_area": one.area, f"{label}_excess": one.excess}
        row |= {f"{label}_excess_low": below, f"{label}_excess_high": above, f"{label}_excess_area": one.excess_area}
    for column, box in (("robustness", None), ("robustness_white", "white"), ("robustness_black", "black")):
        most = worst(every, box)
        low, high = (most.interval if most else None) or (None, None)
        row |= {column: most.value if most else None, f"{column}_low": low, f"{column}_high": high}
        row |= {f"{column}_n": most.tried if most else 0, f"{column}_of": most.of if most else 0}
        row |= {f"{column}_by": most.label if most else None, f"{column}_bound": bool(most and most.bound)}
        row |= {f"{column}_over_retrain": bool(most and most.over_retrain)}
    return row
