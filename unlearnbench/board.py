"""Records -> one DataFrame: a row a method with intervals and anchored scores, and what sets rows of a table apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench import registry, robustness
from unlearnbench.metric import Metric
from unlearnbench.provenance import surroundings
from unlearnbench.record import TIMED, Record
from unlearnbench.statistics import MANY, Interval, anchored, holm, mcnemar, over_seeds, paired_t, within

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CONTROLS = ("original", "retrain", "destroy", "prompt_filter")
TABLE = ["task", "protocol", "protocol_hash", "forget"]
"""What rows of one table have in common."""
KEYS = [*TABLE, "access", "label", "method", "division", "overrides"]
LEVEL = 0.05

Images = Callable[[Record], "pd.DataFrame | None"]
"""A record's per-image values."""


def no_images(record: Record) -> None:
    """For records whose per-image values are not at hand."""


class Estimate(NamedTuple):
    """A score over the seeds of one method."""

    value: float | None
    sd: float | None = None
    """Over seeds."""
    interval: Interval | None = None
    n: int = 0
    """Images a run."""
    missing: int = 0
    """In all runs together."""
    floor: float | None = None


def distinct(records: Iterable[Record]) -> list[Record]:
    """Runs whose images were judged equal to the last bit count once: seeds of a method without randomness are one."""
    first: dict[str, Record] = {}
    for number, record in enumerate(records):
        first.setdefault(record.images or f"run {number}", record)
    return list(first.values())


def by_seed(records: Iterable[Record], name: str) -> dict[int, float]:
    """Unlearning seed -> value, where there is one."""
    found = {record.seeds["unlearning"]: record.scores[name].value for record in records if name in record.scores}
    return {seed: value for seed, value in found.items() if value is not None}


def estimate(records: Sequence[Record], name: str, images: Images = no_images) -> Estimate:
    """Mean over seeds with the interval that their number allows (`over_seeds`); of one run, the metric's own.

    Equal runs count once, save for times.
    """
    records = records if name in TIMED else distinct(records)
    scores = [record.scores[name] for record in records if name in record.scores]
    values = list(by_seed(records, name).values())
    missing = sum(score.missing for score in scores)
    if not values:
        return Estimate(None, n=scores[0].n if scores else 0, missing=missing)
    first = next(score for score in scores if score.value is not None)
    known = (first.n, missing, first.floor)
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, None, first.interval, *known)
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    matrix = _matrix(records, name, images) if len(values) >= MANY else None
    shares_of = first.n - first.missing if first.unit == "share" else None
    metric = registry.known_metric(name)
    bounds = metric.bounds() if metric else (None, None)
    return Estimate(mean, sd, within(over_seeds(values, matrix, shares_of), *bounds), *known)


def _matrix(records: Sequence[Record], name: str, images: Images) -> np.ndarray | None:
    """Values (seeds, images) of the images that no run misses."""
    import numpy as np

    rows = [row for record in records if (row := _column(record, name, images)) is not None]
    if len(rows) < len(by_seed(records, name)) or len({len(row) for row in rows}) != 1:
        return None
    matrix = np.stack(rows)
    return matrix[:, ~np.isnan(matrix).any(axis=0)]


def _column(record: Record, name: str, images: Images) -> np.ndarray | None:
    frame = images(record)
    metric = registry.known_metric(name)
    if frame is None or name not in frame or metric is None:
        return None
    return frame.loc[frame.group == metric.side, name].to_numpy(dtype=float, na_value=math.nan)


