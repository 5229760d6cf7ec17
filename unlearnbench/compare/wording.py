"""Describe a comparison in words and table cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from unlearnbench.compare.differences import ComparisonRow, attack_rows, metric_rows, worst_case
from unlearnbench.compare.pairs import MethodRuns, Pair, otherwise, paired, same_plan
from unlearnbench.compare.record_diff import COST, Difference, alike, record_differences
from unlearnbench.leaderboard.board import pool_flags
from unlearnbench.leaderboard.robustness import Worst
from unlearnbench.leaderboard.tables import head, shown
from unlearnbench.metric import Metric
from unlearnbench.records.identity import measured_by, record_identity, scored_alike, unique_labels
from unlearnbench.statistics import MANY

NOTHING = "—"
HEADS = ["A", "B", "B - A", "95 % interval", "p"]
BESIDE = ("score", COST)
"""Groups of differences that the tables show already."""
IMAGES = "per-image values"
VERBS = {"efficacy": ("forgets more", "forgets less"), "utility": ("keeps more", "keeps less")}
FIRST = {"efficacy": "ua", "utility": "ra"}


class Comparison(NamedTuple):
    """Everything that a comparison of two methods shows."""

    a: MethodRuns
    b: MethodRuns
    pairs: list[Pair]
    metrics: list[ComparisonRow]
    attacks: list[ComparisonRow]
    worst: tuple[Worst | None, Worst | None]
    apart: list[Difference]
    """Differences in how the first pair was made."""
    little: str | None
    """The only differences of the first pair, if these are times and seeds."""


def comparison(a: MethodRuns, b: MethodRuns) -> Comparison:
    """Compare two sides that passed `pairs.require_comparable`."""
    pairs = paired(a, b)
    first = pairs[0] if pairs else (a.runs[0], b.runs[0])
    rows = record_differences(first[0].record, first[1].record)
    identical = first[0].record.content_hash == first[1].record.content_hash
    made = [row for row in rows if row.group not in BESIDE and not row.outcome and row.what != IMAGES]
    attacks = attack_rows(a, b)
    worst = (worst_case(a), worst_case(b)) if attacks else (None, None)
    little = "nothing: the records are identical" if identical else alike(rows)
    return Comparison(a, b, pairs, metric_rows(a, b), attacks, worst, made, little)


def title(found: Comparison) -> str:
    """Task, protocol and concept of both."""
    record = found.a.runs[0].record
    return f"{record.task}, protocol {record.protocol.name} ({record.protocol.hash[:8]}), forget {record.forget}"


def names_of(found: Comparison) -> tuple[str, str]:
    """The labels of A and B, with what distinguishes them where they are equal."""
    a, b = (record_identity(one.runs[0].record) for one in (found.a, found.b))
    names = unique_labels([a, b])
    return names[a], names[b]


def describe_sides(found: Comparison) -> list[str]:
    """A line for each side: method, seeds, and what went wrong."""
    lines = []
    for name, one, label in zip("AB", (found.a, found.b), names_of(found), strict=True):
        seeds = ", ".join(str(run.seed) for run in one.runs)
        wrong = pool_flags(one.records)
        lines.append(f"{name}: {label}, seed {seeds} ({one.given})" + (f"; {wrong}" if wrong else ""))
    return lines


def cells(row: ComparisonRow) -> list[str]:
    """Format a row for tables."""
    change = NOTHING if row.change is None else signed(row)
    ratio = f" ({times(row.ratio)} x)" if row.ratio is not None else ""
    p = NOTHING if row.adjusted is None else "<0.001" if row.adjusted < 0.001 else f"{row.adjusted:.3f}"
    return [
        head(row.column),
        shown(row.column, row.a),
        shown(row.column, row.b),
        change + ratio,
        format_interval(row),
        p,
    ]


def times(ratio: float) -> str:
    """Format a ratio."""
    return "<0.01" if ratio < 0.01 else f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def signed(row: ComparisonRow) -> str:
    """The difference with its sign, in the metric's unit and decimals."""
    text = shown(row.column, row.change)
    if row.change is None or not float(text):
        return text.removeprefix("-")
    return text if row.change < 0 else f"+{text}"


def format_interval(row: ComparisonRow) -> str:
    """Format the interval in the metric's unit and decimals."""
    return NOTHING if row.interval is None else " … ".join(shown(row.column, end) for end in row.interval)


# ---- words ---------------------------------------------------------------------------------------------------------


def summary(found: Comparison) -> str:
    """Describe forgetting, keeping and time; a difference is claimed only where its interval excludes 0."""
    told, unclear = [], []
    for axis, (more, less) in VERBS.items():
        row = _headline(found.metrics, axis)
        if row is None or row.change is None:
            continue
        if _clear(row):
            better = (row.change > 0) == (row.column.better == "higher")
            told.append(
                f"{more if better else less} ({row.column.title} {signed(row)}{_unit(row)}, {format_interval(row)})"
            )
        else:
            bounds = "no interval" if row.interval is None else format_interval(row)
            unclear.append(f"{row.column.title} ({signed(row)}, {bounds})")
    time = next((row for row in found.metrics if row.name == "unlearn_time"), None)
    if time and time.ratio is not None and _clear(time) and not _elsewhere(found):
        told.append(f"takes {times(time.ratio)} x the time")
    parts = [f"B ({names_of(found)[1]}) {', '.join(told)}"] if told else []
    parts += [f"no difference shown in {' or '.join(unclear)}"] if unclear else []
    return "; ".join(parts)


