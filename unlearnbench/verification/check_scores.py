"""Check that status and scores follow from the per-image table, and the table from the protocol's plan."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearnbench import registry
from unlearnbench.data.concepts import build_concepts
from unlearnbench.errors import UserError, one_line
from unlearnbench.method import Method
from unlearnbench.metric import FeatureMetric, Metric, Score
from unlearnbench.records.image_table import ROUNDING
from unlearnbench.records.lineage import standing
from unlearnbench.records.schema import Record
from unlearnbench.records.scores import ScoreRecord
from unlearnbench.table_metrics import PromptSetRate
from unlearnbench.task import Plan, Task
from unlearnbench.verification.finding import Issue, Note
from unlearnbench.verification.recompute import JUDGED, Extremes, of_column

if TYPE_CHECKING:
    import pandas as pd

UNRELIABLE = 0.01
"""Share of missing images above which a run is unreliable, as in the runner."""
SINGLE = 1e-6
"""Tolerance between numbers kept in single precision."""
CERTAIN = 0.5
"""Highest probability that a label which the judge did not choose can have."""
FORMER_DIRECTIONS = {"entropy": "higher"}
"""Directions that metrics once had, which records of the same version still give; their values are the same."""


def task_of(record: Record) -> Task | None:
    """The record's task with its protocol and concept; None if the protocol differs from this code's."""
    if record.task not in registry.tasks():
        return None
    known = registry.load_task(record.task).protocols.get(record.protocol.name)
    own = json.dumps(record.protocol.settings.get("concepts") or [])
    if known is None:
        return None
    try:
        task = _task(record.task, record.protocol.name, known.hash, record.forget, own)
    except UserError:
        return None
    return task if task.protocol.hash == record.protocol.hash else None


@lru_cache(maxsize=64)
def _task(name: str, protocol: str, hash: str, forget: str, own: str) -> Task:
    concepts = json.loads(own)
    return registry.load_task(name)(
        forget, protocol=protocol, concepts=build_concepts(concepts, "the record's concepts") if concepts else ()
    )


@lru_cache(maxsize=64)
def _plan(task: Task) -> list[Plan]:
    return task.plan()


def planned(record: Record) -> list[Plan] | Note | None:
    """Every image that the record's protocol plans; None if task or protocol are unknown, which is a problem.

    A note if the plan needs files that are missing here, or was made from others.
    """
    task = task_of(record)
    if task is None:
        return None
    try:
        plan, data = _plan(task), task.data_identity()
    except (UserError, OSError) as error:
        return Note(f"its plan could not be made again: {one_line(error)}", "whose plan could not be made again here")
    if record.data != data:
        return Note(
            f"it was made with other prompts or photographs ({(record.data or 'none')[:12]}) than those here "
            f"({(data or 'none')[:12]})",
            "of other prompts or photographs than those here",
            strict=True,
        )
    return plan


def check_status(record: Record) -> Iterator[Issue]:
    """Check that status, reason and step fit the scores."""
    if record.step is not None and record.status != "diverged":
        yield f"its status is {record.status}, but it names a step of divergence ({record.step})"
    if record.status in ("diverged", "skipped"):
        had = {"scores": record.scores, "per-image values": record.images, "attacks": record.attacks}
        had["unlearned weights"] = record.weights["unlearned"]
        if found := [name for name, value in had.items() if value]:
            yield f"its status is {record.status}, but it has {' and '.join(found)}"
        if not record.reason:
            yield f"its status is {record.status}, but it gives no reason"
        return
    if record.weights["unlearned"] is None:
        yield f"its status is {record.status}, but it gives no hash of unlearned weights"
    if not record.scores:
        yield f"its status is {record.status}, but it has no scores"
    lost = [
        name
        for name, score in record.scores.items()
        if score.missing > UNRELIABLE * score.n or (score.reason and score.n == 0)
    ]
    changed = record.scores.get("trained_parameters")
    idle = changed is not None and changed.value == 0 and record.method.name != "original"
    if record.status == "ok" and lost:
        yield f"its status is ok, but {', '.join(lost)} miss too many images: it is unreliable"
    elif record.status == "ok" and idle and not _wraps(record.method.name):
        yield "its status is ok, but the method changed no weight (trained_parameters is 0): it is unreliable"
    elif record.status == "unreliable" and not lost and not idle:
        yield "its status is unreliable, but nothing in it says why: no score misses images, and weights were changed"
    if record.reason is not None and (record.status == "ok" or not idle):
        yield f"its status is {record.status}, but it gives a reason ({record.reason}) that does not belong to it"


def _wraps(name: str) -> bool:
    """Whether a method acts on more than the weights; an unknown method may."""
    return name not in registry.known_methods() or registry.load_method(name).wrap is not Method.wrap


def numbers(record: Record, plan: list[Plan] | None) -> Iterator[Issue]:
    """Check each score by itself: range, interval, count and direction."""
    for name, score in record.scores.items():
        metric = registry.known_metric(name)
        if metric is None:
            yield Note(f"{name} is no metric that is known here", "with a metric that is not known here", strict=True)
            continue
        if standing("metric", name, score.code_hash) == "present":
            own = (metric.axis, metric.better, metric.unit if metric.stored is None else metric.stored)
            former = score.better is not None and FORMER_DIRECTIONS.get(name) == score.better
            if own != (score.axis, metric.better if former else score.better, score.unit):
                given = f"{score.axis}, {score.better}, {score.unit!r}"
                yield f"{name} is given as {given}, but is {own[0]}, {own[1]}, {own[2]!r}"
        yield from _number(name, metric, score)
        if plan is not None:
            yield from _count(name, metric, score, plan)


def _number(name: str, metric: Metric, score: ScoreRecord) -> Iterator[Issue]:
    low, high = metric.bounds()
    for what, value in (("", score.value), (", floor,", score.floor)):
        if value is not None and not _inside(value, low, high):
            yield f"{name}{what} is {value:g}, outside {_range(low, high)}"
    if score.value is None and not score.reason:
        yield f"{name} has no value and gives no reason"
    if score.interval is None:
        return
    least, most = score.interval
    if score.value is None:
        yield f"{name} has an interval ({least:g} to {most:g}) but no value"
    elif not least - _slack(score.value) <= score.value <= most + _slack(score.value):
        yield f"{name} is {score.value:g}, outside its own interval {least:g} to {most:g}"
    if not (_inside(least, low, high) and _inside(most, low, high)):
        yield f"the interval of {name} ({least:g} to {most:g}) leaves {_range(low, high)}"
    if score.parts and metric.limits[0] == 0 and min(score.parts.values()) < 0:
        yield f"a part of {name} is negative ({min(score.parts.values()):g})"


def _count(name: str, metric: Metric, score: ScoreRecord, plan: list[Plan]) -> Iterator[Issue]:
    """Check how many images a score can rest on; scores by image are counted in the table."""
    if metric.axis == "cost":
        if score.value is not None and score.n != 1:
            yield f"n of {name} is {score.n}, a cost is measured once"
        return
    group = metric.side or ("retain" if isinstance(metric, FeatureMetric) else None)
    most = sum(group is None or item.group == group for item in plan)
    if score.n > most:
        yield f"n of {name} is {score.n}, its protocol plans {most} such images"


def _inside(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low - ROUNDING) and (high is None or value <= high + ROUNDING)


def _range(low: float | None, high: float | None) -> str:
    return f"at least {low:g}" if high is None else f"at most {high:g}" if low is None else f"{low:g} to {high:g}"


def _slack(value: float) -> float:
    return ROUNDING * max(1.0, abs(value))


# ---- the table -----------------------------------------------------------------------------------------------------


def check_image_table(record: Record, images: pd.DataFrame, plan: list[Plan] | None) -> Iterator[Issue]:
    """Check that rows match the plan, that verdicts are possible, and that every score by image follows from them.

    Without a plan, the rows' own labels and groups are used.
    """
    required = {"group", "concept", "label", "seed", "judged", "refused", "p_asked"}
    if lacking := sorted(required - set(images)):
        yield f"its per-image values lack {', '.join(lacking)}: run it again"
        return
    known = [name for name in Plan._fields if name in images]
    if empty := [name for name in known if images[name].isna().any()]:
        yield f"its per-image values have rows without {', '.join(empty)}"
        return
    rows = _rows(images, known)
    if plan is not None:
        wrong = list(_unplanned(record, rows, known, plan))
        yield from wrong
        if wrong:
            return
    wrong = list(_judged(images))
    yield from wrong
    if not wrong:
        yield from check_columns(record, images, rows)


def _rows(images: pd.DataFrame, known: list[str]) -> list[Plan]:
    values = zip(*(images[name].tolist() for name in known), strict=True)
    return [Plan(**dict(zip(known, row, strict=True))) for row in values]


def _unplanned(record: Record, rows: list[Plan], known: list[str], plan: list[Plan]) -> Iterator[Issue]:
    if len(rows) != len(plan):
        yield f"its per-image values have {len(rows)} rows, its protocol plans {len(plan)} images"
        return
    unsafe = record.task in registry.tasks() and registry.load_task(record.task).unsafe
    for place, name in enumerate(Plan._fields):
        if name == "prompt" and unsafe and name not in known:
            continue  # prompts of unsafe tasks are left out
        wrong = [i for i, (row, item) in enumerate(zip(rows, plan, strict=True)) if row[place] != item[place]]
        if wrong:
            first, more = wrong[0], f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            recorded, meant = rows[first][place], plan[first][place]
            shown = (
                (repr(recorded), repr(meant)) if name in ("group", "concept", "label", "seed", "other") else ("", "")
            )
            what = f"{shown[0]} there, {shown[1]} in its protocol's plan" if all(shown) else "not as its protocol plans"
            yield f"the {name} of image {first} is {what}{more}"


def _judged(images: pd.DataFrame) -> Iterator[Issue]:
    """Check that the judge's columns are consistent."""
    lost = images["judged"].isna()
    if (lost != images["refused"].isna()).any():
        yield "some images are judged but neither refused nor not, or the other way round"
    asked = images["label"] >= 0
    if (images["p_asked"].isna() != (lost | ~asked)).any():
        yield "p_asked is missing on images that were judged, or there on images that were not"
    p = images["p_asked"].to_numpy(float, na_value=math.nan)
    judged = images["judged"].to_numpy(float, na_value=math.nan)
    if ((p < -SINGLE) | (p > 1 + SINGLE)).any():
        yield f"p_asked leaves 0 to 1 ({np.nanmin(p):g} to {np.nanmax(p):g})"
    if (judged < 0).any():
        yield f"an image was judged {int(np.nanmin(judged))}, which is no label"
    other = (judged != images["label"].to_numpy(float)) & (p > CERTAIN + SINGLE)
    if other.any():
        first = int(np.flatnonzero(other)[0])
        yield (
            f"image {first} was judged {judged[first]:.0f}, though its label {images['label'].iloc[first]} has the "
            f"probability {p[first]:.3f}" + (f" ({int(other.sum())} such images)" if other.sum() > 1 else "")
        )


