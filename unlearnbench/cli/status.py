"""`status`: how far the last launch to a results folder has come."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearnbench.cli.arguments import OldOut, Results, results_folder
from unlearnbench.cli.console import err, out, print_table
from unlearnbench.errors import UserError

if TYPE_CHECKING:
    from unlearnbench.launch.journal import Journal


launching = typer.Typer()
LOOK = 1.0
"""Seconds between refreshes of `status --watch`."""


@launching.command()
def status(
    results: Results = None,
    old: OldOut = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until no job is running.")] = False,
) -> None:
    """Show which jobs are done, running, failed or missing.

    Looks at the last launch to a folder of records, and exits with 1 if jobs failed."""
    from unlearnbench.launch.journal import latest
    from unlearnbench.storage.store import Store

    folder = results_folder(results, old)
    journal = latest(Store(), folder)
    if journal is None:
        raise UserError(
            f"nothing was launched to {folder}: `unlearnbench run --jobs 2 --results {folder} --method METHOD` does"
        )
    if watch:
        _watch(journal)
    states = journal.states(_queued(journal))
    plan = journal.plan
    counts = {name: sum(state == name for _, state, _ in states) for name in ("done", "running", "failed", "missing")}
    rows = [
        [line.name, state, *_about(state, about)]
        for line, state, about in sorted(states, key=lambda row: row[1] != "failed")
        if state in ("failed", "running")
    ]
    if rows:
        print_table("", ["job", "state", "where", "seconds", "what"], [("", rows)], prose=["state", "where", "what"])
    summary = ", ".join(f"{count} {name}" for name, count in counts.items())
    begun = plan.begun.replace("T", " ").removesuffix("+00:00")
    who = f"{len(states)} jobs by {plan.launcher}, driven by {plan.driver} since {begun} UTC"
    out.print(f"{summary}: {who}", highlight=False, soft_wrap=True)
    out.print(f"logs: {journal.folder / 'logs'}", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if counts["failed"] else 0)


def _queued(journal: Journal) -> frozenset[str]:
    """Numbers of the jobs that Slurm holds; these may be silent for long while they wait."""
    if journal.plan.launcher != "slurm":
        return frozenset()
    from unlearnbench.launch.slurm import alive

    return alive(journal.numbers())


def _about(state: str, about: dict[str, Any]) -> list[str]:
    if state == "running":
        what = f"{about.get('what', '')} {about.get('done', '')}/{about.get('total', '')}"
        return [about.get("where", ""), "", what]
    return [about.get("where", ""), f"{about.get('seconds', 0):.1f}", about.get("reason") or ""]


def _watch(journal: Journal) -> None:
    """Refresh the display until no job is running."""
    from rich.live import Live

    try:
        with Live(console=err, transient=True, auto_refresh=False) as live:
            while True:
                states = journal.states(_queued(journal))
                running = [(line, about) for line, state, about in states if state == "running"]
                if not running:
                    return
                done = sum(state == "done" for _, state, _ in states)
                lines = [f"{line.name}  {' '.join(_about('running', about))}" for line, about in running]
                live.update("\n".join([f"{done}/{len(states)} done", *lines]), refresh=True)
                time.sleep(LOOK)
    except KeyboardInterrupt:
        return
