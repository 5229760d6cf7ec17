"""Decide whether two runs of the same thing agree: how alike their machines are, and how far apart a number may be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from unlearnbench.records.image_table import mean_of
from unlearnbench.records.schema import TIMED, Record
from unlearnbench.records.scores import ScoreRecord

if TYPE_CHECKING:
    import pandas as pd

Likeness = Literal["same", "alike", "other"]
EXACT = 1e-6
WIDTHS = {"alike": 1.0, "other": 2.0}
"""Half-widths of the record's own 95 % interval."""
SHARES = {"alike": 0.05, "other": 0.10}
"""Shares of the value, where a score has no interval."""
UNSAMPLED = "not on a sample"
GONE = "no such metric in this version"


class VerificationRow(NamedTuple):
    """One number as recorded and as measured again; `agrees` is None where it was not measured again."""

    metric: str
    recorded: float | str | None
    anew: float | str | None
    difference: float | None
    tolerance: float | None
    agrees: bool | None
    note: str = ""


def likeness(then: Record, now: Record) -> Likeness:
    """Compare the machines and versions of two runs.

    - same: device, threads, torch and code are equal, on a CPU, where that gives equal bits - alike: another machine,
    thread count, version or code; always on CUDA, whose kernels add in varying order - other: another kind of device
    """
    a, b = then.environment, now.environment
    if a.get("device_type") != b.get("device_type"):
        return "other"
    equal = all(a.get(name) == b.get(name) for name in ("device", "threads"))
    equal &= (a.get("packages") or {}).get("torch") == (b.get("packages") or {}).get("torch")
    return "same" if equal and a.get("device_type") == "cpu" and _codes(then) == _codes(now) else "alike"


def _codes(record: Record) -> tuple[str, str, dict[str, str]]:
    return record.method.code_hash, record.engine_hash, {name: s.code_hash for name, s in record.scores.items()}


def tolerance(kind: Likeness, value: float | None, interval: tuple[float, float] | None = None) -> float:
    """Return how far apart two values may be.

    - same: 1e-6 - alike: 1e-6 plus one half-width of the 95 % interval; 5 % of a value without an interval - other:
    1e-6 plus two half-widths; 10 %
    """
    if kind == "same":
        return EXACT
    return EXACT + (WIDTHS[kind] * (interval[1] - interval[0]) / 2 if interval else SHARES[kind] * abs(value or 0))


def provenance(then: Record, now: Record, kind: Likeness) -> Iterator[VerificationRow]:
    """Yield rows for differences that no tolerance covers: other method code, or other weights on the same machine."""
    a, b = then.method.code_hash, now.method.code_hash
    if a != b:
        yield VerificationRow("method's code", a[:12], b[:12], None, None, False, "the method's file is another")
    old, new = then.weights["unlearned"], now.weights["unlearned"]
    if kind == "same" and old != new:
        yield VerificationRow(
            "weights", (old or "none")[:12], (new or "none")[:12], None, None, False, "must be equal bit for bit"
        )


def outcomes(then: Record, now: Record, sampled: bool) -> Iterator[VerificationRow]:
    """Compare status and step of divergence; a sample of the images cannot tell whether a record is unreliable."""
    if not (sampled and now.scores):
        yield VerificationRow(
            "status", then.status, now.status, None, None, then.status == now.status, now.reason or ""
        )
    if then.status == now.status == "diverged" and then.step is not None:
        yield compare_values("step", then.step, now.step, tolerance(likeness(then, now), then.step))


def sampled_scores(
    then: Record, now: Record, images_then: pd.DataFrame, images_now: pd.DataFrame, kind: Likeness
) -> Iterator[VerificationRow]:
    """Compare each score: the mean over the sampled images, or the value where it needs no images."""
    for name, score in _untimed(then):
        found = now.scores.get(name)
        if found is None:
            yield VerificationRow(name, score.value, None, None, None, False, GONE)
        elif found.reason == UNSAMPLED:
            yield VerificationRow(name, score.value, None, None, None, None, UNSAMPLED)
        elif name in images_then or name in images_now:
            yield _means(name, images_then.get(name), images_now.get(name), kind, score.interval)
        else:
            yield compare_values(name, score.value, found.value, tolerance(kind, score.value, score.interval))