def check_columns(record: Record, images: pd.DataFrame, rows: list[Plan]) -> Iterator[Issue]:
    """Check every score by image against its column, and the column against `judged` and `refused`."""
    groups, extremes = images["group"].to_numpy(), Extremes(rows, images)
    for name, score in record.scores.items():
        metric = registry.known_metric(name)
        if metric is None or metric.side is None:
            if name in images:
                yield f"its per-image values have a column {name}, which is no metric by image"
            continue
        own = groups == metric.side
        limits = extremes.of(metric)
        if name not in images:
            if score.value is not None:
                yield f"{name} is {score.value:g}, but its per-image values have no such column"
            elif limits is not None and limits[0].value is not None:
                yield f"{name} has no value, but what was judged gives {_spread(limits)}"
            continue
        if images[name][~own].notna().any():
            yield f"the column {name} has values of images that are not of the group {metric.side}"
        column = images[name][own]
        yield from _column(name, metric, column, limits, images.loc[own, ["label", *JUDGED]])
        yield from _total(name, metric, score, column, _meant(metric, rows, own) if limits is None else limits[0].n)


def _meant(metric: Metric, rows: list[Plan], own: np.ndarray) -> int:
    """Number of images of a metric's group that count."""
    if isinstance(metric, PromptSetRate):
        return sum(metric.counts(rows[i]) for i in np.flatnonzero(own))
    return int(own.sum())


