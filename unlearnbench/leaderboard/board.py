"""Summarize records as a `Board`: means over seeds with intervals, anchored scores, paired tests and marks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench import registry
from unlearnbench.data.wording import join_words
from unlearnbench.leaderboard import robustness
from unlearnbench.leaderboard.likeness import (
    LEAST_RETRAINS,
    ForgetSamples,
    Likeness,
    forget_samples,
    likeness_to_retrain,
)
from unlearnbench.leaderboard.ranking import ranked
from unlearnbench.leaderboard.robustness import distinct
from unlearnbench.leaderboard.rows import (
    ANCHORED,
    ANCHORS,
    CONTROLS,
    DEFAULT,
    KEYS,
    Board,
    BoardRow,
    Stat,
    Twin,
    words_of,
)
from unlearnbench.metric import Metric
from unlearnbench.names import LOADED
from unlearnbench.records.identity import (
    Identity,
    group_records,
    left_out,
    matching,
    measured_by,
    older_parts,
    record_identity,
    scored_alike,
    suffixes,
    unique_labels,
)
from unlearnbench.records.provenance import surroundings
from unlearnbench.records.schema import TIMED, Record
from unlearnbench.reporting import track
from unlearnbench.statistics import MANY, Interval, anchored, clip_interval, holm, over_seeds, paired_p

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PLAN = ("group", "concept", "label", "seed", "prompt")
"""Columns of per-image values that say how an image was asked for and drawn."""
LEVEL = 0.05

OF_UNLEARNING = ("prepare_time", "unlearn_time", "peak_memory")
"""Costs of unlearning, which nobody here knows of weights that others unlearned."""

Images = Callable[[Record], "pd.DataFrame | None"]
"""A function that returns a record's per-image values."""


def no_images(record: Record) -> None:
    """Stand in for per-image values where there are none."""


class Estimate(NamedTuple):
    """A score over the seeds of one method."""

    value: float | None
    sd: float | None = None
    """Over seeds."""
    interval: Interval | None = None
    n: int = 0
    """Images per run."""
    missing: int = 0
    """Images without a value, in all runs together."""
    floor: float | None = None


def by_seed(records: Iterable[Record], name: str) -> dict[int, float]:
    """Map unlearning seeds to values, where there are any."""
    kept = scored_alike(list(records), name)
    found = {record.seeds["unlearning"]: record.scores[name].value for record in kept}
    return {seed: value for seed, value in found.items() if value is not None}


def estimate(records: Sequence[Record], name: str, images: Images = no_images) -> Estimate:
    """Estimate the mean over seeds, with the interval that their number allows (`over_seeds`).

    One run has its own interval. Equal runs count once, except for times. Runs that were scored by another version of
    the metric than most are left out. What it cost to unlearn weights that others made is unknown.
    """
    if name in OF_UNLEARNING and records and records[0].method.name == LOADED:
        return Estimate(None)
    records = scored_alike(records, name)
    records = records if name in TIMED else distinct(records)
    scores = [record.scores[name] for record in records]
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
    counts = [score.n - score.missing for score in scores if score.value is not None]
    shares_of = counts if first.unit == "share" else None
    metric = registry.known_metric(name)
    bounds = metric.bounds() if metric else (None, None)
    return Estimate(mean, sd, clip_interval(over_seeds(values, matrix, shares_of), *bounds), *known)


