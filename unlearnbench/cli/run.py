"""`run`: measure methods on a task, in this process or as jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnbench.cli.arguments import Device, parse_settings
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
from unlearnbench.reporting import bars

if TYPE_CHECKING:
    from unlearnbench.launch.options import Where
    from unlearnbench.launch.runs import PreparedRun, RunsEnded


running = typer.Typer()
Results = Annotated[Path, typer.Option("--out", help="Folder of records.")]


@running.command()
def run(
    method: Annotated[
        list[str], typer.Option(help="Name, comma-separated names, path of a .py file, or `all`. Repeatable.")
    ],
    task: Annotated[str, typer.Option(help="Task; `unlearnbench list tasks`.")] = "digits-class",
    forget: Annotated[list[str] | None, typer.Option(help="Concept to forget, or several, comma-separated.")] = None,
    concept: Annotated[
        Path | None, typer.Option(help="A .toml file with concepts of your own, in place of --forget (see README).")
    ] = None,
    protocol: Annotated[str, typer.Option(help="How it is measured; `unlearnbench list TASK` has them.")] = "default",
    seeds: Annotated[str, typer.Option(help="Unlearning seeds: 0, 0-2 or 0,3,5.")] = "0",
    preset: Annotated[
        str, typer.Option(help='Of settings; `unlearnbench list METHOD` has them, `tune` makes "tuned".')
    ] = "default",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Setting, key=value. Repeatable.")] = None,
    device: Annotated[Device, typer.Option()] = Device.auto,
    precision: Annotated[str, typer.Option(help="fp32, or on CUDA bf16 or fp16.")] = "fp32",
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the network for sampling: a minute or more, then faster.")
    ] = False,
    memory: Annotated[
        list[str] | None, typer.Option(help="What to save memory by: checkpointing, slices, on CUDA adam8bit.")
    ] = None,
    results: Results = Path("results"),
    pretrained: Annotated[
        Path | None, typer.Option(help="Folder made by `pretrain`, in place of the shipped weights.")
    ] = None,
    data: Data = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The original, from a file of the papers' own.")] = None,
    coco: Annotated[str | None, typer.Option(help="COCO captions for FID and CLIP score: 1k, 10k or 30k.")] = None,
    include_unsafe: Annotated[
        bool, typer.Option("--include-unsafe", help="Put images and prompts of unsafe tasks into results too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run anew what is there already.")] = False,
    attacks: Annotated[
        str | None,
        typer.Option(
            help="standard, or names, comma-separated; `unlearnbench list attacks`. Tried on what a run left."
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(help="What each attack may spend on a target, recorded apart; its own schedule when left out."),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            "--eval-every",
            help="Score the weights after every so many steps, on noise kept for it, beside the result and its time.",
        ),
    ] = None,
    tracker: Annotated[
        str | None,
        typer.Option(help="Show losses, gradients and scores as they come: tensorboard[:DIR] or trackio[:PROJECT]."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try for some seconds, say what it would take, and run nothing.")
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
    from unlearnbench.launch.runs import PreparedRun
    from unlearnbench.pipeline.request import RunRequest

    request = RunRequest.of(
        method=method,
        task=task,
        forget=forget,
        concept=concept,
        protocol=protocol,
        seeds=seeds,
        preset=preset,
        settings=parse_settings(set_ or []),
        device=device.value,
        precision=precision,
        compile=compile,
        memory=memory,
        out=results,
        pretrained=pretrained,
        data=data,
        checkpoint=checkpoint,
        coco=coco,
        include_unsafe=include_unsafe,
        force=force,
        attacks=attacks,
        budget=budget,
        eval_every=eval_every,
        tracker=tracker,
        launcher=launcher,
        jobs=jobs,
        threads=threads,
        shards=shards,
        gpus=gpus,
        partition=partition,
        time=time,
        slurm=parse_settings(slurm or [], "slurm", "account=mine"),
    )
    prepared = PreparedRun.of(request, show_left_out)
    if dry_run:
        show_dry_run(prepared)
    elif prepared.where is None:
        show_run_here(prepared)
    else:
        show_jobs(prepared, prepared.where)


def show_left_out(line: str) -> None:
    """Say what `--method all` leaves out."""
    err.print(line, markup=False, highlight=False, soft_wrap=True)


def show_dry_run(prepared: PreparedRun) -> None:
    """Say what the runs would take."""
    from unlearnbench.compute.device import pick_device

    pick_device(prepared.device)  # the trial runs here, whatever the launcher
    cells = [spec.cell() for specs in prepared.cells for spec in specs]
    show_probe(cells, prepared.request.out, (prepared.where and prepared.where.jobs) or 1)


def show_run_here(prepared: PreparedRun) -> None:
    """Run in this process and show the results; exit code 1 where a cell failed, or none came to a result."""
    from unlearnbench.launch.runs import run_here

    with bars(err, sum(map(len, prepared.cells))) as begin:
        ended = run_here(prepared, begin)
    _show_records(prepared, ended)
    for line in ended.failed:
        err.print(f"failed: {line}", highlight=False, soft_wrap=True)
    if ended.failed or not ended.scored:
        raise typer.Exit(1)


def show_jobs(prepared: PreparedRun, where: Where) -> None:
    """Run as jobs of a launcher and show the results; exit code 1 where a job failed, or no cell came to a result."""
    from unlearnbench.launch.runs import run_as_jobs

    with view() as shown:
        ended = run_as_jobs(prepared, where, shown)
    if len(ended.runs.baseline) == len(prepared.cells.baseline):
        _show_records(prepared, ended.runs)
    if told_failures(ended.jobs, ended.left) or not ended.runs.scored:
        raise typer.Exit(1)


def _show_records(prepared: PreparedRun, ended: RunsEnded) -> None:
    from unlearnbench.leaderboard.run_summary import grouped

    attacks = [spec.label for spec in prepared.request.attack_specs()]
    for group in grouped(ended.records):
        original = next(record for record in ended.baseline if record.forget == group[0].forget)
        show_run(group, original, prepared.request.out, attacks)