def _column(
    name: str, metric: Metric, column: pd.Series, limits: tuple[Score, Score] | None, rows: pd.DataFrame
) -> Iterator[Issue]:
    values = column.to_numpy(float, na_value=math.nan)
    low, high = metric.bounds()
    outside = [value for value in values[~np.isnan(values)] if not _inside(value, low, high)]
    if outside:
        yield f"the column {name} has {outside[0]:g}, outside {_range(low, high)}"
        return
    nothing = np.full(len(values), math.nan)
    if limits is not None:
        least, most = (nothing if each.per_image is None else each.per_image for each in limits)
        lost = np.isnan(least)
    elif not metric.roles():
        least, most, lost = nothing, nothing, rows["judged"].isna().to_numpy(bool)  # like the judge that it uses
    else:
        return
    if (np.isnan(values) != lost).any():
        first = int(np.flatnonzero(np.isnan(values) != lost)[0])
        there, judged = ("is missing", "was judged") if np.isnan(values[first]) else ("is there", "was not judged")
        yield f"{name} of image {rows.index[first]} {there}, though the image {judged} or is not counted"
        return
    wrong = (values < least - SINGLE) | (values > most + SINGLE)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        row, more = rows.iloc[first], f" ({int(wrong.sum())} such images)" if wrong.sum() > 1 else ""
        yield (
            f"{name} of image {rows.index[first]} is {values[first]:g}, but judged {row['judged']}, refused "
            f"{row['refused']} and p_asked {row['p_asked']:.3f} for label {row['label']} give {least[first]:g}{more}"
        )


