"""Tables of tuning: default settings against tuned and, where a paper ran the task, published ones; and the cost."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unlearnbench import registry
from unlearnbench.hashing import digest
from unlearnbench.leaderboard.formats import as_markdown
from unlearnbench.leaderboard.rows import Board
from unlearnbench.leaderboard.tables import Sheet, columns_of, tables
from unlearnbench.plots.files import render_png
from unlearnbench.plots.tuning import best_so_far
from unlearnbench.records.tuning import FOLDER, Trial, Tuning

DIVISIONS = ("default", "published", "tuned")
COLUMNS = ("score", "still", "another", "nothing", "ra", "fid", "unlearn_time")
HEADS = ["method", "default", "published", "tuned", "all seeds", "trials", "lost", "cut", "evaluations"]
HEADS += ["hours", "chosen"]
PUBLISHED = "published"
"""The preset, the column and the division that only tasks have that a paper ran."""
BORROWED = "settings of a paper for another task"
"""What a candidate that tuning called published is, where no paper ran the task."""
INTRODUCTION = (
    "Every method has the same number of trials and the same cap on model evaluations, on concepts, seeds, noise and a "
    "judge that are not used for reporting (`unlearnbench tune`)."
)
WIDTH = 120
"""Columns that the introduction is broken at."""


def introduction(found: Sequence[Tuning]) -> str:
    """The heading of the section and what its tables hold; it speaks of a paper's settings where there are any."""
    text = INTRODUCTION
    if any(map(has_published, found)):
        text += (
            " The column published is for settings of a method's paper for the task; where it is empty, it has none."
        )
    if any(map(has_borrowed, found)):
        text += f" Some methods were also tried with {BORROWED}; those are not published settings of this one."
    return f"## Default and tuned settings\n\n{textwrap.fill(text, WIDTH)}\n"


def has_published(one: Tuning) -> bool:
    """Whether the method has published settings for the task that it was tuned on."""
    return one.method in registry.methods() and registry.load_method(one.method).has_preset(PUBLISHED, one.task)


def has_borrowed(one: Tuning) -> bool:
    """Whether one of the trials had settings of a paper that did not run the task."""
    return one.of(PUBLISHED) is not None and not has_published(one)


def heads_of(found: Sequence[Tuning]) -> list[str]:
    """The columns for these tunings: `published` only where one of the methods has such settings for the task."""
    return [head for head in HEADS if head != PUBLISHED or any(map(has_published, found))]


def tuning_note(found: Sequence[Tuning]) -> str:
    """Explain the numbers of a table of tunings. If methods were tuned differently, say how each was tuned."""
    ways: dict[str, list[str]] = {}
    for one in found:
        ways.setdefault(_way(one), []).append(one.method)
    if len(ways) == 1:
        said = f"Objective: the score (the worst of erasure, likeness to retrain and utility), a {next(iter(ways))}."
    else:
        each = "; ".join(f"{', '.join(methods)}: {way}" for way, methods in ways.items())
        said = (
            "Objective: the score (the worst of erasure, likeness to retrain and utility). The methods were tuned "
            f"differently, so their objectives must not be compared: {each}."
        )
    return (
        "lost: diverged, failed or over the cap; cut: stopped when no value on the other concepts could have made it "
        f"one of the best. {said} The best of many trials looks better than it is, because it was chosen for its "
        "value: run --preset tuned reports on other concepts."
    )


def _way(one: Tuning) -> str:
    """The runs that an objective is a mean over, with protocol and cap."""
    chosen_on = one.selection
    return (
        f"mean over forget {', '.join(chosen_on.forget)} with unlearning seed {chosen_on.seeds[0]}; all seeds: "
        f"{', '.join(map(str, chosen_on.seeds))}. Protocol {one.protocol}, sampling seed {chosen_on.sampling_seed}, "
        f"cap {one.cap:,} evaluations a run"
    )


