"""`first-hour`: check whether this machine is ready for a task on real weights (data, original, judge, and the
original's scores).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from unlearnbench import registry
from unlearnbench.leaderboard import published
from unlearnbench.leaderboard.tables import head, shown
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.runner import run_cell
from unlearnbench.storage.store import Store
from unlearnbench.task import Task

HEADS = ["what", "expected", "obtained", "", "by"]
STAGES = 5
"""Number of titles that `begin` is called with, steps included."""
OWN = "own expectation"
NEAR = 0.25
"""Relative tolerance for published numbers; protocols of fewer images and steps are no closer."""


class ReadinessCheck(NamedTuple):
    """One result; `passed` is None if there is nothing to compare with."""

    what: str
    expected: str
    obtained: str
    passed: bool | None
    source: str = OWN


def first_hour_findings(
    task: Task, store: Store, results: Path, begin: Callable[[str], None] = lambda title: None, steps: bool = False
) -> Iterator[ReadinessCheck]:
    """Yield results, quick checks first; `UserError` for what prevents all later checks.

    With `steps`, the original is also sampled with the task's two numbers of steps.
    """
    about: Any = task
    stage = ""
    for title, what, expected, obtained, passed in about.looked_over():
        if title != stage:
            begin(stage := title)
        yield ReadinessCheck(what, expected, obtained, passed)
    begin("original's row")
    yield from _row(task, store, results)
    if steps:
        begin("fewer steps")
        yield from _steps(task, store, results)


def _row(task: Task, store: Store, results: Path) -> Iterator[ReadinessCheck]:
    """Scores of the original beside those that papers published."""
    record = run_cell(Cell(registry.load_method("original")(), task), store, results)
    metrics = registry.load_metrics()
    known = {
        row.metric: row
        for row in published.load()
        if (row.task, row.forget, row.method) == (task.name, task.forget, "original")
    }
    for name, paper in known.items():  # numbers that are part of a metric, or of one under a condition
        if (value := published.reading(record, name)) is not None:
            source = f"{paper.source} ({paper.status}): {paper.note}".rstrip(": ")
            yield ReadinessCheck(
                name, f"{paper.value:g}", f"{value:.4g}", abs(value - paper.value) <= NEAR * paper.value, source
            )
    for name, score in record.scores.items():
        metric, row = metrics[name], known.get(name)
        if metric.axis == "cost":
            continue
        expected = "—" if row is None else shown(metric, row.value)
        near = None if row is None or score.value is None else _near(score.value, name, known)
        source = "" if row is None else f"{row.source} ({row.status}): {row.note}".rstrip(": ")
        yield ReadinessCheck(head(metric), expected, shown(metric, score.value), near, source)


def _steps(task: Task, store: Store, results: Path) -> Iterator[ReadinessCheck]:
    """Scores of the original with fewer steps beside those with all of them, from the same noise."""
    names, records, metrics = task.fewer_steps, [], registry.load_metrics()  # type: ignore[attr-defined]
    for name in names:
        about = copy.copy(task)
        about.protocol = task.resolve_protocol(name)
        records.append(run_cell(Cell(registry.load_method("original")(), about), store, results))
    for name in records[0].scores:
        if metrics[name].axis != "cost":
            values = [shown(metrics[name], record.scores[name].value) for record in records]
            yield ReadinessCheck(
                f"{head(metrics[name])}, {names[0]}", values[1], values[0], None, f"protocol {names[1]}"
            )


def _near(value: float, name: str, known: dict[str, published.Published]) -> bool:
    """Whether a value is close to a published one; for precision and recall to either, as the papers swap them."""
    pair = ("precision", "recall")
    expected = [known[each].value for each in (pair if name in pair else (name,)) if each in known]
    return any(abs(value - each) <= NEAR * abs(each) for each in expected)
