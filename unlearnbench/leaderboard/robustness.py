"""Summarize attacks over the seeds of a method and against `retrain`: curves, excess, and the worst case."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from unlearnbench import registry
from unlearnbench.attacks.base import STANDARD
from unlearnbench.attacks.spec import AttackSpec, standard_first
from unlearnbench.records.identity import attacked_alike, attacked_by
from unlearnbench.records.schema import AttackRecord, Record
from unlearnbench.statistics import (
    Estimated,
    Interval,
    clip_interval,
    difference,
    over_seeds,
    over_targets,
    share_of_ceiling,
    simultaneous,
    t_at,
    wider,
)

GOLD = "retrain"
FLOOR_RUNS = 3
"""Runs of retrain that a floor needs before ranks rest on it."""
FULL_RUNS, FULL_TARGETS = 3, 100
"""Runs and targets of each that attacks should have; tables say where there are fewer."""
LEAST_CEILING = 0.1
"""An attack that leaves less than this above retrain's ASR tells nothing, and is left out of the worst case."""

Hits = Mapping[int, tuple[bool | None, ...]]
"""Whether each target was recovered, by unlearning seed; None is missing."""


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
    floor: float | None = None
    """Retrain's ASR; the ceiling of the excess is 1 minus it."""
    share: float | None = None
    """Excess as a share of its ceiling: 1 if every target is recovered, 0 if no more than of retrain."""
    share_interval: Interval | None = None
    hits: Hits = {}
    """Of the runs with a value; equal runs once."""
    floor_hits: Hits = {}
    """Of retrain's runs with a value, under the same attack; equal runs once."""

    @property
    def ceiling(self) -> float | None:
        """The largest possible excess."""
        return None if self.floor is None else 1 - self.floor

    @property
    def saturated(self) -> bool:
        """Whether retrain is recovered so often that the excess of others tells nothing."""
        return self.ceiling is not None and self.ceiling < LEAST_CEILING - 1e-9

    @property
    def targets(self) -> int:
        """Targets of one run, the fewest if runs differ."""
        return min(map(len, self.hits.values()), default=0)


NOT_TRIED = AttackResult(None, None, 0, 0, None, "", None, applies=True)
"""An attack that no run of a row was attacked with."""


class Worst(NamedTuple):
    """The worst case of the fixed ensemble."""

    value: float | None
    """Share of the ceiling, or plain ASR; corrected for being the largest of several (see `worst`)."""
    interval: Interval | None
    label: str | None
    """The attack with this worst case."""
    tried: int
    """Attacks of the ensemble with a reliable value, and with a comparison to retrain if others have one."""
    of: int
    """Attacks of the ensemble that the task allows, or may allow."""
    over_retrain: bool
    """Whether it is over retrain; else it is plain ASR."""
    largest: float | None = None
    """The same of the attack `label` over all targets, without the correction."""
    excess: float | None = None
    """ASR minus retrain's, corrected; `value` is this as a share of `ceiling`."""
    ceiling: float | None = None
    """1 minus retrain's ASR, under the same attacks."""
    runs: int = 0
    """Runs under attack; of several attacks the fewest."""
    targets: int = 0
    """Targets of one run; of several attacks the fewest."""
    floor_runs: int = 0
    """Runs of retrain that floors are from; of several attacks the fewest."""
    left_out: tuple[str, ...] = ()
    """Attacks that recover too much from retrain to tell anything."""

    @property
    def bound(self) -> bool:
        """Whether it is a lower bound: an attack of the ensemble is missing and may find more."""
        return self.value is not None and self.tried < self.of

    @property
    def rankable(self) -> bool:
        """Whether its floor is of enough runs for a rank with an interval."""
        return self.over_retrain and self.floor_runs >= FLOOR_RUNS


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
    runs = attacked_alike(records, label)
    own = [record.attacks[label] for record in runs]
    if not own:
        return None
    mine = _summary(own)._replace(hits=_hits(runs, label))
    if mine.value is not None and {record.label() for record in records} == {GOLD}:
        return mine._replace(excess=0.0, excess_area=0.0, floor=mine.value, share=0.0)
    by = attacked_by(label, own[0])
    floor_runs = [run for run in gold if label in run.attacks and attacked_by(label, run.attacks[label]) == by]
    if not floor_runs:
        return mine
    gold_one = _summary([run.attacks[label] for run in floor_runs])
    if gold_one.value is None:
        return mine
    mine = mine._replace(floor=gold_one.value, floor_hits=_hits(floor_runs, label))
    if mine.value is None:
        return mine
    both = (mine.value, mine.interval), (gold_one.value, gold_one.interval)
    excess = mine.value - gold_one.value
    return mine._replace(
        excess=excess,
        excess_interval=difference(*both),
        excess_area=None if mine.area is None or gold_one.area is None else mine.area - gold_one.area,
        share=excess / (1 - gold_one.value) if gold_one.value < 1 else None,
        share_interval=share_of_ceiling(*both),
    )


