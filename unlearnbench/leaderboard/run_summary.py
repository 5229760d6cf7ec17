"""The table after a run: one method compared with the original, and with retrain if available."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from unlearnbench import registry
from unlearnbench.leaderboard.board import Images, board_scores, estimate, no_images
from unlearnbench.leaderboard.tables import floors_line, head, shown
from unlearnbench.records import identity
from unlearnbench.records.schema import Record


def group_runs(records: Iterable[Record]) -> list[list[Record]]:
    """Group records by identity, in the order in which they come."""
    return list(identity.group_records(records).values())


def gold(records: Iterable[Record], like: Record, control: str) -> list[Record]:
    """The records of a control that are comparable with a record (`identity.matching`)."""
    return identity.matching(records, like, control)[0]


def metric_run_rows(
    group: Sequence[Record], original: Record, retrain: Sequence[Record], images: Images = no_images
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table: metric, original, change, method, its interval, and retrain if available."""
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
    heads = ["metric", "original", "change", group[0].label(), "95 % interval", *(["retrain"] if retrain else [])]
    return heads, rows


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
    for name, meaning in (("efficacy", "0 original, 1 retrain"), ("utility", "0 destroy, 1 original")):
        if found[name] is not None:
            lines.append(f"{name} {found[name]:.2f} ({meaning})")
    lacking = [name for name in ("retrain", "destroy") if not controls.get(name)]
    if registry.trainable(group[0].task) and lacking and group[0].method.name not in lacking:
        words = f"--method {','.join(lacking)} --forget {group[0].forget}"
        told = [why[name] for name in lacking if why and name in why]
        because = f" that fit ({'; '.join(told)})" if told else ""
        lines.append(
            f"no scores without the controls{because}; run them with the same --task, --protocol, --results: "
            f"unlearnbench run {words}{' --force' if told else ''}"
        )
    return lines


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
