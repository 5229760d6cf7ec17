"""Compare two methods in every score and attack, with intervals of the paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench import registry
from unlearnbench.compare.pairs import MethodRuns, Pair, Run, paired, same_plan
from unlearnbench.leaderboard import robustness
from unlearnbench.leaderboard.board import estimate
from unlearnbench.leaderboard.run_summary import gold
from unlearnbench.leaderboard.tables import Derived
from unlearnbench.metric import Metric
from unlearnbench.records.folder import read_all, record_files_in
from unlearnbench.records.identity import attacked_by, measured_by, scored_alike
from unlearnbench.records.schema import AttackRecord
from unlearnbench.statistics import Interval, clip_interval, difference, holm, over_pairs, paired_p

if TYPE_CHECKING:
    import numpy as np

Bounds = tuple[float | None, float | None]
Columns = tuple["np.ndarray", "np.ndarray"]
"""Values of A and of B, (S runs, I shared images)."""


class ComparisonRow(NamedTuple):
    """One metric or attack of A and B, and their difference."""

    name: str
    column: Metric | Derived
    axis: str
    a: float | None
    b: float | None
    change: float | None = None
    """b - a."""
    interval: Interval | None = None
    p: float | None = None
    adjusted: float | None = None
    """p adjusted by Holm over the rows of its table."""
    runs: int = 0
    """Number of pairs of runs."""
    images: int = 0
    """Images, or targets, that both runs of a pair have."""
    independent: bool = False
    """Whether the interval treats A and B as independent, which makes it wider than necessary."""

    @property
    def ratio(self) -> float | None:
        """b / a of a cost; None where a is shown as 0."""
        if self.axis != "cost" or self.a is None or self.b is None:
            return None
        return self.b / self.a if round(self.a * self.column.scale, self.column.digits) else None


def metric_rows(a: MethodRuns, b: MethodRuns) -> list[ComparisonRow]:
    """Compare every metric that either has, in the order of tables; unknown metrics come last."""
    pairs, metrics = paired(a, b), registry.load_metrics()
    seen = {name: score for run in (*a.counted, *b.counted) for name, score in run.record.scores.items()}
    without = registry.without(a.runs[0].record.task)
    names = [name for name in (*metrics, *sorted(set(seen) - set(metrics))) if name in seen and name not in without]
    rows = []
    for name in names:
        score = seen[name]
        column = metrics.get(name) or Derived(name, "", score.axis, score.better, score.unit, digits=4)
        found = _alike([pair for pair in pairs if all(_value(run, name) is not None for run in pair)], name)
        rows.append(_metric_row(name, column, score.axis, found, (a, b)))
    return _adjusted(rows)


def _alike(pairs: Sequence[Pair], name: str) -> list[Pair]:
    """The pairs in which both runs were scored by one version of the metric, the same in all pairs."""
    same = [pair for pair in pairs if len({measured_by(run.record, name) for run in pair}) == 1]
    kept = {id(record) for record in scored_alike([pair[0].record for pair in same], name)}
    return [pair for pair in same if id(pair[0].record) in kept]


def _value(run: Run, name: str) -> float | None:
    score = run.record.scores.get(name)
    return score.value if score else None


def _metric_row(
    name: str, column: Metric | Derived, axis: str, pairs: list[Pair], sides: tuple[MethodRuns, MethodRuns]
) -> ComparisonRow:
    bounds = column.bounds() if isinstance(column, Metric) else (None, None)
    if not pairs:
        return _apart_row(ComparisonRow(name, column, axis, None, None), sides, bounds)
    values = [[_value(run, name) or 0.0 for run in runs] for runs in zip(*pairs, strict=True)]
    columns = None if axis == "cost" else _matrices(pairs, lambda run: _image_values(run, name))
    row = _contrast(ComparisonRow(name, column, axis, None, None), values[0], values[1], columns, bounds)
    if row.interval is None and len(pairs) == 1 and axis != "cost":
        ends = [run.record.scores[name] for run in pairs[0]]
        apart = difference((row.b or 0.0, ends[1].interval), (row.a or 0.0, ends[0].interval))
        return row._replace(interval=_limited(apart, bounds), independent=apart is not None)
    return row


def _apart_row(row: ComparisonRow, sides: tuple[MethodRuns, MethodRuns], bounds: Bounds) -> ComparisonRow:
    """Compare means without pairs, with intervals taken as independent."""
    a, b = (estimate([run.record for run in one.counted], row.name) if one.counted else None for one in sides)
    row = row._replace(a=a.value if a else None, b=b.value if b else None)
    if not a or not b or a.value is None or b.value is None:
        return row
    codes = [{measured_by(r, row.name) for r in scored_alike(one.records, row.name)} for one in sides]
    if codes[0] != codes[1]:
        return row
    apart = None if row.axis == "cost" else difference((b.value, b.interval), (a.value, a.interval))
    return row._replace(change=b.value - a.value, interval=_limited(apart, bounds), independent=apart is not None)


def _limited(interval: Interval | None, bounds: Bounds) -> Interval | None:
    """Limit the interval of a difference to the range of the values."""
    least, most = bounds
    width = None if least is None or most is None else most - least
    return clip_interval(interval, None if width is None else -width, width)


def _contrast(
    row: ComparisonRow, a: Sequence[float], b: Sequence[float], columns: Columns | None, bounds: Bounds
) -> ComparisonRow:
    """Fill in means, difference, interval and p of paired runs."""
    first, second = sum(a) / len(a), sum(b) / len(b)
    interval = over_pairs(b, a, None if columns is None else (columns[1], columns[0]))
    return row._replace(
        a=first,
        b=second,
        change=second - first,
        interval=_limited(interval, bounds),
        p=None if row.axis == "cost" else paired_p(a, b, columns),
        runs=len(a),
        images=0 if columns is None else _shared(columns),
    )


def _shared(columns: Columns) -> int:
    import numpy as np

    return int((~np.isnan(columns[0] - columns[1]).any(axis=0)).sum())


def _image_values(run: Run, name: str) -> np.ndarray | None:
    if run.images is None or name not in run.images:
        return None
    return run.images[name].to_numpy(dtype=float, na_value=float("nan"))


def _matrices(pairs: Sequence[Pair], values: Callable[[Run], np.ndarray | None]) -> Columns | None:
    """Values of both by run and image; None where a run lacks them or had other prompts or noise."""
    import numpy as np

    sides = [[column for pair in pairs if (column := values(pair[place])) is not None] for place in (0, 1)]
    whole = all(len(columns) == len(pairs) for columns in sides) and all(map(same_plan, pairs))
    if not whole or len({len(column) for columns in sides for column in columns}) != 1:
        return None
    return np.stack(sides[0]), np.stack(sides[1])


def _adjusted(rows: list[ComparisonRow]) -> list[ComparisonRow]:
    return [row._replace(adjusted=p) for row, p in zip(rows, holm([row.p for row in rows]), strict=True)]


def attack_rows(a: MethodRuns, b: MethodRuns) -> list[ComparisonRow]:
    """Compare every attack that both were tried under with the same settings and code, on common targets."""
    rows = []
    for label in robustness.attack_labels(run.record for run in (*a.runs, *b.runs)):
        pairs = [pair for pair in paired(a, b) if all(label in run.record.attacks for run in pair)]
        tried = [tuple(run.record.attacks[label] for run in pair) for pair in pairs]
        if any(one.value is not None for pair in tried for one in pair):
            column = Derived(label, "", "robustness", "lower", "%", 100.0, 1)
            rows.append(_attack_row(ComparisonRow(label, column, "robustness", None, None), tried))
    return _adjusted(rows)


def _attack_row(row: ComparisonRow, tried: Sequence[tuple[AttackRecord, ...]]) -> ComparisonRow:
    import numpy as np

    alike = [pair for pair in tried if len({attacked_by(row.name, one) for one in pair}) == 1]
    sets: dict[Any, list[tuple[AttackRecord, ...]]] = {}
    for pair in alike:
        if all(one.value is not None for one in pair):
            sets.setdefault(attacked_by(row.name, pair[0]), []).append(pair)
    known = max(sets.values(), key=len, default=[])
    if not known:
        return row._replace(a=tried[0][0].value, b=tried[0][1].value)
    a, b = ([one.value or 0.0 for one in ones] for ones in zip(*known, strict=True))
    columns = None
    if len({one.n for pair in known for one in pair}) == 1:
        hits = [[[np.nan if hit is None else float(hit) for hit in one.recovered] for one in pair] for pair in known]
        columns = np.array([pair[0] for pair in hits]), np.array([pair[1] for pair in hits])
    return _contrast(row, a, b, columns, (0.0, 1.0))


def worst_case(side: MethodRuns) -> robustness.Worst | None:
    """The worst standard attack on one side, in excess of retrain in the same table where that was attacked."""
    first = side.runs[0]
    retrained = read_all(record_files_in(first.path.parent.parent / robustness.GOLD))
    floor = gold(retrained, first.record, robustness.GOLD)
    labels = robustness.attack_labels(side.records)
    return robustness.worst({label: robustness.attack_result(side.records, floor, label) for label in labels})