def distinct(records: Iterable[Record]) -> list[Record]:
    """Keep one of the runs whose images are bit for bit equal: seeds of a method without randomness are one run."""
    first: dict[str, Record] = {}
    for number, record in enumerate(records):
        first.setdefault(record.images or f"run {number}", record)
    return list(first.values())


def _hits(runs: Sequence[Record], label: str) -> Hits:
    known = distinct(run for run in runs if run.attacks[label].value is not None)
    return {run.seeds["unlearning"]: run.attacks[label].recovered for run in known}


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


def worst(
    every: Mapping[str, AttackResult | None],
    box: str | None = None,
    left_out: Collection[str] = (),
    comparisons: int = 1,
) -> Worst | None:
    """Find the worst case of the fixed ensemble, over attacks with one kind of access or all; None if none was tried.

    It is the share of the ceiling over retrain where there is a retrain, else plain ASR. The largest of several
    estimates is too large on average, so it is cross-fitted: the attack is chosen on every other target and its ASR,
    and retrain's, are taken from the rest, then the other way round, and the share follows from the means of both. That
    does not overestimate the worst attack on average (van Hasselt, "Estimating the Maximum Expected Value: An Analysis
    of (Nested) Cross Validation and the Maximum Sample Average", 2013, arXiv:1302.7175). If both halves choose the same
    attack, it is this attack's share over all targets. `label` is the worst attack on all targets.

    The interval is for the truly worst attack and holds two parts. Over targets, every attack has an interval, and all
    of them hold together (Bonferroni), so that the worst lies between the largest low and the largest high end. Over
    seeds, of the method and of retrain, it is Student's t on the runs' cross-fitted ASR, from which the choice is
    already removed. The wider end counts, as in `over_seeds`.

    An attack that was skipped, failed, or was not tried on the method or on retrain makes it a lower bound. One that
    the task does not allow is left out, and so is one that recovers more than nine in ten targets of retrain, or is in
    `left_out`.

    Args:
        every: Results by label.
        box: Access that the attacks have: "white", "black" or any.
        left_out: Attacks that recover too much from retrain (`saturated_attacks`), tried on this method or not.
        comparisons: Number of worst cases whose intervals are to hold together.
    """
    asked = [label for label in STANDARD if box in (None, box_of(label))]
    out = {label for label in asked if label in left_out or ((found := every.get(label)) and found.saturated)}
    asked = [label for label in asked if label not in out]
    tried = {label: each for label in asked if (each := every.get(label))}
    allowed = {label: each for label, each in tried.items() if each.applies}
    known = {label: each for label, each in allowed.items() if each.value is not None}
    named = tuple(label for label in STANDARD if label in out)
    if not allowed:
        return Worst(None, None, None, 0, 0, False, left_out=named) if named else None
    of = len(allowed) + len(asked) - len(tried)
    if not known:
        return Worst(None, None, None, 0, of, False, left_out=named)
    over = any(each.share is not None for each in known.values())
    known = {label: each for label, each in known.items() if not over or each.share is not None}
    values = {label: (each.share if over else each.value) or 0.0 for label, each in known.items()}
    label = max(values, key=lambda name: values[name])
    fit = None
    if not over or any(each.floor_hits for each in known.values()):  # else it is retrain itself
        of_attack = Contest.against_retrain if over else Contest.alone
        fit = cross_fitted({name: of_attack(each) for name, each in known.items()}, comparisons)
    worst_one = known[label]
    return Worst(
        values[label] if fit is None else fit.value,
        None if fit is None else fit.interval,
        label,
        sum(each.sound for each in known.values()),
        of,
        over,
        largest=values[label],
        excess=None if not over else worst_one.excess if fit is None else fit.own - fit.floor,
        ceiling=None if not over else worst_one.ceiling if fit is None else 1 - fit.floor,
        runs=min(len(each.hits) for each in known.values()),
        targets=min(each.targets for each in known.values()),
        floor_runs=min(len(each.floor_hits or each.hits) for each in known.values()) if over else 0,
        left_out=named,
    )


class TargetHits(NamedTuple):
    """Hits of the method, or of retrain, under one attack."""

    hits: np.ndarray
    """(runs, targets): 1, 0, or NaN where missing; runs with fewer targets than others miss the rest."""
    seeds: list[int]

    @classmethod
    def of(cls, hits: Hits) -> TargetHits:
        """Make arrays of results by seed."""
        longest = max(map(len, hits.values()), default=0)
        rows = [[np.nan if hit is None else float(hit) for hit in row] for row in hits.values()]
        return cls(np.array([[*row, *[np.nan] * (longest - len(row))] for row in rows]), list(hits))

    def rates(self, half: int) -> np.ndarray:
        """(runs,) share of hits over every other target; NaN where none of them is known."""
        some = self.hits[:, half::2]
        counts = (~np.isnan(some)).sum(axis=1)
        return np.where(counts > 0, np.nansum(some, axis=1) / np.maximum(counts, 1), np.nan)

    def estimate(self, level: float) -> Estimated:
        """ASR, and its interval over other targets."""
        return float(np.nanmean(self.hits)), over_targets(self.hits, level)