def board(
    records: Iterable[Record],
    metrics: dict[str, Metric] | None = None,
    images: Images = no_images,
    only: Collection[str] | None = None,
) -> pd.DataFrame:
    """One row a method, concept and protocol; with `only`, of the methods that are named, by name or label.

    Columns: keys, `n` runs that count (equal ones once), `seeds`, `judge`, `hardware`, `flags`; for each metric its
    mean, `_sd`, `_low`, `_high`, `_n`, `_missing`, `_floor`; `efficacy`, `utility`, `utility_fid`, `score` and
    `unscored`, which depend on the row's own records and the controls alone; and as annotations of a table
    `_p_original`, `_p_best` (Holm) and `_mark` (see `annotated`); what attacks found (see `robustness.columns`).
    Seeds that diverged or were skipped have no values.
    """
    import pandas as pd

    metrics = metrics or registry.load_metrics()
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in sorted(records, key=lambda record: record.seeds["unlearning"]):
        groups.setdefault(_keys(record), []).append(record)
    attacks = robustness.labels(record for group in groups.values() for record in group)
    order = sorted(groups, key=lambda key: (key[:4], _rank(key[6]), "" if key[6] in CONTROLS else key[4], key[5:]))
    rows = []
    for key in order if only is None else (key for key in order if {key[5], key[6]} & {*only}):
        group = groups[key]
        row: dict[str, Any] = {
            **dict(zip(KEYS, key, strict=True)),
            "n": len(distinct(_counted(group))),
            **surroundings(group),
            "flags": flags(group),
        }
        for name in metrics:
            found = estimate(_counted(group), name, images)
            low, high = found.interval or (None, None)
            row |= {name: found.value, f"{name}_sd": found.sd, f"{name}_low": low, f"{name}_high": high}
            row |= {f"{name}_n": found.n, f"{name}_missing": found.missing, f"{name}_floor": found.floor}
        controls = anchors(groups, key)
        fought = robustness.columns(_counted(group), controls.get(robustness.GOLD, []), attacks)
        rows.append(row | scores(group, controls, images) | fought)
    return annotated(pd.DataFrame(rows), groups, metrics, images) if rows else pd.DataFrame()


def _keys(record: Record) -> tuple[Any, ...]:
    method, protocol = record.method, record.protocol
    access = ", ".join(method.requires) or "none"
    table = (record.task, protocol.name, protocol.hash, record.forget)
    return (*table, access, record.label(), method.name, method.division, len(method.overrides))


def _rank(method: str) -> int:
    return CONTROLS.index(method) if method in CONTROLS else len(CONTROLS)


def _counted(group: Iterable[Record]) -> list[Record]:
    return [record for record in group if record.status in ("ok", "unreliable")]


def flags(group: Iterable[Record]) -> str:
    """What went wrong, by seed: `unreliable (seed 1), diverged at step 12 (seed 2)`."""
    seeds: dict[str, list[int]] = {}
    for record in group:
        if record.status != "ok":
            step = "" if record.step is None else f" at step {record.step}"
            seeds.setdefault(record.status + step, []).append(record.seeds["unlearning"])
    return ", ".join(f"{what} (seed {', '.join(map(str, found))})" for what, found in seeds.items())


# ---- anchored scores -----------------------------------------------------------------------------------------------


def anchors(groups: dict[tuple[Any, ...], list[Record]], key: tuple[Any, ...]) -> dict[str, list[Record]]:
    """The table's controls, with their default settings."""
    return {k[6]: _counted(group) for k, group in groups.items() if k[:4] == key[:4] and k[6] == k[5] in CONTROLS}


def scores(group: Sequence[Record], controls: dict[str, list[Record]], images: Images = no_images) -> dict[str, Any]:
    """Efficacy (0 original, 1 retrain, by UA), utility (0 destroy, 1 original, by RA; by log FID beside it), unclipped.

    `score` is the worse of efficacy and utility. Where the gap between anchors is not clear of zero there is none.
    """

    def between(name: str, zero: str, one: str, log: bool = False) -> tuple[float | None, str | None]:
        found = [estimate(records, name, images) for records in (controls.get(zero, []), controls.get(one, []))]
        own = estimate(_counted(group), name, images).value
        ends = [(each.value, each.interval) for each in found]
        return anchored(_log(own), *map(_logs, ends)) if log else anchored(own, *ends)

    efficacy, reason = between("ua", "original", "retrain")
    utility, other = between("ra", "destroy", "original")
    both = None if efficacy is None or utility is None else min(efficacy, utility)
    reasons = [f"{name}: {why}" for name, why in (("efficacy", reason), ("utility", other)) if why]
    by_fid = between("fid", "destroy", "original", log=True)[0]
    return {
        "efficacy": efficacy,
        "utility": utility,
        "utility_fid": by_fid,
        "score": both,
        "unscored": "; ".join(reasons),
    }


