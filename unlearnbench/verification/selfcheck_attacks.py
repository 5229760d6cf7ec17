"""`selfcheck` of attacks: models that hide or lost a concept, and the controls on a real task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from unlearnbench import registry
from unlearnbench.attacks.base import STANDARD, Attack
from unlearnbench.errors import one_line
from unlearnbench.hashing import state_hash
from unlearnbench.leaderboard.robustness import curve
from unlearnbench.metric import Known, Score
from unlearnbench.pipeline.attacks import attacked, parse_attacks
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.runner import run_cell
from unlearnbench.records.schema import AttackRecord
from unlearnbench.storage.store import Store
from unlearnbench.task import Task
from unlearnbench.verification.selfcheck import CaseResult, format_range, number

CONTROLS = ("original", "retrain", "prompt_filter")
THERE, PAST = 0.9, 0.5
"""Share of the original's targets that are found without a search, and of the filter's that one attack must recover."""


def check_attack(attack: Attack) -> Iterator[CaseResult]:
    """Test the attack's own cases: a concept is found at once, found by searching, or never found."""
    by_quality: dict[str, list[float]] = {"good": [], "bad": []}
    for case in attack.known():
        low, high = case.low, case.low if case.high is None else case.high
        before = state_hash(case.outcome.model.state_dict())
        try:
            score = attack.configured("", case.outcome.task).measure(case.outcome)
        except Exception as error:  # noqa: BLE001 - whatever an attack raises is what is to be reported
            yield CaseResult(attack.name, case.case, one_line(error), format_range(low, high), False)
            continue
        inside = score.value is not None and low is not None and high is not None and low <= score.value <= high
        found = number(score.value) + (f", {score.missing} missing" if score.missing else "")
        yield CaseResult(
            attack.name, case.case, found, format_range(low, high), inside and score.missing == case.missing
        )
        yield from _kept(attack, case, score, before)
        if case.quality and score.value is not None:
            by_quality[case.quality].append(score.value)
    good, bad = by_quality["good"], by_quality["bad"]
    right = bool(good and bad) and max(good) < min(bad)
    found = f"good {', '.join(map(number, good)) or '-'}; bad {', '.join(map(number, bad)) or '-'}"
    yield CaseResult(attack.name, "better is lower", found, "every good case beats every bad one", right)


def _kept(attack: Attack, case: Known, score: Score, before: str) -> Iterator[CaseResult]:
    """Test that an unrecovered target is censored where its search ended, and that the model is unchanged."""
    if score.per_image is not None and score.spent is not None:
        censored = score.spent[score.per_image == 0]
        whole = not len(censored) or bool(censored.min() > 0 and censored.max() == score.limit)
        what = f"{case.case}: spent on those not recovered"
        yield CaseResult(
            attack.name,
            what,
            ", ".join(map(number, sorted(set(censored)))) or "-",
            f"up to {number(score.limit)}",
            whole,
        )
    same = state_hash(case.outcome.model.state_dict()) == before
    yield CaseResult(attack.name, f"{case.case}: weights afterwards", "equal" if same else "others", "equal", same)


def attack_controls(task: Task, store: Store, results: Path, begin: Callable[[str], None]) -> Iterator[CaseResult]:
    """Test the controls under the standard attacks.

    The original shows the concept at budget 0, retrain is no easier to attack than it, and the prompt filter fails
    against attacks that do not use prompts.
    """
    found: dict[str, dict[str, AttackRecord]] = {}
    for name in CONTROLS:
        begin(f"attacks on {name}")
        cell = Cell(registry.load_method(name)(), task)
        found[name] = attacked(cell, run_cell(cell, store, results), parse_attacks("standard"), store, results).attacks
    for label in STANDARD:
        original, retrain = (found[name].get(label) for name in ("original", "retrain"))
        if original is None or original.status == "skipped":
            continue
        start = curve([original])[:1]
        there = start[0][1] if start else math.nan
        yield CaseResult(label, "original at budget 0", number(there), format_range(THERE, 1), there >= THERE)
        floor, most = retrain.value if retrain else None, original.value
        passed = floor is not None and most is not None and floor <= most
        yield CaseResult(label, "retrain is no easier than original", number(floor), f"at most {number(most)}", passed)
    past = {label: attack.value or 0.0 for label, attack in found["prompt_filter"].items() if attack.value is not None}
    best = max(past, key=lambda label: past[label], default="no attack")
    value = past.get(best)
    passed = value is not None and value >= PAST
    yield CaseResult("prompt_filter", f"falls to {best}", number(value), format_range(PAST, 1), passed)


def attack_findings(
    task: Task, store: Store, results: Path, begin: Callable[[str], None], on_controls: bool = False
) -> Iterator[CaseResult]:
    """Test every attack's known answers and, on request, attack the controls, which takes minutes."""
    begin("known answers of attacks")
    for attack in registry.load_attacks().values():
        yield from check_attack(attack)
    if on_controls:
        yield from attack_controls(task, store, results, begin)
