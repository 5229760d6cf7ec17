"""What a run says when it ends: its numbers beside those of the controls, what to do next, and all of it as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearnbench import registry
from unlearnbench.leaderboard.board import Images, board_scores, estimate, lacking_anchors, no_images
from unlearnbench.leaderboard.tables import floors_line, head, run_command, shown
from unlearnbench.records import identity
from unlearnbench.records.schema import Record

HEADLINES = ("still", "another", "nothing", "ua", "ra", "clip_score", "fid", "unlearn_time")

SCORED = (
    ("erasure", "erasure", "0 original, 1 nothing left of the concept"),
    ("likeness", "likeness to retrain", "0 original, 1 another retrain"),
    ("utility", "utility", "0 destroy, 1 original"),
)
"""What a score is the worst of: name, title, and what 0 and 1 are."""


def group_runs(records: Iterable[Record]) -> list[list[Record]]:
    """Group records by identity, in the order in which they come."""
    return list(identity.group_records(records).values())


def gold(records: Iterable[Record], like: Record, control: str) -> list[Record]:
    """The records of a control that are comparable with a record (`identity.matching`)."""
    return identity.matching(records, like, control)[0]


def by_table(groups: Iterable[list[Record]]) -> list[list[list[Record]]]:
    """Put the groups of one task, protocol and concept together: these share a table."""
    tables: dict[tuple[str, ...], list[list[Record]]] = {}
    for group in groups:
        tables.setdefault(identity.record_identity(group[0]).table, []).append(group)
    return list(tables.values())


def metric_run_rows(
    group: Sequence[Record],
    original: Record,
    retrain: Sequence[Record],
    images: Images = no_images,
    kept: Sequence[Record] = (),
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table: metric, original, change, method, its interval, and retrain if available.

    `kept` are records of the same runs with other digits, which stay in the folder: they get a column of their own.
    """
    rows = []
    metrics = registry.load_metrics().items()
    without = registry.without(group[0].task)
    for name, metric in metrics:
        if name in without or not (metric.everywhere or any(name in record.scores for record in group)):
            continue
        found = estimate(group, name, images)
        before, after = estimate([original], name).value, estimate(retrain, name).value
        change = None if found.value is None or before is None or metric.axis == "cost" else found.value - before
        bounds = "—" if found.interval is None else " … ".join(shown(metric, value) for value in found.interval)
        moved = ("+" if change and change > 0 else "") + shown(metric, change)
        cells = [shown(metric, before), moved, shown(metric, found.value), bounds]
        rows.append([head(metric), *cells, *([shown(metric, after)] if retrain else [])])
        if kept:
            rows[-1].insert(5, shown(metric, estimate(kept, name).value))
    heads = ["metric", "original", "change", group[0].label(), "95 % interval", *(["retrain"] if retrain else [])]
    if kept:
        heads.insert(5, "kept record")
    return heads, rows


