"""`run --dry-run`: estimate time, memory and disk of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unlearnbench.cli.console import err, out, print_table
from unlearnbench.cli.memory_table import byte_count, show_memory
from unlearnbench.data.wording import join_words
from unlearnbench.errors import Failed, UserError, message
from unlearnbench.reporting import bars

if TYPE_CHECKING:
    from unlearnbench.attacks.spec import AttackSpec
    from unlearnbench.method import Method
    from unlearnbench.pipeline.cell import Cell
    from unlearnbench.pipeline.dry_run import Room
    from unlearnbench.pipeline.planning import CostPlan


def show_probe(cells: list[Cell], results: Path, jobs: int = 1, also: Sequence[str] = (), elsewhere: str = "") -> None:
    """Print what a run of these cells would take, from a trial of a few seconds for each method.

    Where the task's files are not there, it is counted from a table instead (see `show_plan`). So it is for jobs that
    this machine cannot try; `elsewhere` says why. `also` are lines to print below.

    Cells that already have a record count as done and are left out of times and disk. A method whose trial fails,
    diverges or is not supported is named at the end, with exit code 1.
    """
    from unlearnbench.compute.precision import Resources
    from unlearnbench.pipeline.dry_run import probe, room
    from unlearnbench.pipeline.planning import lacking_files
    from unlearnbench.pipeline.runner import finished_record
    from unlearnbench.storage.store import Store
    from unlearnbench.training import Diverged

    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.method.name, []).append(cell)
    if lacking := elsewhere or lacking_files(cells[0], results):
        show_plan(groups, lacking, also)
        return
    asked = cells[0].resources
    Resources.checked(asked.precision, asked.memory, cells[0].task.device, asked.compile)  # it is tried on this device
    here = room(cells[0].task.device, Store().root)
    rows, total, once, stored, unknown, notes = [], 0.0, 0.0, 0, False, []
    failed: list[str] = []
    with bars(err, len(groups)) as begin:
        for name, group in groups.items():
            begin(f"{name}: trying")
            done = sum(finished_record(cell, results) is not None for cell in group)
            try:
                left, found = len(group) - done, probe(group[0])
            except (Diverged, UserError) as error:
                failed.append(f"{name}: the short trial failed: {message(error)}")
                continue
            each = found.sampling + (found.unlearning or 0.0)
            total, stored = total + each * left, stored + found.stored * left
            unknown = unknown or found.unlearning is None
            fits = (
                "" if found.batch == group[0].task.protocol.chunk else f", {found.batch} at a time, for lack of memory"
            )
            if found.training_images:
                once = max(once, found.drawing)
                notes.append(
                    f"{name}: the original draws {found.training_images:,} training images once before, "
                    f"in {_span(found.drawing)}"
                )
            notes.append(
                f"{name}: {found.evaluations:,} network evaluations per run to sample {found.images:,} images{fits}"
            )
            if found.microbatch:
                notes.append(f"{name}: unlearned in micro-batches of {found.microbatch}, for lack of memory")
            cells_of = [name, str(len(group)), str(done), f"{found.images:,}"]
            cells_of += ["—" if found.steps is None else f"{found.steps:,}", _span(found.sampling)]
            cells_of += [_span(found.unlearning), byte_count(found.memory), _span(each * left)]
            rows.append(cells_of)
            if found.memory and here.memory and found.memory > here.memory:
                notes.append(
                    f"{name}: {byte_count(found.memory)} is more than this machine has: see --memory and --precision"
                )
    total += once
    if not rows:
        raise Failed("; ".join(failed))
    heads = ["method", "runs", "done", "images", "steps", "sampling", "unlearning", "memory", "still to run"]
    print_table("estimate for this machine, without judging and preparing", heads, [("", rows)])
    for note in notes:
        out.print(note, soft_wrap=True, highlight=False)
    more = "; — means unknown: the method has no number of steps" if unknown else ""
    by = f", {_span(total / jobs)} with {jobs} jobs at a time" if jobs > 1 else ""
    out.print(f"about {_span(total)} on one device in total{by}{more}; nothing was run or kept", soft_wrap=True)
    out.print(
        f"memory {byte_count(here.memory)} ({here.kind}); disk {byte_count(stored)} of weights and images, "
        f"{byte_count(here.disk)} free at {Store().root}",
        soft_wrap=True,
        highlight=False,
    )
    for line in also:
        out.print(line, highlight=False, soft_wrap=True)
    _warn_of_disk(stored, here.disk)
    for line in failed:
        err.print(line, highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def show_words(methods: Sequence[Method]) -> None:
    """Print for each method with words of its own which are in force, once."""
    from unlearnbench.method import TextMethod

    worded = {method.name: method.wording for method in methods if isinstance(method, TextMethod)}
    for name, wording in worded.items():
        if wording.given:
            told = ", ".join(f"{setting}={_few(words)}" for setting, words in wording.given.items())
            rest = "" if len(wording.given) == len(wording) else "; otherwise the task's words"
            out.print(f"{name} is told {told}{rest}", highlight=False, markup=False, soft_wrap=True)


def _few(words: tuple[str, ...], most: int = 5) -> str:
    """Words as `--set` takes them; of many the first ones and their number."""
    shown = join_words(words[:most])
    return f"'{shown}'" if len(words) <= most else f"'{shown}; …' ({len(words)} in all)"


def attack_line(cells: list[Cell], attacks: Sequence[AttackSpec]) -> str:
    """The line that says that the attacks on these cells are not in the estimate, and what bounds their searches."""
    from unlearnbench.pipeline.attacks import planned_attacks

    tried = [planned for cell in cells for planned in planned_attacks(cell, attacks)]
    if not tried:
        return f"attacks: none of those asked for can be tried on {cells[0].task.name}"
    targets = sorted({planned.targets for planned in tried})
    each = f"{targets[0]} targets" if len(targets) == 1 else f"{targets[0]} to {targets[-1]} targets"
    line = (
        f"attacks are not counted: {len(tried):,} on {len(cells):,} run{'s' * (len(cells) > 1)}, each of {each} at most"
    )
    most: dict[str, int] = {}
    for planned in tried:
        if planned.budget is None:
            return f"{line}, which are searched as long as the attack's settings say; --budget limits that"
        most[planned.unit] = most.get(planned.unit, 0) + planned.targets * planned.budget
    return f"{line}; {' and '.join(f'{_short(count)} {unit}' for unit, count in most.items())} to search, at most"


def show_plan(groups: dict[str, list[Cell]], lacking: str, also: Sequence[str] = ()) -> None:
    """Print what a run would take that cannot be tried here, one line for each method, from the table of shapes.

    `lacking` says why it cannot be tried; `also` are lines to print below.

    A method that the task cannot host is named at the end, with exit code 1.
    """
    from unlearnbench.compute.device import pick_device
    from unlearnbench.pipeline import planning
    from unlearnbench.pipeline.dry_run import room
    from unlearnbench.pipeline.memory import CARDS, smallest_card
    from unlearnbench.storage.store import Store

    first = next(iter(groups.values()))[0]
    plans, failed = {}, []
    for name, group in groups.items():
        try:
            plans[name] = planning.planned_costs(group[0])
        except UserError as error:
            failed.append(f"{name}: {message(error)}")
    if not plans:
        raise Failed("; ".join(failed))
    asked = {", ".join([group[0].resources.precision, *group[0].resources.memory]) for group in groups.values()}
    savings = asked.pop() if len(asked) == 1 else f"{first.resources.precision}, savings as each method needs"
    heads = ["method", "runs", "images", "steps", "evaluations", "GPU memory", "card"]
    rows = []
    for name, found in plans.items():
        card = None if found.memory is None else smallest_card(found.memory)
        fits = "—" if found.memory is None else "none fits" if card is None else f"≥ {card} GB"
        steps = "—" if found.steps is None else f"{found.steps:,}"
        counts = [name, str(len(groups[name])), f"{found.images:,}", steps, _short(found.evaluations)]
        rows.append([*counts, byte_count(found.memory), fits])
    print_table(
        f"{first.task.name}, protocol {first.task.protocol.name}, {savings}: counted, not tried", heads, [("", rows)]
    )
    show_memory({name: found.alternatives for name, found in plans.items()})
    sizes = ", ".join(map(str, CARDS))
    lines = [f"card: the smallest of {sizes} GB that holds unlearning, with the savings that the run would take"]
    lines.append(f"not tried: {lacking}")
    drawn = max(found.training_images for found in plans.values())
    if drawn:
        takers = ", ".join(name for name, found in plans.items() if found.training_images)
        count = max(found.training_evaluations for found in plans.values())
        lines.append(
            f"{takers}: the original draws {drawn:,} training images once before ({_short(count)} evaluations)"
        )
    unknown: dict[str, list[str]] = {}
    for name, found in plans.items():
        if found.uncounted:
            unknown.setdefault(found.uncounted, []).append(name)
    if unknown:
        why = "; ".join(f"{', '.join(names)} ({reason} in the table)" for reason, names in unknown.items())
        lines.append(f"— means not counted: {why}")
        lines.append("the same command on a machine with a GPU and the task's files measures it, by a short trial")
    total = sum(found.evaluations * len(groups[name]) for name, found in plans.items())
    once = max(found.training_evaluations for found in plans.values())
    device = pick_device("auto")
    if device == "cuda":
        lines.append(_fitting_here(plans, room(device, Store().root)))
    each = planning.seconds_of_evaluation(first, device) if device == "cuda" else None
    plain = each  # of training images, which are always drawn in fp32
    if each is not None and once and first.resources.precision != "fp32":
        in_fp32 = replace(first, resources=replace(first.resources, precision="fp32"))
        plain = planning.seconds_of_evaluation(in_fp32, device)
    timed = ""
    if each is not None and plain is not None:
        timed = f": about {_span(each * total + plain * once)} on one {room(device, Store().root).kind}"
    lines.append(f"{_short(total + once)} evaluations of the network in all to draw images{timed}")
    disk = room("cpu", Store().root).disk
    counted = [found.stored * len(groups[name]) for name, found in plans.items() if found.stored is not None]
    stored = sum(counted) if counted else None
    download = planning.download_of(first.task)
    if download is not None and download.files:
        more = f", {download.small} of them small ones of unknown size" if download.small else ""
        lines.append(f"download: {byte_count(download.size)} in {download.files} files{more}, to {download.folder}")
    kept = "weights and images are not counted for this model" if stored is None else ""
    kept = kept or f"{byte_count(stored)} of weights and images{' beside the download' if download is not None else ''}"
    lines.append(f"disk: {kept}; {byte_count(disk)} free at {Store().root}")
    for line in [*lines, *also]:
        out.print(line, highlight=False, soft_wrap=True)
    _warn_of_disk((stored or 0) + (download.size if download else 0), disk)
    for line in failed:
        err.print(line, highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _fitting_here(plans: Mapping[str, CostPlan], here: Room) -> str:
    """Which methods fit the smallest card of this machine, and which would with other savings."""
    from unlearnbench.pipeline.memory import CONTEXT

    gib = (here.memory or 0) / 2**30
    fits: list[str] = []
    more: list[str] = []
    never: list[str] = []
    for name, found in plans.items():
        if found.memory is None:
            continue
        enough = found.alternatives.savings_for(gib)
        if found.memory / 2**30 + CONTEXT <= gib:
            fits.append(name)
        elif enough:
            more.append(f"{name} with --memory {','.join(enough)}")
        else:
            never.append(name)
    no = f"; no saving is enough for {', '.join(never)}" if never else ""
    return f"here, {here.kind} ({byte_count(here.memory)}): fits {', '.join([*fits, *more]) or 'none of them'}{no}"


def _warn_of_disk(needed: int, free: int) -> None:
    """Say on stderr where the disk has too little room, in bytes."""
    if needed > free:
        err.print(
            f"not enough disk space: {byte_count(needed)} needed, {byte_count(free)} free: "
            f"free {byte_count(needed - free)}, or choose another folder with UNLEARNBENCH_CACHE",
            highlight=False,
            soft_wrap=True,
        )


def _short(count: int) -> str:
    """A count of network evaluations: in full below 10,000, then in thousands or millions."""
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count / 1e3:,.0f} k"


def _span(seconds: float | None) -> str:
    """Seconds, minutes or hours, with one decimal."""
    if seconds is None:
        return "—"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