def _headline(rows: Sequence[ComparisonRow], axis: str) -> ComparisonRow | None:
    """The row of UA or RA, or where a task has neither, the first of the axis."""
    able = [row for row in rows if row.axis == axis and row.column.better and isinstance(row.column, Metric)]
    return next((row for row in able if row.name == FIRST[axis]), able[0] if able else None)


def _clear(row: ComparisonRow) -> bool:
    return row.interval is not None and not row.interval[0] <= 0 <= row.interval[1]


def _unit(row: ComparisonRow) -> str:
    return " points" if row.column.unit == "%" else f" {row.column.unit}" if row.column.unit else ""


def _elsewhere(found: Comparison) -> bool:
    """Whether the first pair ran on different devices, so that costs are not comparable."""
    return any(row.group == "device" for row in found.apart)


def notes(found: Comparison) -> list[str]:
    """Explain how runs were paired, what intervals cover, and what was left out."""
    lines = [_pairing(found), *_gaps(found)]
    if apart := otherwise(found.a, found.b):
        lines.append(f"A and B differ in {' and '.join(apart)}: the methods alone do not explain the differences")
    if apart := [row.column.title for row in found.metrics if _scored_apart(found, row.name)]:
        lines.append(f"not compared, since A and B were scored by different versions of the metric: {', '.join(apart)}")
    if any(row.interval for row in found.metrics):
        lines.append(f"intervals of B - A, each on its own: {_claim(found)}")
    if apart := [row.column.title for row in found.metrics if row.independent]:
        lines.append(f"intervals wider than necessary, since the runs are taken as independent: {', '.join(apart)}")
    if _elsewhere(found):
        lines.append("times and memory were measured on different machines: see device below")
    if found.attacks:
        lines.append(_attacked(found))
    if any(row.p is not None for row in (*found.metrics, *found.attacks)):
        tests = "exact McNemar for shares within one run, paired t over seeds"
        lines.append(f"p: {tests}; Holm-adjusted over the rows of its table; costs are not tested")
    return lines


def _scored_apart(found: Comparison, name: str) -> bool:
    codes = [{measured_by(record, name) for record in scored_alike(one.records, name)} for one in (found.a, found.b)]
    return codes[0] != codes[1] and all(codes)


def _attacked(found: Comparison) -> str:
    runs = max(row.runs for row in found.attacks)
    targets = max(row.images for row in found.attacks)
    if runs > 1:
        return f"attacks: paired t over {runs} runs each, {targets} targets at most"
    return f"attacks: 1 run each, exact McNemar over {targets} targets at most; intervals do not cover searches"


def _pairing(found: Comparison) -> str:
    if not all(one.counted for one in (found.a, found.b)):
        return "nothing is paired: " + " and ".join(
            f"{name} has no run with scores" for name, one in (("A", found.a), ("B", found.b)) if not one.counted
        )
    if not found.pairs:
        return "nothing is paired: A and B have no unlearning seed in common"
    seeds = [run.seed for run in found.pairs[0]]
    count = len(found.pairs)
    line = f"paired: {count} run{'s' if count > 1 else ''} each"
    fixed = [name for name, one in (("A", found.a), ("B", found.b)) if one.fixed]
    if fixed:
        line += f" ({' and '.join(fixed)} the same for every seed)"
    elif count == 1 and seeds[0] != seeds[1]:
        line += f" (seeds {seeds[0]} and {seeds[1]})"
    else:
        line += f" (seed {', '.join(str(run.seed) for run, _ in found.pairs)})"
    return line + _images(found)


def _images(found: Comparison) -> str:
    """Number of images of the first pair, by group."""
    frame = found.pairs[0][0].images
    if frame is None or not all(map(same_plan, found.pairs)):
        return ""
    counts = frame.groupby("group", sort=False).size()
    return ", images by index: " + ", ".join(f"{count} {group}" for group, count in counts.items())


def _gaps(found: Comparison) -> list[str]:
    """Name runs without a partner, and pairs without images."""
    lines = []
    if found.pairs:
        for name, place, one in (("A", 0, found.a), ("B", 1, found.b)):
            used = {pair[place].path for pair in found.pairs}
            left = [str(run.seed) for run in one.counted if run.path not in used]
            if left and not one.fixed:
                lines.append(f"not paired: seed {', '.join(left)} of {name}")
    lacking = [run.path for pair in found.pairs for run in pair if run.images is None]
    if lacking:
        lines.append(f"{lacking[0]} has no per-image values (.parquet): images cannot be paired")
    elif found.pairs and not all(map(same_plan, found.pairs)):
        lines.append("images cannot be paired: A and B had different prompts or noise")
    return lines


def _claim(found: Comparison) -> str:
    count = len(found.pairs)
    if count < 2:
        return "they cover other images, not other unlearning seeds"
    if count >= MANY and all(map(same_plan, found.pairs)):
        return "they cover other unlearning seeds and other images"
    return "they cover other unlearning seeds with the same images"


def worst_line(found: Comparison) -> str:
    """The worst case of both."""
    texts = []
    for name, worst in zip("AB", found.worst, strict=True):
        if worst is None or worst.value is None:
            texts.append(f"{name} {NOTHING}")
            continue
        kind = "of the possible excess over retrain's" if worst.over_retrain else "plain ASR"
        texts.append(f"{name} {'≥ ' if worst.bound else ''}{100 * worst.value:.1f} % by {worst.label} ({kind})")
    return f"worst standard attack: {', '.join(texts)}"


def group_differences(rows: Sequence[Difference]) -> list[list[str]]:
    """Differences as rows of group, what, A, B; each group is named once."""
    before = ["", *(row.group for row in rows)]
    return [["" if row.group == last else row.group, *row.cells[:3]] for row, last in zip(rows, before, strict=False)]