def _matrix(records: Sequence[Record], name: str, images: Images) -> np.ndarray | None:
    """Values (seeds, images) of the images that are missing in no run."""
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
) -> Board:
    """Summarize records as one row for each method, concept and protocol.

    Settings of a method with equal images are one row (see `equal_rows`). With `only`, rows are limited to the methods
    with these names or labels. Anchored scores depend on a row's own records and the controls alone; p values, marks
    and ranks depend on the other rows of the table (see `annotated`). Runs that diverged or were skipped have no
    values.
    """
    metrics = metrics or registry.load_metrics()
    groups = group_records(sorted(records, key=lambda record: record.seeds["unlearning"]))
    names, apart = unique_labels(groups), suffixes(groups)
    attacks = robustness.attack_labels(record for group in groups.values() for record in group)
    rows: list[BoardRow] = []
    of: list[list[Record]] = []
    reader = ForgetReader(images)
    order = sorted(groups, key=lambda one: _place(_keys(groups[one][0], names[one])))
    if only is not None:
        order = [one for one in order if {names[one], one.label, groups[one][0].method.name} & {*only}]
    twins = equal_rows({one: groups[one] for one in order})
    order = [one for one in order if one in twins]
    for one in track(order, len(order), "computing rows"):
        group = groups[one]
        counted = _counted(group)
        stats = {name: _stat(estimate(counted, name, images), metric) for name, metric in metrics.items()}
        controls, why = anchors(groups, group[0])
        anchored = board_scores(group, controls, images, why, reader)
        stats |= anchored.stats
        fields: dict[str, Any] = dict(zip(KEYS, _keys(group[0], names[one]), strict=True))
        fields |= {
            "n": len(distinct(counted)),
            **surroundings(group),
            "flags": pool_flags(group),
            "older": list(dict.fromkeys(part for record in group for part in older_parts(record))),
        }
        fields |= {"stats": stats, "unscored": anchored.unscored, "apart": apart[one]}
        fields |= {"setting": _setting(group[0]), "file": weights_file(group[0])}
        fields |= {"lacking": lacking_anchors(controls)}
        fields["twins"] = tuple(_twin(names[twin], apart[twin], groups[twin][0]) for twin in twins[one])
        fields |= robustness.of_row(counted, controls.get(robustness.GOLD, []), attacks)
        rows.append(BoardRow(index=len(rows), **fields))
        of.append(group)
    return Board(ranked(annotated(rows, of, metrics, images, groups)), attacks)


def equal_rows(groups: Mapping[Identity, Sequence[Record]]) -> dict[Identity, list[Identity]]:
    """Find the settings of one method, measured alike, whose runs have the same images bit for bit for the same seeds.

    Returns those that have a row, in the given order, each with the others that it stands for. Of equal ones the row is
    that which was attacked, then the default one.
    """
    alike: dict[Hashable, list[Identity]] = {}
    for one, group in groups.items():
        alike.setdefault((group[0].method.name, one.conditions, one.access, _pictures(group) or one), []).append(one)
    kept = {min(some, key=lambda one: _prominence(groups[one])): some for some in alike.values()}
    return {one: [twin for twin in kept[one] if twin != one] for one in groups if one in kept}


def _pictures(group: Sequence[Record]) -> frozenset[Hashable]:
    """The images of all runs by seed, or of the one run that all seeds are; empty where they are not all known."""
    found = {record.seeds["unlearning"]: record.images for record in group}
    if len(_counted(group)) < len(group) or not all(found.values()):
        return frozenset()
    hashes: set[Hashable] = set(found.values())
    return frozenset(hashes if len(hashes) == 1 else found.items())


def _prominence(group: Sequence[Record]) -> tuple[bool, bool, int]:
    method = group[0].method
    return not any(record.attacks for record in group), method.division != "default", len(method.overrides)


def _twin(label: str, apart: str, record: Record) -> Twin:
    words = words_of(weights_file(record), _setting(record)) or DEFAULT
    return Twin(label, f"{words}, {apart}" if apart else words)


def _stat(found: Estimate, metric: Metric) -> Stat:
    low, high = found.interval or (None, None)
    compared = bool(metric.better) and metric.axis != "cost"
    return Stat(found.value, found.sd, low, high, found.n, found.missing, found.floor, compared=compared)


def _keys(record: Record, label: str) -> tuple[Any, ...]:
    method, protocol = record.method, record.protocol
    access = "unknown" if method.name == LOADED else ", ".join(method.requires) or "none"
    table = (record.task, protocol.name, protocol.hash, record.forget)
    return (*table, access, label, method.name, method.division, len(method.overrides))


def _setting(record: Record) -> tuple[str, ...]:
    """The preset and the settings given by the user, as far as they differ from the defaults."""
    method = record.method
    given = (f"{name}={join_words(value)}" for name, value in sorted(method.overrides.items()))
    return (*([method.preset] if method.preset != "default" else []), *given)


def weights_file(record: Record) -> str:
    """The file or repository of the weights of `checkpoint`, without its folder or revision; "" for other methods."""
    path = str(record.method.settings.get("path", "")) if record.method.name == LOADED else ""
    kind, _, address = path.partition(":")
    if kind in ("hub", "released") and address:
        return re.sub(r"@[^/]*", "", address)
    return PurePath(path).name