def _log(value: float | None) -> float | None:
    return math.log(value) if value is not None and value > 0 else None


def _logs(anchor: tuple[float | None, Interval | None]) -> tuple[float | None, Interval | None]:
    value, interval = anchor
    if interval is None:
        return _log(value), None
    return _log(value), (math.log(max(interval[0], 1e-12)), math.log(max(interval[1], 1e-12)))


# ---- annotations of a table ----------------------------------------------------------------------------------------


def p_value(a: Sequence[Record], b: Sequence[Record], name: str, images: Images) -> float | None:
    """Paired t over common seeds, or exact McNemar within a single one.

    The original, and what is without randomness, is the same for every seed.
    """
    one, other = by_seed(a, name), by_seed(b, name)
    if one and other and _constant(b):
        other = dict.fromkeys(list(one)[:1] if _constant(a) else one, next(iter(other.values())))
    elif one and other and _constant(a):
        one = dict.fromkeys(other, next(iter(one.values())))
    seeds = sorted(set(one) & set(other))
    if len(seeds) != 1:
        return paired_t([one[seed] for seed in seeds], [other[seed] for seed in seeds])
    mine = next((record for record in a if record.seeds["unlearning"] == seeds[0]), a[0])
    theirs = next((record for record in b if record.seeds["unlearning"] == seeds[0]), b[0])
    columns = _column(mine, name, images), _column(theirs, name, images)
    if any(column is None or not set(column[~_nan(column)]) <= {0.0, 1.0} for column in columns):
        return None
    return mcnemar(*columns)  # type: ignore[arg-type]


def _constant(records: Sequence[Record]) -> bool:
    return records[0].method.name == "original" or len(distinct(records)) == 1 < len(records)


def _nan(values: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.isnan(values)


def annotated(
    result: pd.DataFrame, groups: dict[tuple[Any, ...], list[Record]], metrics: dict[str, Metric], images: Images
) -> pd.DataFrame:
    """For each metric p against the original and the best (Holm over the table's methods), and a mark.

    The best is among methods of equal data access, controls and unreliable rows apart. Other rows are marked "not
    worse" where five or more seeds do not tell them from the best.
    """
    compared = [name for name, metric in metrics.items() if metric.better and metric.axis != "cost"]
    extra: dict[str, list[Any]] = {f"{name}_{end}": [None] * len(result) for name in compared for end in _ENDS}
    records = [_counted(groups[tuple(row)]) for row in result[KEYS].itertuples(index=False, name=None)]
    for _, table in result.groupby(TABLE, sort=False):
        rivals = table[~table.method.isin(CONTROLS)]
        original = next((records[i] for i in table.index[table.label == "original"]), [])
        for name in compared:
            rows = [i for i in rivals.index if not math.isnan(_number(result[name][i]))]
            for i, p in zip(rows, holm([p_value(records[i], original, name, images) for i in rows]), strict=True):
                extra[f"{name}_p_original"][i] = p
            for _, peers in rivals.loc[rows].groupby("access", sort=False):
                _mark(name, peers, records, metrics[name], images, extra)
    import pandas as pd

    return pd.concat([result, pd.DataFrame(extra, index=result.index)], axis=1)


_ENDS = ("p_original", "p_best", "mark")


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _mark(
    name: str, peers: pd.DataFrame, records: list[list[Record]], metric: Metric, images: Images, extra: dict[str, list]
) -> None:
    sound = peers[~peers["flags"].str.contains("unreliable|diverged")]
    if len(sound) == 0 or len(peers) == 1:
        return
    sign = 1 if metric.better == "higher" else -1
    best = max(sound.index, key=lambda i: sign * sound[name][i])
    others = [i for i in peers.index if i != best]
    extra[f"{name}_mark"][best] = "best"
    for i, p in zip(others, holm([p_value(records[i], records[best], name, images) for i in others]), strict=True):
        extra[f"{name}_p_best"][i] = p
        many = min(len(records[i]), len(records[best])) >= MANY
        tie = peers[name][i] == peers[name][best]
        if i in sound.index and (tie or (many and p is not None and p >= LEVEL)):
            extra[f"{name}_mark"][i] = "best" if tie else "not worse"