class Contest(NamedTuple):
    """One attack on a method, and on retrain unless the worst case is plain ASR."""

    own: TargetHits
    floor: TargetHits | None

    @classmethod
    def against_retrain(cls, found: AttackResult) -> Contest:
        """The attack with its floor."""
        return cls(TargetHits.of(found.hits), TargetHits.of(found.floor_hits))

    @classmethod
    def alone(cls, found: AttackResult) -> Contest:
        """The attack without a floor, for plain ASR."""
        return cls(TargetHits.of(found.hits), None)

    def share(self, half: int) -> float:
        """Excess as a share of its ceiling, or ASR, over every other target; NaN where it is not known.

        A ceiling below `LEAST_CEILING` on these targets alone counts as that much.
        """
        own = float(self.own.rates(half).mean())
        if self.floor is None:
            return own
        floor = float(self.floor.rates(half).mean())
        return (own - floor) / max(1 - floor, LEAST_CEILING)

    def over_targets(self, level: float) -> Interval | None:
        """The interval of that share over other targets."""
        own = self.own.estimate(level)
        return own[1] if self.floor is None else share_of_ceiling(own, self.floor.estimate(level))


class CrossFit(NamedTuple):
    """The worst of several attacks, each half of the targets under the attack that was chosen on the other half."""

    own: float
    """ASR."""
    floor: float
    """Retrain's ASR; 0 for plain ASR."""
    interval: Interval | None
    """Of `value`."""

    @property
    def value(self) -> float:
        """Excess as a share of its ceiling, or ASR."""
        return (self.own - self.floor) / (1 - self.floor)


def cross_fitted(contests: Mapping[str, Contest], comparisons: int = 1) -> CrossFit | None:
    """Estimate the share of the worst of several attacks, as `worst` explains.

    None where half of the targets are unknown under some attack, or nothing is left above retrain.
    """
    shares = {label: (one.share(0), one.share(1)) for label, one in contests.items()}
    if any(np.isnan(half) for both in shares.values() for half in both):
        return None
    chosen = [max(shares, key=lambda label: shares[label][half]) for half in (0, 1)]
    halves = [contests[chosen[1]], contests[chosen[0]]]  # those that the first and the second half are attacked by
    counts = [np.sum(~np.isnan(one.own.hits[:, half::2])) for half, one in enumerate(halves)]
    weights = [float(count / sum(counts)) for count in counts]
    own = _by_run([one.own for one in halves], weights)
    floor = _by_run([one.floor for one in halves if one.floor is not None], weights)
    if not own or (mean := _estimate(floor, simultaneous(comparisons)))[0] >= 1:
        return None
    each = simultaneous(len(contests) * comparisons)
    ends = [end for one in contests.values() if (end := one.over_targets(each)) is not None]
    targets = (max(low for low, _ in ends), max(high for _, high in ends)) if ends else None
    over_runs = share_of_ceiling(_estimate(own, simultaneous(comparisons)), mean)
    found = CrossFit(sum(own) / len(own), mean[0], None)
    return found._replace(interval=wider(wider(targets, over_runs), (found.value, found.value)))


def _by_run(halves: Sequence[TargetHits], weights: Sequence[float]) -> list[float]:
    """ASR of each run that was attacked by the attacks of both halves."""
    rates = [dict(zip(side.seeds, side.rates(half), strict=True)) for half, side in enumerate(halves)]
    common = sorted(set.intersection(*map(set, rates))) if rates else []
    return [float(sum(weight * one[seed] for weight, one in zip(weights, rates, strict=True))) for seed in common]


def _estimate(runs: Sequence[float], level: float) -> Estimated:
    """Mean ASR with Student's t interval over runs; a single run counts as known, and none as 0."""
    mean = sum(runs) / len(runs) if runs else 0.0
    return mean, clip_interval(t_at(runs, level), 0.0, 1.0) or (mean, mean)


def saturated_attacks(gold: Sequence[Record]) -> list[str]:
    """The attacks that recover so much from retrain that the excess of others tells nothing."""
    of = {label: attack_result(gold, gold, label) for label in attack_labels(gold)}
    return [label for label, found in of.items() if found and found.saturated]


def attack_labels(records: Iterable[Record]) -> list[str]:
    """Every attack of these records, those of the ensemble first."""
    return standard_first(label for record in records for label in record.attacks)


def of_row(records: Sequence[Record], gold: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    """The fields of a `BoardRow` about attacks: results by label, worst cases by access, and the runs attacked."""
    every = {label: attack_result(records, gold, label) for label in names}
    saturated = saturated_attacks(gold)
    tried = [record for record in records if record.attacks]
    scores = [score for record in distinct(tried) if (score := record.scores.get("ua")) and score.value is not None]
    ua = [score.value for record in tried if (score := record.scores.get("ua")) and score.value is not None]
    return {
        "attacked_n": len(tried),
        "attacked_ua": sum(ua) / len(ua) if ua else None,
        "attacked_scores": tuple((score.value, score.n - score.missing) for score in scores),
        "attacks": {label: result or NOT_TRIED for label, result in every.items()},
        "worst": {box: worst(every, box, saturated) for box in (None, "white", "black")},
    }