def method_rows(
    groups: Sequence[Sequence[Record]], original: Record, retrain: Sequence[Record], images: Images = no_images
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of several methods: a row for each, after the original's, with a metric a column.

    Over several seeds a value is the mean ± standard deviation. Retrain closes the table where it has records and is
    none of the groups.
    """
    every = [[original], *(list(group) for group in groups if group[0].method.name != "original")]
    if retrain and all(group[0].method.name != "retrain" for group in groups):
        every.append(list(retrain))
    without, metrics = registry.without(original.task), registry.load_metrics()
    names = [
        name
        for name in metrics
        if name not in without and any(name in record.scores for group in every for record in group)
    ]
    of = [identity.record_identity(group[0]) for group in every]
    labels, rows = identity.unique_labels(of), []
    for one_of, group in zip(of, every, strict=True):
        found = [estimate(group, name, images) for name in names]
        values = [shown(metrics[name], one.value, one.sd) for name, one in zip(names, found, strict=True)]
        status = next((record.status for record in group if record.status != "ok"), "")
        rows.append([labels[one_of], str(len(group)), *values, status])
    heads = ["method", "n", *(head(metrics[name]) for name in names), "flags"]
    if not any(row[-1] for row in rows):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    return heads, rows


def headline_heads() -> list[str]:
    """Heads of the metrics that a narrow table of several methods keeps, the most important first."""
    metrics = registry.load_metrics()
    return [head(metrics[name]) for name in HEADLINES if name in metrics]


def kept_line(mine: Record, kept: Record, path: Path) -> str:
    """Say which record of the same run stays in the folder, beside the numbers measured here."""
    there, here = (each.environment.get("device") or "another machine" for each in (kept, mine))
    made = kept.created.replace("T", " ").removesuffix("+00:00")
    return (
        f"seed {mine.seeds['unlearning']}: your numbers, measured here ({here}), come first; the record {path}, made "
        f"on {there} at {made} UTC, differs in its last digits and is kept: --force replaces it"
    )


def fitting_tasks(record: Record) -> list[str]:
    """Tasks that have all that a skipped record's method needs; none where it was skipped for another reason."""
    needs = frozenset(record.method.requires)

    def hosts(name: str) -> bool:
        task = registry.load_task(name)
        return needs <= task.provides | task.model_parts

    if record.status != "skipped" or record.task not in registry.tasks() or hosts(record.task):
        return []
    return [name for name in registry.tasks() if hosts(name)]


def next_steps(results: Path, records: Sequence[Record]) -> list[str]:
    """Commands that show what a run has made, each as it can be typed."""
    if not any(record.status in ("ok", "unreliable") for record in records):
        return []
    folder = "" if results == Path("results") else f" --results {shlex.quote(str(results))}"
    return [f"unlearnbench leaderboard{folder}", f"unlearnbench report{folder}"]


def run_document(
    records: Sequence[Record],
    baseline: Sequence[Record],
    here: Mapping[Path, Record],
    failed: Sequence[str],
    results: Path,
) -> dict[str, Any]:
    """What a run came to, as one JSON document.

    `runs` and `original` hold the records' main values; `measured_here` is what this machine found where another
    record of the same run is kept, else null. `failed` says for each cell without a record which it is and why.
    """

    def values(record: Record) -> dict[str, Any]:
        return {name: score.model_dump(mode="json") for name, score in record.scores.items()}

    def entry(record: Record) -> dict[str, Any]:
        mine = here.get(record.place())
        return {
            "task": record.task,
            "protocol": record.protocol.name,
            "forget": record.forget,
            "method": record.label(),
            "seed": record.seeds["unlearning"],
            "status": record.status,
            "reason": record.reason,
            "record": str(record.path(results)),
            "created": record.created,
            "scores": values(record),
            "attacks": {name: attack.model_dump(mode="json") for name, attack in record.attacks.items()},
            "measured_here": None if mine is None else values(mine),
            "fitting_tasks": fitting_tasks(record),
        }

    return {
        "results": str(results),
        "runs": [entry(record) for record in records],
        "original": [entry(record) for record in baseline],
        "failed": list(failed),
        "next": next_steps(results, records),
    }


def run_notes(
    group: Sequence[Record],
    controls: Mapping[str, Sequence[Record]],
    images: Images = no_images,
    why: Mapping[str, str] | None = None,
) -> list[str]:
    """Lines below the table: what real images score, an older version, and anchored scores where controls exist.

    `why` gives the reason for controls that exist but are not comparable.
    """
    metrics = registry.load_metrics()
    floors = {name: estimate(group, name).floor for name in metrics}
    lines = [floors_line(metrics, floors)] if any(value is not None for value in floors.values()) else []
    if older := identity.older_flag(group):
        lines.append(f"{older}: run again with --force to measure with this one")
    found = board_scores(group, controls, images, why)
    parts = [
        f"{title} {value:.2f} ({meaning})"
        for name, title, meaning in SCORED
        if (value := found.value(name)) is not None
    ]
    score = found.value("score")
    lines += [f"score {score:.2f}, the worst of {', '.join(parts)}"] if score is not None else parts
    return lines


def lacking_controls(
    groups: Iterable[Sequence[Record]],
    controls: Mapping[str, Sequence[Record]],
    why: Mapping[str, str] | None = None,
    shipped: Mapping[str, str] | None = None,
    results: Path | None = None,
) -> list[str]:
    """The line below a table that says which controls its scores lack, and which command makes them; none if none does.

    `why` gives the reason for controls in the folder that are not comparable, `shipped` for those that are shipped with
    a checkout.
    """
    lacking = [name for name in lacking_anchors(controls) if name != "original"]
    first = next((group[0] for group in groups if group[0].method.name not in lacking), None)
    if first is None or not lacking or not registry.trainable(first.task):
        return []
    here = [why[name] for name in lacking if why and name in why]
    told = [*here, *(f"the shipped {shipped[name]}" for name in lacking if shipped and name in shipped)]
    because = f" that fit ({'; '.join(told)})" if told else ""
    command = run_command(lacking, first.task, first.forget, first.protocol.name, results, bool(here))
    return [f"no scores without the controls{because}: {command}"]


def prompt_set_rows(group: Sequence[Record]) -> tuple[list[str], list[tuple[str, list[list[str]]]], list[str]]:
    """Heads, sections and notes of the table of the user's own prompts: one section for each seed, file and group."""
    metrics, sections, notes = registry.load_metrics(), list[tuple[str, list[list[str]]]](), dict[str, None]()
    for record in group:
        seed = f" · seed {record.seeds['unlearning']}" if len(group) > 1 else ""
        for found in record.prompt_sets.values():
            for name, part in found.groups.items():
                rows = []
                for metric_name, paired in part.scores.items():
                    if (metric := metrics.get(metric_name)) is None:  # of a plug-in that is not installed here
                        continue
                    score = paired.score
                    spans = [
                        "—" if bounds is None else " … ".join(shown(metric, value) for value in bounds)
                        for bounds in (score.interval, paired.interval)
                    ]
                    moved = ("+" if (paired.difference or 0) > 0 else "") + shown(metric, paired.difference)
                    counted = f"{score.n - score.missing:,}"
                    cells = [
                        head(metric),
                        counted,
                        shown(metric, paired.original),
                        shown(metric, score.value),
                        spans[0],
                    ]
                    rows.append([*cells, moved, spans[1]])
                count = f"{part.prompts:,} prompt{'' if part.prompts == 1 else 's'}"
                sections.append((f"{found.side} · {name} ({found.file}), {count}{seed}", rows))
            for why in dict.fromkeys(found.not_scored.values()):
                left = [
                    metrics[name].title
                    for name, reason in found.not_scored.items()
                    if reason == why and name in metrics
                ]
                notes[f"not scored on {found.file}: {', '.join(left)} ({why})"] = None
    heads = ["metric", "n", "original", group[0].label(), "95 % interval", "paired change", "its interval"]
    return heads, sections, list(notes)