def _place(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sort key: table by table, controls first, then methods by the data that they need."""
    return key[:4], _rank(key[6]), "" if key[6] in CONTROLS else key[4], key[5:]


def _rank(method: str) -> int:
    return CONTROLS.index(method) if method in CONTROLS else len(CONTROLS)


def _counted(group: Iterable[Record]) -> list[Record]:
    return [record for record in group if record.status in ("ok", "unreliable")]


def pool_flags(group: Iterable[Record]) -> str:
    """Describe what went wrong, by seed, what is not pooled, and what was made with an older version of this project.

    For example `unreliable (seed 1), diverged at step 12 (seed 2), other version`.
    """
    group = list(group)
    seeds: dict[str, list[int]] = {}
    for record in group:
        if record.status != "ok":
            step = "" if record.step is None else f" at step {record.step}"
            seeds.setdefault(record.status + step, []).append(record.seeds["unlearning"])
    wrong = [f"{what} (seed {', '.join(map(str, found))})" for what, found in seeds.items()]
    return ", ".join([*wrong, *left_out(_counted(group)), *(["other version"] if any(map(older_parts, group)) else [])])


# ---- anchored scores -----------------------------------------------------------------------------------------------


def anchors(groups: Mapping[Identity, list[Record]], like: Record) -> tuple[dict[str, list[Record]], dict[str, str]]:
    """Find the controls that are comparable with a record (`identity.matching`); for the others, say why not."""
    found: dict[str, list[Record]] = {}
    why: dict[str, str] = {}
    table = record_identity(like).table
    for name in CONTROLS:
        runs = [r for one, group in groups.items() if one.table == table and one.label == name for r in group]
        found[name], reason = matching(_counted(runs), like, name)
        why |= {name: reason} if reason else {}
    return {name: runs for name, runs in found.items() if runs}, why


def lacking_anchors(controls: Mapping[str, Sequence[Record]]) -> tuple[str, ...]:
    """The anchors of which there are too few comparable runs: one of each will do, but three of retrain."""
    least = {"retrain": LEAST_RETRAINS}
    return tuple(name for name in ANCHORS if len(controls.get(name, [])) < least.get(name, 1))


class AnchoredScores(NamedTuple):
    """The scores of `ANCHORED` by name, and why some have no value."""

    stats: Mapping[str, Stat]
    unscored: str = ""

    def value(self, name: str) -> float | None:
        """One of the scores."""
        return self.stats[name].value


class ForgetReader:
    """Reads the forget samples of runs, each once: a run that is compared with others stays the same object."""

    def __init__(self, images: Images):
        self._images, self._known = images, dict[str, ForgetSamples | None]()

    def of(self, record: Record) -> ForgetSamples | None:
        """A run's forget samples; None where its per-image values are not there."""
        if (key := record.images or str(record.place())) not in self._known:
            self._known[key] = forget_samples(self._images(record))
        return self._known[key]

    def every(self, records: Iterable[Record]) -> list[ForgetSamples]:
        """The forget samples of these runs; equal runs count once."""
        return [found for record in distinct(records) if (found := self.of(record)) is not None]


def board_scores(
    group: Sequence[Record],
    controls: Mapping[str, Sequence[Record]],
    images: Images = no_images,
    why: Mapping[str, str] | None = None,
    reader: ForgetReader | None = None,
) -> AnchoredScores:
    """Compute the anchored scores of a method's runs, unclipped.

    erasure: 1 - still, 0 for the original and 1 where no forget sample shows the concept. likeness: see
    `likeness_to_retrain`; tasks without retrain have none. utility: the worse of utility_ra (RA) and utility_fid (log
    FID), 0 for destroy and 1 for the original. score: the worst of these three.

    There is no score where the anchors are not clearly apart. `controls` must have the group's original, data, judge
    and engine; `why` gives the reason for controls that were left out.
    """
    runs, reader = _counted(group), reader or ForgetReader(images)
    found: dict[str, Stat] = {}
    reasons: list[str] = []

    def anchor(control: str, name: str, own: float | None) -> Estimate | str:
        others = controls.get(control, [])
        if not others and why and control in why:
            return why[control]
        if own is not None and others and not _comparable(runs, others, name):
            return f"{control} is of another metric code"
        return estimate(others, name, images)

    def between(part: str, name: str, zero: str, one: str | None, log: bool = False) -> None:
        own, scale = estimate(runs, name, images), _log if log else _as_it_is
        ends = [Estimate(1.0, None, (1.0, 1.0)) if control is None else anchor(control, name, own.value)
                for control in (zero, one)]  # fmt: skip
        wrong = next((end for end in ends if isinstance(end, str)), None)
        points = [(scale(end.value), _scaled(end.interval, scale)) for end in ends if not isinstance(end, str)]
        value, reason = (None, wrong) if wrong else anchored(scale(own.value), points[0], points[1])
        found[part] = Stat()
        if value is None:
            reasons.append(f"{part}: {reason}")
            return
        span = _scaled(own.interval, scale)
        low, high = (points[0][0] or 0.0), (points[1][0] or 0.0)
        edges = [None, None] if span is None else sorted((edge - low) / (high - low) for edge in span)
        found[part] = Stat(value, low=edges[0], high=edges[1])

    between("erasure", "ua", "original", None)
    between("utility_ra", "ra", "destroy", "original")
    between("utility_fid", "fid", "destroy", "original", log=True)
    found["utility"] = _worst([found["utility_ra"], found["utility_fid"]])
    parts = ["erasure", "utility"]
    if runs and registry.trainable(runs[0].task):
        alike = _likeness(runs, controls, reader, why)
        reasons += [f"likeness: {alike.reason}"] if alike.reason else []
        for name, part in (("_verdicts", alike.verdicts), ("_features", alike.features), ("", alike.worse)):
            span = (None, None) if part is None or part.interval is None else part.interval
            found[f"likeness{name}"] = Stat() if part is None else Stat(part.value, low=span[0], high=span[1])
        parts.append("likeness")
    found["score"] = _worst([found[part] for part in parts])
    return AnchoredScores({name: found.get(name, Stat()) for name in ANCHORED}, "; ".join(reasons))


def _likeness(
    runs: Sequence[Record],
    controls: Mapping[str, Sequence[Record]],
    reader: ForgetReader,
    why: Mapping[str, str] | None,
) -> Likeness:
    """The likeness to retrain of a method's runs; the original and runs of retrain are those of `controls`."""
    for control in ("original", "retrain"):
        if not controls.get(control) and why and control in why:
            return Likeness(reason=why[control])
    original = reader.every(controls.get("original", []))
    return likeness_to_retrain(
        reader.every(runs), original[0] if original else None, reader.every(controls.get("retrain", []))
    )


def _worst(parts: Sequence[Stat]) -> Stat:
    """The part with the smallest value, with its interval; none where a part is unknown."""
    known = [part for part in parts if part.value is not None]
    return min(known, key=lambda part: part.value or 0.0) if len(known) == len(parts) else Stat()


def _as_it_is(value: float | None) -> float | None:
    return value


def _scaled(interval: Interval | None, scale: Callable[[float | None], float | None]) -> Interval | None:
    """An interval on another scale; ends outside its range go to the least number that it can show."""
    if interval is None:
        return None
    low, high = (scale(max(end, 1e-12) if scale is _log else end) for end in interval)
    return None if low is None or high is None else (low, high)


def _comparable(a: Sequence[Record], b: Sequence[Record], name: str) -> bool:
    """Whether the values of both that are pooled were scored by the same version of the metric."""
    codes = [{measured_by(record, name) for record in scored_alike(runs, name)} for runs in (a, b)]
    return codes[0] == codes[1] or not all(codes)


def _log(value: float | None) -> float | None:
    return math.log(value) if value is not None and value > 0 else None


# ---- annotations of a table ----------------------------------------------------------------------------------------


def p_value(a: Sequence[Record], b: Sequence[Record], name: str, images: Images) -> float | None:
    """`paired_p` over common seeds; None where the two were not measured under the same conditions.

    The original, and methods without randomness, count as the same run for every seed.
    """
    if (
        not a
        or not b
        or record_identity(a[0]).conditions != record_identity(b[0]).conditions
        or not _comparable(a, b, name)
    ):
        return None
    sides = [{r.seeds["unlearning"]: r for r in scored_alike(runs, name) if r.scores[name].value is not None}
             for runs in (a, b)]  # fmt: skip
    if not all(sides):
        return None
    seeds = [(seed, seed) for seed in sorted(set(sides[0]) & set(sides[1]))]
    fixed = [_constant(list(side.values())) for side in sides]
    first = [next(iter(side)) for side in sides]
    if all(fixed):
        seeds = [(first[0], first[1])]
    elif fixed[1]:
        seeds = [(seed, first[1]) for seed in sides[0]]
    elif fixed[0]:
        seeds = [(first[0], seed) for seed in sides[1]]
    elif len(sides[0]) == len(sides[1]) == 1:
        seeds = [(first[0], first[1])]  # the images share their noise, whatever the seed of unlearning
    pairs = [(sides[0][one], sides[1][other]) for one, other in seeds]
    mine, theirs = ([pair[place].scores[name].value or 0.0 for pair in pairs] for place in (0, 1))
    return paired_p(mine, theirs, lambda: _paired_images(*pairs[0], name, images))


def _paired_images(a: Record, b: Record, name: str, images: Images) -> tuple[np.ndarray, np.ndarray] | None:
    """Per-image values of two runs, (1, images) each, where both were asked for the same images."""
    if not same_images(images(a), images(b)):
        return None
    one, other = _column(a, name, images), _column(b, name, images)
    return None if one is None or other is None else (one[None], other[None])


def same_images(a: pd.DataFrame | None, b: pd.DataFrame | None) -> bool:
    """Whether both runs have per-image values, and their images had the same prompts and noise."""
    if a is None or b is None or len(a) != len(b):
        return False
    known = [name for name in PLAN if name in a and name in b]
    return "seed" in known and all(a[name].equals(b[name]) for name in known)


def _constant(records: Sequence[Record]) -> bool:
    return records[0].method.name == "original" or len(distinct(records)) == 1 < len(records)


def annotated(
    rows: Sequence[BoardRow],
    groups: Sequence[list[Record]],
    metrics: Mapping[str, Metric],
    images: Images,
    every: Mapping[Identity, list[Record]],
) -> list[BoardRow]:
    """Add to each metric's `Stat` p against the original and the best (Holm over the table's methods), and a mark.

    `groups` are the records of the rows, `every` those of the rows that were left out too. The best is chosen among
    methods with equal data access that were measured alike, without controls, unreliable rows and weights that others
    unlearned. It is marked "best" only if the test, over five or more seeds of both, tells it from the second best.
    Rows that as many seeds do not tell from the best are marked "not worse"; so is the best itself where it is not
    told from the second. With fewer seeds nothing is marked.
    """
    stats = [dict(row.stats) for row in rows]
    records = [_counted(group) for group in groups]
    conditions = [record_identity(group[0]).conditions for group in groups]
    originals = [anchors(every, group[0])[0].get("original", []) for group in groups]
    for _, table in Board(list(rows)).tables():
        rivals = [row for row in table if not row.is_control]
        for name, metric in metrics.items():
            known = [row.index for row in rivals if row.stat(name).compared and row.stat(name).known]
            raw = [p_value(records[i], originals[i], name, images) for i in known]
            for i, p in zip(known, holm(raw), strict=True):
                stats[i][name] = stats[i][name]._replace(p_original=p)
            peers: dict[Any, list[int]] = {}
            for i in known:
                if rows[i].is_loaded:
                    continue
                code = measured_by(scored_alike(records[i], name)[0], name)
                peers.setdefault((rows[i].access, conditions[i], code), []).append(i)
            for some in peers.values():
                for i, p, mark in _marks(name, [rows[i] for i in some], records, metric, images):
                    stats[i][name] = stats[i][name]._replace(p_best=p, mark=mark)
    return [replace(row, stats=own) for row, own in zip(rows, stats, strict=True)]


def _marks(
    name: str, peers: Sequence[BoardRow], records: Sequence[list[Record]], metric: Metric, images: Images
) -> Iterator[tuple[int, float | None, str | None]]:
    """Yield index, p against the best, and mark of each row among methods that are comparable."""
    values = {row.index: row.stat(name).value or 0.0 for row in peers}
    sound = [row.index for row in peers if not re.search("unreliable|diverged", row.flags)]
    if not sound or len(peers) == 1:
        return
    sign = 1 if metric.better == "higher" else -1
    best, *ranked = sorted(sound, key=lambda i: -sign * values[i])
    others = [i for i in values if i != best]
    p = dict(zip(others, holm([p_value(records[i], records[best], name, images) for i in others]), strict=True))
    tested = [i for i in ranked if _seeds_shared(records[i], records[best], name) >= MANY]
    tested = [i for i in tested if p[i] is not None or values[i] == values[best]]
    apart = [i for i in tested if values[i] != values[best] and (p[i] or 0.0) < LEVEL]
    yield best, None, "best" if ranked and ranked[0] in apart else "not worse" if tested else None
    for i in others:
        yield i, p[i], "not worse" if i in tested and i not in apart else None


def _seeds_shared(a: Sequence[Record], b: Sequence[Record], name: str) -> int:
    """Seeds that a paired test of two methods rests on; a method without randomness is the same run for every seed."""
    sides = [by_seed(runs, name) for runs in (a, b)]
    if any(map(_constant, (a, b))):
        return min(map(len, sides))
    return len(set(sides[0]) & set(sides[1]))
