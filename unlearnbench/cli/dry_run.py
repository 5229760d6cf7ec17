"""`run --dry-run`: estimate time, memory and disk of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unlearnbench.cli.console import err, out, print_table
from unlearnbench.errors import Failed, UserError, message
from unlearnbench.reporting import bars

if TYPE_CHECKING:
    from unlearnbench.pipeline.cell import Cell


def show_probe(cells: list[Cell], results: Path, jobs: int = 1) -> None:
    """Print what a run of these cells would take, from a trial of a few seconds for each method.

    Cells that already have a record count as done and are left out of times and disk. A method whose trial fails,
    diverges or is not supported is named at the end, with exit code 1.
    """
    from unlearnbench.pipeline.dry_run import probe, room
    from unlearnbench.pipeline.runner import finished_record
    from unlearnbench.storage.store import Store
    from unlearnbench.training import Diverged

    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.method.name, []).append(cell)
    here = room(cells[0].task.device, Store().root)
    rows, total, stored, unknown, notes = [], 0.0, 0, False, []
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
            notes.append(
                f"{name}: {found.evaluations:,} network evaluations per run to sample {found.images:,} images{fits}"
            )
            cells_of = [name, str(len(group)), str(done), f"{found.images:,}"]
            cells_of += ["—" if found.steps is None else f"{found.steps:,}", _span(found.sampling)]
            cells_of += [_span(found.unlearning), _bytes(found.memory), _span(each * left)]
            rows.append(cells_of)
            if found.memory and here.memory and found.memory > here.memory:
                notes.append(
                    f"{name}: {_bytes(found.memory)} is more than this machine has: see --memory and --precision"
                )
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
        f"memory {_bytes(here.memory)} ({here.kind}); disk {_bytes(stored)} of weights and images, "
        f"{_bytes(here.disk)} free at {Store().root}",
        soft_wrap=True,
        highlight=False,
    )
    if stored > here.disk:
        err.print("not enough disk space: free some, or choose another folder with UNLEARNBENCH_CACHE", soft_wrap=True)
    for line in failed:
        err.print(line, highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _bytes(count: int | None) -> str:
    """MiB or GiB."""
    if count is None:
        return "—"
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _span(seconds: float | None) -> str:
    """Seconds, minutes or hours, with one decimal."""
    if seconds is None:
        return "—"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