def whole_scores(then: Record, now: Record, kind: Likeness) -> Iterator[VerificationRow]:
    """Compare each score. Bounds and floor, which older schemas lack, have a row only where they disagree."""
    for name, score in _untimed(then):
        found = now.scores.get(name)
        if found is None:
            yield VerificationRow(name, score.value, None, None, None, False, GONE)
            continue
        row = compare_values(name, score.value, found.value, tolerance(kind, score.value, score.interval))
        if (score.n, score.missing) != (found.n, found.missing):
            lost = f"{score.missing} of {score.n} missing then, {found.missing} of {found.n} now"
            row = row._replace(agrees=False, note=lost)
        yield row
        allowed = tolerance(kind, found.value, found.interval)  # not the record's: it may be what is wrong
        bounds = zip(score.interval or (None, None), found.interval or (None, None), strict=True)
        parts = [("low", *next(bounds)), ("high", *next(bounds))]
        parts += [(part, value, (found.parts or {}).get(part)) for part, value in (score.parts or {}).items()]
        parts += [("floor", score.floor, found.floor)] if score.floor is not None else []
        rows = [compare_values(f"{name}, {part}", a, b, allowed) for part, a, b in parts]
        yield from (row for row in rows if not row.agrees)


def judgements(then: pd.DataFrame, now: pd.DataFrame, kind: Likeness) -> Iterator[VerificationRow]:
    """Compare on how many images the judge agrees, and the mean probability of the concept that was asked for."""
    for name in ("judged", "refused"):
        a, b = (frame[name].astype("Float64").to_numpy(float, na_value=math.nan) for frame in (then, now))
        same = float(np.isclose(a, b, rtol=0, atol=0, equal_nan=True).mean())
        yield compare_values(f"{name} alike", 1.0, same, tolerance(kind, 1.0))
    yield _means("p_asked", then["p_asked"], now["p_asked"], kind)


def compare_attacks(then: Record, now: Record, kind: Likeness) -> Iterator[VerificationRow]:
    """Compare the ASR of every attack, on the same machine target by target."""
    for label, one in then.attacks.items():
        other = now.attacks.get(label)
        if other is None:
            yield VerificationRow(label, one.value, None, None, None, None, GONE)
        elif (one.status, other.status) != ("ok", "ok"):
            yield VerificationRow(
                label, one.status, other.status, None, None, one.status == other.status, other.reason or ""
            )
        else:
            row = compare_values(label, one.value, other.value, tolerance(kind, one.value, one.interval))
            apart = (one.recovered, one.spent) != (other.recovered, other.spent)
            exact = kind == "same" and one.code_hash == other.code_hash
            yield row._replace(agrees=False, note="other targets, or at other cost") if exact and apart else row


def _untimed(record: Record) -> list[tuple[str, ScoreRecord]]:
    return [(name, score) for name, score in record.scores.items() if name not in TIMED]


def _means(
    name: str,
    then: pd.Series | None,
    now: pd.Series | None,
    kind: Likeness,
    interval: tuple[float, float] | None = None,
) -> VerificationRow:
    """Compare means over images; the same images must be missing."""
    a, b = (None if column is None else mean_of(column) for column in (then, now))
    row = compare_values(name, a, b, tolerance(kind, a, interval))
    if then is None or now is None:
        return row
    lost = int((then.isna() != now.isna()).sum())
    return row._replace(agrees=False, note=f"{lost} images missing on one side only") if lost else row


def compare_values(name: str, then: float | None, now: float | None, allowed: float, note: str = "") -> VerificationRow:
    """Compare two values; a missing value agrees only with a missing value."""
    if then is None or now is None:
        return VerificationRow(name, then, now, None, allowed, then is now, note)
    gap = abs(now - then)
    return VerificationRow(name, then, now, gap, allowed, gap <= allowed, note)
