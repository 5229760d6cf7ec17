"""Check the attacks and the trajectory in a record."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from unlearnbench import registry
from unlearnbench.attacks.base import Attack
from unlearnbench.attacks.spec import AttackSpec
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest
from unlearnbench.records.image_table import ROUNDING
from unlearnbench.records.lineage import standing
from unlearnbench.records.schema import AttackRecord, Record
from unlearnbench.statistics import wilson
from unlearnbench.task import Plan, Task
from unlearnbench.verification.finding import Issue, Note

SINGLE = 1e-6
UNRELIABLE = 0.01
"""Share of missing targets above which an attack is unreliable, as for runs."""


def check_attacks(record: Record, task: Task | None, plan: list[Plan] | None) -> Iterator[Issue]:
    """Check that each attack is known, its numbers follow from its targets, and its settings from its label."""
    for label, found in record.attacks.items():
        name, variant, _ = spec = AttackSpec.parse(label)
        attack = registry.known_attack(name)
        if attack is None:
            yield f"unknown attack {label}: known: {', '.join(registry.load_attacks())}"
            continue
        if variant and variant not in attack.offered():
            yield f"unknown variant of the attack {name}: {variant}: known: {', '.join(attack.offered()) or 'none'}"
            continue
        yield from _budget(spec, label, found)
        yield from _numbers(label, found)
        if standing("attack", name, found.code_hash) != "present":
            yield Note(f"the code of {label} is not the present one", "with an attack of another version")
        elif task is not None:
            yield from _settings(label, variant, found, attack, task)
        if plan is not None:
            yield from _targets(label, found, plan)


def _budget(spec: AttackSpec, label: str, found: AttackRecord) -> Iterator[Issue]:
    if spec.label != label or spec.budget != found.budget:
        yield f"the attack {label} has the budget {found.budget}"
    if found.budget is not None and found.limit > found.budget:
        yield f"the limit of {label} is {found.limit:g}, more than its budget {found.budget:g}"


def _numbers(label: str, found: AttackRecord) -> Iterator[Issue]:
    """Check shares and counts of an attack."""
    pairs = [(hit, cost) for hit, cost in zip(found.recovered, found.spent, strict=True) if hit is not None]
    hits = [hit for hit, _ in pairs]
    if found.status == "skipped":
        if found.n or found.value is not None or not found.reason:
            yield f"{label} was skipped, but has targets or a value, or gives no reason"
    elif not found.applies:
        yield f"{label} does not apply to its task, but was not skipped"
    elif found.status == "ok" and found.missing > UNRELIABLE * found.n:
        yield f"the status of {label} is ok, but {found.missing} of {found.n} targets are missing"
    elif found.status == "unreliable" and found.value is not None and found.missing <= UNRELIABLE * found.n:
        yield f"the status of {label} is unreliable, but no target is missing"
    if found.value is None:
        if found.interval is not None or found.area is not None:
            yield f"{label} has an interval or an area but no value"
        return
    interval = wilson(sum(hits), len(hits))
    gaps = zip(found.interval or (), interval or (), strict=False)
    if (found.interval is None) != (interval is None) or any(abs(a - b) > SINGLE for a, b in gaps):
        said = "none" if found.interval is None else f"{found.interval[0]:g} to {found.interval[1]:g}"
        meant = "none" if interval is None else f"{interval[0]:g} to {interval[1]:g}"
        yield f"the interval of {label} is {said}, its targets give {meant}"
    area = sum(hit * (1 - cost / (found.limit or 1)) for hit, cost in pairs) / len(pairs)
    if found.area is None or abs(area - found.area) > SINGLE:
        said = "none" if found.area is None else f"{found.area:g}"
        yield f"the area of {label} is {said}, its targets give {area:g}"


def _settings(label: str, variant: str, found: AttackRecord, attack: Attack, task: Task) -> Iterator[Issue]:
    smoke = task.protocol.name == "smoke" and "small" in attack.variants
    meant = json.loads(json.dumps(attack.configured(variant or ("small" if smoke else ""), task).settings()))
    changed = [name for name in {**meant, **found.settings} if meant.get(name) != found.settings.get(name)]
    if changed:
        pairs = ", ".join(f"{name} {found.settings.get(name)} there and {meant.get(name)} here" for name in changed)
        yield f"the settings of {label} are not those of that attack: {pairs}"
    if (found.box, found.unit) != (attack.box, attack.spends):
        yield f"{label} is given as {found.box} box, in {found.unit}, but is {attack.box} box, in {attack.spends}"
    reason = attack.unaddressed(task)
    if bool(reason) == found.applies:
        yield f"{label} says that it {'applies' if found.applies else 'does not apply'} to {task.name}, which is not so"


def _targets(label: str, found: AttackRecord, plan: list[Plan]) -> Iterator[Issue]:
    if found.status == "skipped":
        return
    planned = sum(item.group == "forget" for item in plan)
    asked = found.settings.get("targets")
    meant = min(asked, planned) if isinstance(asked, int) and not isinstance(asked, bool) else planned
    if found.n != meant:
        yield f"n of {label} is {found.n}, its settings and protocol give {meant} targets"


def trajectory(record: Record, task: Task | None) -> Iterator[Issue]:
    """Check that points use the held-out protocol, lie within the run, and have possible values."""
    found = record.trajectory
    if found is None:
        return
    steps = [point.step for point in found.points] + [step for each in found.watched.values() for step in each.steps]
    if any(not 0 <= step <= found.steps for step in steps):
        yield f"its trajectory has steps outside 0 to {found.steps}"
    if any(list(each.steps) != sorted(set(each.steps)) for each in found.watched.values()):
        yield "the steps of a series in its trajectory do not rise"
    seconds = [point.seconds for point in found.points]
    if seconds != sorted(seconds):
        yield "the seconds of its trajectory go backwards"
    if found.every is None and found.points:
        yield "its trajectory has points, but says that nothing was evaluated"
    if found.protocol.hash != digest([record.protocol.hash, found.protocol.differs]):
        yield "the hash of its trajectory's protocol is not that of the settings beside it"
    if task is not None:
        yield from _held_out(record, task)
    for point in found.points:
        for name, value in point.scores.items():
            metric = registry.known_metric(name)
            if name not in found.n or metric is None:
                yield f"its trajectory scores {name}, which is no metric or has no n"
                return
            low, high = metric.bounds()
            least, most = -math.inf if low is None else low, math.inf if high is None else high
            if value is not None and not least - ROUNDING <= value <= most + ROUNDING:
                yield f"{name} is {value:g} at step {point.step} of its trajectory, which cannot be"
                return
        if point.missing > max(found.n.values(), default=0):
            yield f"{point.missing} images are missing at step {point.step} of its trajectory, more than it has"
            return


def _held_out(record: Record, task: Task) -> Iterator[Issue]:
    """Check how many images the trajectory's points rest on, if the plan can be made here."""
    from unlearnbench.pipeline.trajectory import thin_plan

    if record.trajectory is None:
        return
    try:
        plan = thin_plan(task.plan())
    except (UserError, OSError):
        return  # reported with the plan
    for name, n in record.trajectory.n.items():
        metric = registry.known_metric(name)
        if metric is not None and n != (meant := sum(item.group == metric.side for item in plan)):
            yield f"n of {name} in its trajectory is {n}, its protocol gives {meant} images"
