"""Score a judged outcome with every metric that applies."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unlearnbench import registry
from unlearnbench.compute.device import trim
from unlearnbench.errors import one_line
from unlearnbench.metric import Metric, Outcome, Score
from unlearnbench.pipeline.code_hashes import metric_code
from unlearnbench.records.scores import ScoreRecord
from unlearnbench.statistics import clip_interval
from unlearnbench.task import Plan, Task

UNRELIABLE = 0.01
"""Share of missing images above which a cell is marked."""


def metrics_for(task: Task, plan: Sequence[Plan] | None = None) -> dict[str, Metric]:
    """The metrics that a plan (the task's by default), judge and scorers allow, in the order of the axes."""
    plan = task.plan() if plan is None else plan

    def offered(need: str | None) -> bool:  # most metrics need no judge, which may take long to load
        return need is None or bool(getattr(task.judge(), need, False))

    witnesses = set(task.witnesses())
    return {
        name: metric
        for name, metric in registry.load_metrics().items()
        if name not in task.without
        and metric.applies(plan)
        and metric.roles() <= witnesses
        and offered(metric.judge_needs)
    }


def score_metric(metric: Metric, outcome: Outcome) -> Score:
    """A metric's score; one that fails, or is not finite, is missing with the reason."""
    try:
        found = metric.measure(outcome)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one metric's failure is a missing value, others are kept
        return Score(None, 0, reason=one_line(error))
    finally:
        trim()
    if found.value is not None and not math.isfinite(found.value):
        return Score(None, found.n, found.missing, reason="not finite")
    return found


def score_record(metric: Metric, score: Score) -> ScoreRecord:
    """A score in the form that records hold."""
    bounds = clip_interval(score.interval, *metric.bounds())
    bounds = bounds if bounds and all(map(math.isfinite, bounds)) else None
    return ScoreRecord(
        value=score.value,
        n=score.n,
        missing=score.missing,
        interval=bounds,
        reason=score.reason,
        axis=metric.axis,
        better=metric.better,
        unit=metric.unit if metric.stored is None else metric.stored,
        floor=score.floor if score.floor is not None and math.isfinite(score.floor) else None,
        parts=score.parts,
        code_hash=metric_code(metric),
        version=metric.version,
    )