def row(one: Tuning) -> dict[str, str]:
    """A method's cells by `HEADS`: objectives with the first seed by preset and for the chosen settings, and the cost
    of tuning."""

    def shown(value: float | None) -> str:
        return "—" if value is None else f"{value:.3f}"

    def first(trial: Trial | None) -> str:
        if trial is None:
            return ""
        return trial.state if trial.state != "ok" and one.first(trial) is None else shown(one.first(trial))

    chosen = None if one.chosen is None else one.trials[one.chosen]
    lost, cut = sum(trial.state != "ok" for trial in one.trials), sum(trial.cut for trial in one.trials)
    published = has_published(one)
    said = "" if chosen is None else _presets(chosen, published) or _changed(one, chosen)
    cells = [one.method, first(one.of("default")), first(one.of(PUBLISHED)) if published else "", first(chosen)]
    cells += [shown(one.final(chosen) if chosen else None), str(len(one.trials)), str(lost), str(cut)]
    cells += [f"{one.cost.evaluations:,}", f"{one.cost.seconds / 3600:.2f}", said]
    return dict(zip(HEADS, cells, strict=True))


def _presets(trial: Trial, published: bool) -> str:
    return ", ".join(BORROWED if name == PUBLISHED and not published else name for name in trial.presets)


def _changed(one: Tuning, trial: Trial) -> str:
    return " ".join(f"{name}={trial.settings[name]}" for name in one.space)


def page(board: Board, found: Sequence[Tuning]) -> tuple[str, dict[Path, bytes]]:
    """The section of a results page and its pictures by path; empty where nothing was tuned."""
    if not found:
        return "", {}
    parts, made = [introduction(found)], {}
    for task in dict.fromkeys(one.task for one in found):
        tunings = [one for one in found if one.task == task]
        heads = heads_of(tunings)
        rows = [[cells[head] for head in heads] for cells in map(row, tunings)]
        sheets = [Sheet(f"Tuning on {task}", heads, [("", rows)], tuning_note(tunings))]
        text = as_markdown([*sheets, *_reported(board, tunings)])
        path = Path(FOLDER) / task / "best.png"
        made[path] = render_png(
            best_so_far(tunings, f"{task}, {', '.join(dict.fromkeys(one.protocol for one in tunings))}"), digest(text)
        )
        hours = sum(one.cost.seconds for one in tunings) / 3600
        evaluations = sum(one.cost.evaluations for one in tunings)
        parts.append(f"{text}\nIn all {hours:.1f} hours of one thread, {evaluations:,} evaluations.\n")
        parts.append(f"![Best objective so far against trials]({path.as_posix()})\n")
    return "\n".join(parts) + "\n", made


def _reported(board: Board, found: Sequence[Tuning]) -> list[Sheet]:
    """A table for each concept with tuned rows: each method's rows by division, with intervals."""
    metrics = registry.load_metrics()
    names = [name for name in COLUMNS if name in columns_of(metrics)]
    methods = {one.method for one in found}
    kept = board.where(lambda row: row.task == found[0].task and row.method in methods)
    kept = kept.where(lambda row: row.division in DIVISIONS and not row.overrides)
    made = []
    for _, table in kept.tables():
        if not any(row.division == "tuned" for row in table):
            continue
        ordered = sorted(table, key=lambda row: (row.method, DIVISIONS.index(row.division)))
        by_method = table.of(replace(row, access=row.method) for row in ordered)
        (sheet,) = tables(by_method, metrics, names, lambda text: text, intervals=True)
        rows = [[cells[0], *cells[1:2], *cells[3:]] for _, section in sheet.sections for cells in section]
        heads = [sheet.heads[0], sheet.heads[1], *sheet.heads[3:]]
        divisions = {row.division for row in table}
        named = ", ".join(name for name in DIVISIONS if name in divisions).capitalize()
        made.append(Sheet(f"{named}: {sheet.title}", heads, [("", rows)], ""))
    return made
