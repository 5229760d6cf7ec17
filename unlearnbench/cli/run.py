"""`run`: measure methods on a task, in this process or as jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnbench.cli.arguments import Device, OldOut, Results, parse_settings, results_folder
from unlearnbench.cli.completion import complete_attacks, complete_methods, complete_tasks
from unlearnbench.cli.console import err, show_lines, show_next, show_runs
from unlearnbench.cli.dry_run import attack_line, show_probe, show_words
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
from unlearnbench.errors import UserError
from unlearnbench.reporting import bars

if TYPE_CHECKING:
    from unlearnbench.launch.options import Where
    from unlearnbench.launch.runs import PreparedRun, RunsEnded


running = typer.Typer()
FORMATS = ("terminal", "json")


@running.command()
def run(
    method: Annotated[
        list[str],
        typer.Option(
            help="Method name, comma-separated names, path of a .py file, or `all`. Repeatable.",
            autocompletion=complete_methods,
        ),
    ],
    task: Annotated[
        str, typer.Option(help="Task; see `unlearnbench list tasks`.", autocompletion=complete_tasks)
    ] = "digits-class",
    forget: Annotated[
        list[str] | None,
        typer.Option(
            help="Concepts to forget, comma-separated, each in a cell of its own; `all`, or a group such as `styles` "
            "of sd-unlearncanvas. Repeatable. [default: the task's own; 3 on digits-class]",
            show_default=False,
        ),
    ] = None,
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
        list[str] | None,
        typer.Option(
            help="Ways to save memory: checkpointing, microbatches, slices, adam8bit on CUDA; or none. By default "
            "checkpointing, where a method needs it on a card of 24 GB."
        ),
    ] = None,
    results: Results = None,
    out: OldOut = None,
    pretrained: Annotated[
        Path | None, typer.Option(help="Folder made by `pretrain`, instead of the shipped weights.")
    ] = None,
    data: Data = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Original model from a file of the papers' authors.")] = None,
    coco: Annotated[str | None, typer.Option(help="COCO captions for FID and CLIP score: 1k, 10k or 30k.")] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET=FILE",
            help="Also draw and score your own prompts, apart from the protocol's: forget=FILE.csv, retain=FILE.csv or "
            "attack=FILE.csv, with a column prompt and, if you like, seed, guidance, group and concept. Repeatable.",
        ),
    ] = None,
    include_unsafe: Annotated[
        bool, typer.Option("--include-unsafe", help="Also write images and prompts of unsafe tasks into results.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run again and replace existing records.")] = False,
    attacks: Annotated[
        str | None,
        typer.Option(
            help="Attacks on the result: standard, or comma-separated names; see `unlearnbench list attacks`.",
            autocompletion=complete_attacks,
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
        typer.Option(
            help="Log losses, gradients and scores to tensorboard[:DIR], trackio[:PROJECT] or wandb[:PROJECT]."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate time, memory and disk, from a short trial.")
    ] = False,
    format: Annotated[
        str, typer.Option(help="terminal, or json: one document on stdout, with progress on stderr.")
    ] = "terminal",
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no tables: only the records' paths, and errors.")
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
    """Unlearn, sample, judge, score and record; the same command again answers at once.

    A stopped run goes on after its last finished stage: unlearned weights are kept, and every batch of images. An
    unlearning that was stopped on its way goes on at a step, with the methods that `unlearnbench guide clusters`
    names; with others, with --force and with --eval-every it begins again."""
    from unlearnbench.launch.runs import PreparedRun
    from unlearnbench.pipeline.request import RunRequest

    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}: known: {', '.join(FORMATS)}")
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
        results=results_folder(results, out),
        pretrained=pretrained,
        data=data,
        checkpoint=checkpoint,
        coco=coco,
        prompts=prompts,
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
    if dry_run and format != "terminal":
        raise UserError("--dry-run prints its estimate as text: leave out --format")
    prepared = PreparedRun.of(request, (lambda line: None) if quiet else show_left_out, for_card=dry_run)
    if dry_run:
        show_dry_run(prepared)
        return
    show = partial(_show_ended, prepared, "paths" if quiet and format == "terminal" else format)
    if prepared.where is None:
        show_run_here(prepared, show, quiet)
    else:
        show_jobs(prepared, prepared.where, show, quiet)


def show_left_out(line: str) -> None:
    """Say what `--method all` leaves out."""
    err.print(line, markup=False, highlight=False, soft_wrap=True)


def show_dry_run(prepared: PreparedRun) -> None:
    """Say what the runs would take.

    The trial runs here, whatever the launcher. Jobs on a GPU elsewhere are counted where this machine has none.
    """
    from unlearnbench.compute.device import pick_device

    elsewhere, about = "", {}
    if prepared.device == "cuda" and pick_device("auto") != "cuda":
        elsewhere, about = "the jobs take a GPU, and this machine has none", {"device": "cpu"}
    baseline, asked = ([spec.model_copy(update=about) for spec in specs] for specs in prepared.cells)
    once = {spec.place(): spec for spec in [*baseline, *asked]}  # the original may be asked for besides
    attacks, cells = prepared.request.attack_specs(), {place: spec.cell() for place, spec in once.items()}
    also = [attack_line([cells[spec.place()] for spec in asked], attacks)] if attacks else []
    jobs = (prepared.where and prepared.where.jobs) or 1
    show_words([cell.method for cell in cells.values()])
    show_probe(list(cells.values()), prepared.request.results, jobs, also, elsewhere)


def show_run_here(prepared: PreparedRun, show: Callable[[RunsEnded], None], quiet: bool = False) -> None:
    """Run in this process and show the results; exit code 1 where a cell failed, or none came to a result."""
    from unlearnbench.launch.runs import run_here

    with bars(err, sum(map(len, prepared.cells)), quiet) as begin:
        ended = run_here(prepared, begin)
    show(ended)
    for line in ended.failed:
        err.print(f"failed: {line}", highlight=False, soft_wrap=True)
    if ended.failed or not ended.scored:
        raise typer.Exit(1)


def show_jobs(prepared: PreparedRun, where: Where, show: Callable[[RunsEnded], None], quiet: bool = False) -> None:
    """Run as jobs of a launcher and show the results; exit code 1 where a job failed, or no cell came to a result."""
    from unlearnbench.launch.runs import run_as_jobs

    err.quiet = quiet
    try:
        with view() as shown:
            ended = run_as_jobs(prepared, where, shown)
    finally:
        err.quiet = False
    if len(ended.runs.baseline) == len(prepared.cells.baseline):
        show(ended.runs)
    if told_failures(ended.jobs, ended.left) or not ended.runs.scored:
        raise typer.Exit(1)


def _show_ended(prepared: PreparedRun, form: str, ended: RunsEnded) -> None:
    """Show what the runs came to, as tables, as one JSON document, or as the records' paths."""
    from unlearnbench.leaderboard.run_summary import by_table, group_runs, run_document

    results = prepared.request.results
    if form == "json":
        document = run_document(ended.records, ended.baseline, ended.here, ended.failed, results)
        typer.echo(json.dumps(document, indent=1, ensure_ascii=False))
    elif form == "paths":
        show_lines(*(str(record.path(results)) for record in ended.records))
    else:
        attacks = [spec.label for spec in prepared.request.attack_specs()]
        for groups in by_table(group_runs(ended.records)):
            original = next((record for record in ended.baseline if record.forget == groups[0][0].forget), None)
            show_runs(groups, original, results, attacks, ended.here)
        show_next(results, ended.records)
