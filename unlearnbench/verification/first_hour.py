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
from unlearnbench.records.schema import Record
from unlearnbench.storage.store import Store
from unlearnbench.task import Task

HEADS = ["what", "expected", "obtained", "", "by"]
STAGES = 4
"""Number of titles that `begin` is called with at least: data, original, judge and its row."""
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

    Where the task has a protocol that differs in dropout alone, the original is drawn by both, and published numbers
    count as reproduced if either comes to them. With `steps`, it is also drawn with the task's two numbers of steps.
    """
    about: Any = task
    stage = ""
    for title, what, expected, obtained, passed in about.looked_over():
        if title != stage:
            begin(stage := title)
        yield ReadinessCheck(what, expected, obtained, passed)
    begin("original's row")
    record = run_cell(Cell(registry.load_method("original")(), task), store, results)
    other = None
    if name := getattr(task, "other_dropout", {}).get(task.protocol.name):
        begin("with dropout on")
        other = run_cell(Cell(registry.load_method("original")(), _by_protocol(task, name)), store, results)
    yield from _row(task, record, other)
    if steps:
        begin("fewer steps")
        yield from _steps(task, store, results)


def stages(task: Task | type[Task], protocol: str, steps: bool) -> int:
    """Number of titles that `begin` is called with."""
    return STAGES + (protocol in getattr(task, "other_dropout", {})) + steps


def _by_protocol(task: Task, name: str) -> Task:
    about = copy.copy(task)
    about.protocol = task.resolve_protocol(name)
    return about


def _row(task: Task, record: Record, other: Record | None) -> Iterator[ReadinessCheck]:
    """Scores of the original beside those of the paper with its protocol, and of its record with dropout on if any."""
    metrics = registry.load_metrics()
    known = published.of_original(task.name, task.forget)
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
        also = None if other is None or row is None else other.scores[name].value
        values = [value for value in (score.value, also) if value is not None]
        near = None if row is None or not values else any(_near(value, name, known) for value in values)
        source = "" if row is None else f"{row.source} ({row.status}): {row.note}".rstrip(": ")
        yield ReadinessCheck(head(metric), expected, shown(metric, score.value), near, source)
        if row is not None and other is not None:
            yield ReadinessCheck(f"{head(metric)}, dropout on", expected, shown(metric, also), near, source)
    if other is not None and "fid" in known:
        yield _nearer(known["fid"].value, record, other)


def _nearer(expected: float, record: Record, other: Record) -> ReadinessCheck:
    """Which of the two ways of drawing comes closer to the published FID."""
    off, on = (each.scores["fid"].value for each in (record, other))
    if off is None or on is None:
        return ReadinessCheck("published FID is reproduced", "by one", "not known: a FID is missing", None)
    closer = record if abs(off - expected) <= abs(on - expected) else other
    how = "without dropout" if closer is record else "with dropout on"
    return ReadinessCheck("published FID is closer to", "—", f"{how} ({closer.protocol.name})", None)


def _steps(task: Task, store: Store, results: Path) -> Iterator[ReadinessCheck]:
    """Scores of the original with fewer steps beside those with all of them, from the same noise."""
    names, records, metrics = task.fewer_steps, [], registry.load_metrics()  # type: ignore[attr-defined]
    for name in names:
        records.append(run_cell(Cell(registry.load_method("original")(), _by_protocol(task, name)), store, results))
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
