"""`run`: measure methods on a task, in this process or as jobs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnbench import registry
from unlearnbench.cli.arguments import Device, parse_seeds, parse_settings
from unlearnbench.cli.console import err, show_run
from unlearnbench.cli.dry_run import show_probe
from unlearnbench.cli.launch_view import (
    Gpus,
    Jobs,
    Launcher,
    Partition,
    Shards,
    Slurm,
    Threads,
    TimeLimit,
    told_failures,
    view,
)
from unlearnbench.cli.pretrain import Data
from unlearnbench.errors import UserError, message, one_line
from unlearnbench.registry import words
from unlearnbench.reporting import bars
from unlearnbench.run.trackers import tracking

if TYPE_CHECKING:
    from unlearnbench.launch.jobs import Cut
    from unlearnbench.launch.options import Where
    from unlearnbench.records.schema import Record
    from unlearnbench.run.attacks import Wanted
    from unlearnbench.run.spec import Spec
    from unlearnbench.run.trackers import Tracking
    from unlearnbench.storage.store import Store


running = typer.Typer()
Results = Annotated[Path, typer.Option("--out", help="Folder of records.")]


@running.command()
def run(
    method: Annotated[
        list[str], typer.Option(help="Method name, comma-separated names, path of a .py file, or `all`. Repeatable.")
    ],
    task: Annotated[str, typer.Option(help="Task; see `unlearnbench list tasks`.")] = "digits-class",
    forget: Annotated[list[str] | None, typer.Option(help="Concepts to forget, comma-separated. Repeatable.")] = None,
    concept: Annotated[
        Path | None, typer.Option(help="File of your own concepts (see `new-concept`), instead of --forget.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="Evaluation protocol; see `unlearnbench list TASK`.")] = "default",
    seeds: Annotated[str, typer.Option(help="Unlearning seeds: 0, 0-2 or 0,3,5.")] = "0",
    preset: Annotated[
        str, typer.Option(help='Preset of settings; see `unlearnbench list METHOD`. `tune` makes "tuned".')
    ] = "default",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: key=value. Repeatable.")] = None,
    device: Annotated[Device, typer.Option(help="Device to compute on.")] = Device.auto,
    precision: Annotated[str, typer.Option(help="Precision: fp32, or bf16 or fp16 on CUDA.")] = "fp32",
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the network for sampling: slow to start, then faster.")
    ] = False,
    memory: Annotated[
        list[str] | None, typer.Option(help="Ways to save memory: checkpointing, slices, or adam8bit on CUDA.")
    ] = None,
    results: Results = Path("results"),
    pretrained: Annotated[
        Path | None, typer.Option(help="Folder made by `pretrain`, instead of the shipped weights.")
    ] = None,
    data: Data = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Original model from a file of the papers' authors.")] = None,
    coco: Annotated[str | None, typer.Option(help="COCO captions for FID and CLIP score: 1k, 10k or 30k.")] = None,
    include_unsafe: Annotated[
        bool, typer.Option("--include-unsafe", help="Also write images and prompts of unsafe tasks into results.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run again and replace existing records.")] = False,
    attacks: Annotated[
        str | None,
        typer.Option(
            help="Attacks on the result: standard, or comma-separated names; see `unlearnbench list attacks`."
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(help="Budget of each attack per target, recorded separately. [default: the attack's own]"),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            "--eval-every",
            help="Also score the weights every so many steps, on held-out noise. Does not change the result.",
        ),
    ] = None,
    tracker: Annotated[
        str | None,
        typer.Option(help="Log losses, gradients and scores to tensorboard[:DIR] or trackio[:PROJECT]."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate time, memory and disk, from a trial of some seconds.")
    ] = False,
    launcher: Launcher = None,
    jobs: Jobs = None,
    threads: Threads = None,
    shards: Shards = 1,
    gpus: Gpus = None,
    partition: Partition = None,
    time: TimeLimit = None,
    slurm: Slurm = None,
) -> None:
    """Unlearn, sample, judge, score and record; the same command again answers at once, a stopped one goes on."""
    numbers, overrides = parse_seeds(seeds), parse_settings(set_ or [])
    if budget is not None and attacks is None:
        raise UserError("--budget is for attacks: add --attacks standard, or leave it out")
    shown_by = tracking(tracker) if tracker is not None else None
    task_class = registry.load_task(task)
    task_class.resolve_protocol(protocol)

    from unlearnbench.task import accepted

    more = accepted(task_class, data=data, checkpoint=checkpoint, coco=coco)

    from unlearnbench.compute.device import pick_device
    from unlearnbench.compute.precision import Resources
    from unlearnbench.launch.jobs import Cut
    from unlearnbench.launch.options import Where
    from unlearnbench.run.attacks import wanted
    from unlearnbench.run.request import Asked, concepts_of, methods_of
    from unlearnbench.run.trajectory import checked

    at = Where.checked(
        launcher,
        jobs,
        threads,
        gpus,
        device.value,
        partition,
        time,
        parse_settings(slurm or [], "slurm", "account=mine"),
    )
    where = at.device if at and at.device else pick_device(device.value)
    given = words(method)
    named = methods_of(given, overrides)
    forgotten, described = concepts_of(task_class, words(forget) if forget else None, concept)
    if not named or not forgotten:
        raise UserError(f"--{'forget' if named else 'method'} is empty: name at least one")
    every, tried = checked(eval_every), wanted(attacks, budget) if attacks is not None else []
    cut = Cut.checked(
        [want.label.partition("+budget=")[0] for want in tried],
        budget,
        shards,
        every,
        force,
        tracker is not None,
        at is not None,
    )
    resources = Resources.checked(precision, words(memory or []), where, compile)
    about = Asked(
        task_class, results, where, protocol, preset, overrides, described, resources, include_unsafe, pretrained, more
    )
    baseline, asked = about.cells(named, given, forgotten, numbers, left_out)
    if dry_run:
        pick_device(where)  # it is tried here
        show_probe([spec.cell() for spec in (*baseline, *asked)], results, at.jobs or 1 if at else 1)
    elif at is None:
        run_here(baseline, asked, cut, threads, results, shown_by)
    else:
        run_as_jobs(baseline, asked, cut, at, results)


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
    from unlearnbench.compute.device import on_threads
    from unlearnbench.launch.plan import require_replaceable
    from unlearnbench.run.attacks import wanted
    from unlearnbench.run.runner import run
    from unlearnbench.storage.store import Store

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
    from unlearnbench.run.attacks import attacked
    from unlearnbench.run.runner import run
    from unlearnbench.run.trajectory import followed

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
    from unlearnbench.launch.plan import cells_launched
    from unlearnbench.records.schema import read
    from unlearnbench.run.attacks import wanted
    from unlearnbench.storage.store import Store

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
    from unlearnbench.leaderboard.run_summary import grouped

    for group in grouped(done[baseline:]):
        original = next(record for record in done if record.forget == group[0].forget)
        show_run(group, original, results, attacks)
