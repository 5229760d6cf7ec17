"""Launching cells: the options of `run` that say where, what is shown meanwhile, and the command `status`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearnbench.errors import UserError, message, one_line
from unlearnbench.progress import Stopped, bars, told_by
from unlearnbench.terminal import err, out, print_table, show_run

if TYPE_CHECKING:
    from unlearnbench.attacking import Wanted
    from unlearnbench.jobs import Cut, Spec, Work
    from unlearnbench.launch import Left, Shown
    from unlearnbench.launching import Where
    from unlearnbench.ledger import Ledger
    from unlearnbench.record import Record
    from unlearnbench.store import Store
    from unlearnbench.trackers import Tracking
    from unlearnbench.work import Result

launching = typer.Typer()
Launcher = Annotated[str | None, typer.Option(help="Where cells run as jobs: local, ray or slurm.")]
Jobs = Annotated[int | None, typer.Option(help="Jobs at a time; here each takes a GPU, or its share of the CPU.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of a job; results depend on it in their last bits.")]
Shards = Annotated[int, typer.Option(help="Jobs that a cell's images are drawn by; the images are the same.")]
Gpus = Annotated[int | None, typer.Option(help="GPUs of a job, by ray and slurm; 1 where this machine has one.")]
Partition = Annotated[str | None, typer.Option(help="Slurm's partition; its default when left out.")]
TimeLimit = Annotated[str | None, typer.Option("--time", help="Slurm's limit for a job: 90, 1:30 or 1-12:00.")]
Slurm = Annotated[
    list[str] | None, typer.Option("--slurm", help="Further option of sbatch, such as account=mine. Repeatable.")
]
SHOWN = 40
"""Running jobs that are shown, at most."""
LOOK = 1.0
"""Seconds between looks of `status --watch`."""


def left_out(line: str) -> None:
    """Say what `--method all` leaves out."""
    err.print(line, markup=False, highlight=False, soft_wrap=True)


def run_here(
    baseline: Sequence[Spec],
    asked: Sequence[Spec],
    cut: Cut,
    threads: int | None,
    results: Path,
    tracking: Tracking | None,
) -> None:
    """One cell after another, in this process; one that fails keeps no other from being run.

    Exit code 1 where one of several failed, or none came to a result. What a single cell fails with is raised.
    """
    from unlearnbench.attacking import wanted
    from unlearnbench.environment import on_threads
    from unlearnbench.launching import require_replaceable
    from unlearnbench.runner import run
    from unlearnbench.store import Store

    store, tried = Store(), wanted(",".join(cut.attacks), cut.budget) if cut.attacks else []
    done: list[Record] = []
    failed: list[tuple[Spec, Exception | SystemExit]] = []
    if not cut.force:
        require_replaceable([*baseline, *asked], results, tried)
    with on_threads(threads), bars(err, len(baseline) + len(asked)) as begin:
        for spec in baseline:
            begin(spec.title)
            done.append(run(spec.cell(), store, results, replace=cut.force))
        for spec in asked:
            begin(spec.title)
            try:
                done.append(_ran(spec, cut, tried, store, results, tracking))
            except (Exception, SystemExit) as error:
                if len(asked) == 1 or os.environ.get("UNLEARNBENCH_DEBUG"):
                    raise
                failed.append((spec, error))
    _show(done, len(baseline), results, [want.label for want in tried])
    for spec, cause in failed:
        reason = message(cause) if isinstance(cause, UserError) else one_line(cause)
        err.print(f"failed: {spec.title}: {reason}", highlight=False, soft_wrap=True)
    if failed or not _came_to_something(done[len(baseline) :]):
        raise typer.Exit(1)


def _ran(
    spec: Spec, cut: Cut, tried: Sequence[Wanted], store: Store, results: Path, tracking: Tracking | None
) -> Record:
    """The record of one cell that was asked for, with its trajectory and attacks."""
    from unlearnbench.attacking import attacked
    from unlearnbench.runner import run
    from unlearnbench.trajectory import followed

    cell = spec.cell()
    if cut.every or tracking:
        record = followed(cell, cut.every, store, results, cut.force, tracking)
    else:
        record = run(cell, store, results, cut.force, replace=cut.force)
    return attacked(cell, record, tried, store, results, cut.force) if tried else record


def _came_to_something(records: Sequence[Record]) -> bool:
    """Whether one of these runs was scored: all others diverged or were skipped."""
    return any(record.status in ("ok", "unreliable") for record in records)


def run_as_jobs(baseline: Sequence[Spec], asked: Sequence[Spec], cut: Cut, at: Where, results: Path) -> None:
    """As jobs of a launcher; exit code 1 where some failed."""
    from unlearnbench.attacking import wanted
    from unlearnbench.launching import cells_launched
    from unlearnbench.record import read
    from unlearnbench.store import Store

    with view() as shown:
        jobs, left = cells_launched(asked, baseline, cut, at, Store(), results, shown)
    without = {str(job.product) for job in jobs if job.id not in left.results or left.results[job.id].state != "done"}
    done: list[Record] = []
    kept = [[spec for spec in specs if str(spec.place()) not in without] for specs in (baseline, asked)]
    if len(kept[0]) == len(baseline):
        done = [read(spec.path(results)) for specs in kept for spec in specs]
        tried = wanted(",".join(cut.attacks), cut.budget) if cut.attacks else []
        _show(done, len(baseline), results, [want.label for want in tried])
    if told_failures(jobs, left) or not _came_to_something(done[len(baseline) :]):
        raise typer.Exit(1)


def _show(done: Sequence[Record], baseline: int, results: Path, attacks: Sequence[str]) -> None:
    from unlearnbench.run_table import grouped

    for group in grouped(done[baseline:]):
        original = next(record for record in done if record.forget == group[0].forget)
        show_run(group, original, results, attacks)


@contextmanager
def view() -> Iterator[Shown]:
    """A line for the whole and one for each job that runs; where there is no terminal, a line as each ends."""
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(24),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
    )
    told: set[str] = set()
    rows: dict[str, Any] = {}
    names: dict[str, str] = {}
    with rich.Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        whole = bars.add_task("jobs", total=None)

        def shown(running: dict[str, Work], ended: dict[str, Result], total: int, ledger: Ledger) -> None:
            names.update({id: job.name for id, job in running.items()})
            for id in [id for id in ended if id not in told]:
                told.add(id)
                _tell(len(told & ended.keys()), total, names[id], ended[id])
                if id in rows:
                    bars.remove_task(rows.pop(id))
            bars.update(whole, total=total, completed=len(ended))
            for id, job in list(running.items())[: SHOWN if err.is_terminal else 0]:
                live = ledger.live(id) or {}
                said = f"  {job.name} · {live.get('what', 'waiting')} · {live.get('where', '')}"
                if id not in rows:
                    rows[id] = bars.add_task(said, total=1)
                bars.update(rows[id], description=said, completed=live.get("done", 0), total=live.get("total", 1))

        try:
            with told_by(lambda line: err.print(line, highlight=False, markup=False, soft_wrap=True)):
                yield shown
        except KeyboardInterrupt as interrupt:
            raise Stopped from interrupt


def _tell(number: int, total: int, name: str, result: Result) -> None:
    line = f"[{number}/{total}] {name}: {result.state}, {result.seconds:.1f} s, {result.where}"
    if result.reason:
        line += f": {result.reason}"
    for text in (line, *result.said):
        err.print(text, highlight=False, markup=False, soft_wrap=True)


def told_failures(jobs: Sequence[Work], left: Left) -> bool:
    """Name what failed, with the last lines of its log, and what was not reached; whether there was any."""
    names = {job.id: job.name for job in jobs}
    for result in left.failed:
        err.print(f"failed: {names[result.id]}: {result.reason}", highlight=False, markup=False, soft_wrap=True)
        for line in result.tail:
            err.print(f"  | {line}", highlight=False, markup=False, soft_wrap=True)
    if left.unreached:
        one = left.unreached[0].name
        more = f" and {len(left.unreached) - 1} more" if len(left.unreached) > 1 else ""
        err.print(f"not begun, since they need what failed: {one}{more}", highlight=False, markup=False, soft_wrap=True)
    if left.failed or left.unreached:
        done = len(left.results) - len(left.failed)
        err.print(f"{done} of {len(jobs)} jobs done; the same command again tries the others", highlight=False)
    return bool(left.failed or left.unreached)


@launching.command()
def status(
    results: Annotated[Path, typer.Option("--out", help="Folder of records that was launched to.")] = Path("results"),
    watch: Annotated[bool, typer.Option("--watch", help="Look again until nothing runs any more.")] = False,
) -> None:
    """What the last launch to a results folder is at: done, running, failed, missing. Exit code 1 where jobs failed."""
    from unlearnbench.ledger import latest
    from unlearnbench.store import Store

    ledger = latest(Store(), results)
    if ledger is None:
        raise UserError(f"nothing was launched to {results}: `unlearnbench run … --jobs 2 --out {results}` does")
    if watch:
        _watch(ledger)
    states = ledger.states(_queued(ledger))
    plan = ledger.plan
    counts = {name: sum(state == name for _, state, _ in states) for name in ("done", "running", "failed", "missing")}
    rows = [
        [line.name, state, *_about(state, about)]
        for line, state, about in sorted(states, key=lambda row: row[1] != "failed")
        if state in ("failed", "running")
    ]
    if rows:
        print_table("", ["job", "state", "where", "seconds", "what"], [("", rows)], prose=["state", "where", "what"])
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    begun = plan.begun.replace("T", " ").removesuffix("+00:00")
    who = f"{len(states)} jobs by {plan.launcher}, driven by {plan.driver} since {begun} UTC"
    out.print(f"{said}: {who}", highlight=False, soft_wrap=True)
    out.print(f"logs: {ledger.folder / 'logs'}", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if counts["failed"] else 0)


def _queued(ledger: Ledger) -> frozenset[str]:
    """Numbers of the jobs that Slurm has, who may say nothing for long."""
    if ledger.plan.launcher != "slurm":
        return frozenset()
    from unlearnbench.launch_slurm import alive

    return alive(ledger.numbers())


def _about(state: str, about: dict[str, Any]) -> list[str]:
    if state == "running":
        what = f"{about.get('what', '')} {about.get('done', '')}/{about.get('total', '')}"
        return [about.get("where", ""), "", what]
    return [about.get("where", ""), f"{about.get('seconds', 0):.1f}", about.get("reason") or ""]


def _watch(ledger: Ledger) -> None:
    """Redraw until nothing runs."""
    from rich.live import Live

    try:
        with Live(console=err, transient=True, auto_refresh=False) as live:
            while True:
                states = ledger.states(_queued(ledger))
                running = [(line, about) for line, state, about in states if state == "running"]
                if not running:
                    return
                done = sum(state == "done" for _, state, _ in states)
                lines = [f"{line.name}  {' '.join(_about('running', about))}" for line, about in running]
                live.update("\n".join([f"{done}/{len(states)} done", *lines]), refresh=True)
                time.sleep(LOOK)
    except KeyboardInterrupt:
        return