def _total(name: str, metric: Metric, score: ScoreRecord, column: pd.Series, n: int) -> Iterator[Issue]:
    try:
        made = of_column(metric, column, n)
    except ValueError as error:
        yield f"the column {name} cannot be: {error}"
        return
    if (score.n, score.missing) != (made.n, made.missing):
        given = f"n {score.n} and missing {score.missing}"
        yield f"{name} has {given}, its per-image values give {made.n} and {made.missing}"
    if not _equal(score.value, made.value):
        yield f"{name} is {score.value}, but its per-image values give {made.value}"
    elif (score.interval is None) != (made.interval is None):
        yield f"the interval of {name} is {_shown(score.interval)}, its per-image values give {_shown(made.interval)}"
    elif score.interval and made.interval:
        gaps = [abs(a - b) for a, b in zip(score.interval, made.interval, strict=True)]
        if max(gaps) > SINGLE * max(1.0, *map(abs, made.interval)):
            given = _shown(score.interval)
            yield f"the interval of {name} is {given}, its per-image values give {_shown(made.interval)}"


def _equal(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else abs(a - b) <= ROUNDING * max(1.0, abs(b))


def _shown(interval: tuple[float, float] | None) -> str:
    return "none" if interval is None else f"{interval[0]:.6g} to {interval[1]:.6g}"


def _spread(limits: tuple[Score, Score]) -> str:
    low, high = (each.value for each in limits)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


@cache
def _metrics() -> tuple[str, ...]:
    return tuple(registry.metrics())


def check_missing(record: Record, plan: list[Plan]) -> Iterator[Issue]:
    """Find missing metrics that need only the judge, which every run of the plan has."""
    if record.status not in ("ok", "unreliable"):
        return
    known: Mapping[str, Any] = {name: registry.known_metric(name) for name in _metrics()}
    without = registry.without(record.task)
    gone = [
        name
        for name, metric in known.items()
        if metric is not None
        and not metric.roles()
        and metric.judge_needs is None
        and name not in without
        and name not in record.scores
        and metric.applies(plan)
    ]
    if gone:
        yield Note(f"it has no {', '.join(gone)}", "without a metric that runs of their task have", strict=True)
