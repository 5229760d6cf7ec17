"""Options for running cells as jobs, and the progress shown meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearnbench.cli.console import err
from unlearnbench.reporting import Stopped, told_by

if TYPE_CHECKING:
    from unlearnbench.launch.driver import Left, Shown
    from unlearnbench.launch.jobs import Work
    from unlearnbench.launch.journal import Journal
    from unlearnbench.launch.worker import Result

Launcher = Annotated[str | None, typer.Option(help="Run the work as jobs: local, ray or slurm.")]
Jobs = Annotated[
    int | None, typer.Option(help="Number of jobs at a time; local jobs take a GPU each, or share the CPU.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads per job; results depend on it in the last bits.")]
Shards = Annotated[int, typer.Option(help="Number of jobs that sample a cell's images; the images stay the same.")]
Gpus = Annotated[int | None, typer.Option(help="GPUs per job, for ray and slurm. [default: 1 if this machine has one]")]
Partition = Annotated[str | None, typer.Option(help="Slurm partition. [default: Slurm's own]")]
TimeLimit = Annotated[
    str | None,
    typer.Option(
        "--time",
        help="Time limit of a Slurm job: 90 (minutes), 1:30 (hours:minutes) or 1-12:00 (days before them); "
        "sbatch reads 1:30 otherwise, as minutes:seconds. [default: 240]",
    ),
]
Slurm = Annotated[
    list[str] | None, typer.Option("--slurm", help="Further sbatch option, such as account=mine. Repeatable.")
]
SHOWN = 40
"""Most running jobs to show."""


@contextmanager
def view() -> Iterator[Shown]:
    """Show a progress bar for the launch and for each running job; without a terminal, one line as each job ends."""
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(24),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
    )
    reported: set[str] = set()
    rows: dict[str, Any] = {}
    names: dict[str, str] = {}
    with rich.Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        whole = bars.add_task("jobs", total=None)

        def shown(running: dict[str, Work], ended: dict[str, Result], total: int, journal: Journal) -> None:
            names.update({id: job.name for id, job in running.items()})
            for id in [id for id in ended if id not in reported]:
                reported.add(id)
                _tell(len(reported & ended.keys()), total, names[id], ended[id])
                if id in rows:
                    bars.remove_task(rows.pop(id))
            bars.update(whole, total=total, completed=len(ended))
            for id, job in list(running.items())[: SHOWN if err.is_terminal else 0]:
                live = journal.live(id) or {}
                line = f"  {job.name} · {live.get('what', 'waiting')} · {live.get('where', '')}"
                if id not in rows:
                    rows[id] = bars.add_task(line, total=1)
                bars.update(rows[id], description=line, completed=live.get("done", 0), total=live.get("total", 1))

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
    """Print failed jobs with the last lines of their logs, and jobs that were not reached; return if there are any."""
    names = {job.id: job.name for job in jobs}
    for result in left.failed:
        err.print(f"failed: {names[result.id]}: {result.reason}", highlight=False, markup=False, soft_wrap=True)
        for line in result.tail:
            err.print(f"  | {line}", highlight=False, markup=False, soft_wrap=True)
    if left.unreached:
        one = left.unreached[0].name
        more = f" and {len(left.unreached) - 1} more" if len(left.unreached) > 1 else ""
        err.print(
            f"not started, because they need a failed job: {one}{more}", highlight=False, markup=False, soft_wrap=True
        )
    if left.failed or left.unreached:
        done = len(left.results) - len(left.failed)
        err.print(f"{done} of {len(jobs)} jobs done; run the same command again to try the others", highlight=False)
    return bool(left.failed or left.unreached)
