"""The command line; with cli_records the only module that prints."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unlearnbench import __version__, registry
from unlearnbench.arguments import Device, accepted, parse_seeds, parse_settings, words
from unlearnbench.cli_board import boards
from unlearnbench.cli_compare import comparing
from unlearnbench.cli_fetch import fetching
from unlearnbench.cli_launch import (
    Gpus,
    Jobs,
    Launcher,
    Partition,
    Shards,
    Slurm,
    Threads,
    TimeLimit,
    launching,
    left_out,
    run_as_jobs,
    run_here,
)
from unlearnbench.cli_list import lists
from unlearnbench.cli_methods import own
from unlearnbench.cli_plot import plotting
from unlearnbench.cli_prepare import Data, prepare, show_probe
from unlearnbench.cli_records import records
from unlearnbench.cli_report import reporting
from unlearnbench.cli_tune import tuning
from unlearnbench.errors import Failed, UserError, message, one_line
from unlearnbench.progress import Stopped
from unlearnbench.terminal import err, lenient, out
from unlearnbench.trackers import tracking


class Commands(TyperGroup):
    """All commands; Ctrl-C in any of them is a stop that is told."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Stopped from interrupt
        except SystemExit as stop:  # commands end by `typer.Exit`: this is of code that they called
            raise Failed(f"code that the command ran called sys.exit({stop.code!r})") from stop


CODES = (
    "Exit codes: 0 all done; 1 something failed, or no run that was asked for came to a result (all of them failed, "
    "diverged or were skipped), or a check found a problem; 2 wrong use; 130 stopped by Ctrl-C."
)
app = typer.Typer(
    cls=Commands,
    help="Measure what a diffusion model has forgotten, what it kept and what that cost.",
    epilog=CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (lists, boards, reporting, comparing, plotting, tuning, fetching, prepare, own, records, launching):
    app.add_typer(commands)
DEBUG = "UNLEARNBENCH_DEBUG"

Results = Annotated[Path, typer.Option("--out", help="Folder of records.")]


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """Measure what a diffusion model has forgotten, what it kept and what that cost."""
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command()
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
    numbers, overrides = parse_seeds(seeds), parse_settings(set_ or [])
    if budget is not None and attacks is None:
        raise UserError("--budget is for attacks: add --attacks standard, or leave it out")
    shown_by = tracking(tracker) if tracker is not None else None
    task_class = registry.load_task(task)
    task_class.resolve_protocol(protocol)
    more = accepted(task_class, data=data, checkpoint=checkpoint, coco=coco)

    from unlearnbench.asking import Asked, concepts_of, methods_of
    from unlearnbench.attacking import wanted
    from unlearnbench.environment import pick_device
    from unlearnbench.jobs import Cut
    from unlearnbench.launching import Where
    from unlearnbench.resources import Resources
    from unlearnbench.trajectory import checked

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


def main() -> None:
    """Entry point: every error is one line and an exit code of `CODES`, a stop keeps what is finished."""
    lenient()
    try:
        app()
    except UserError as error:
        if os.environ.get(DEBUG):
            raise
        err.print(f"unlearnbench: {message(error)}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except Stopped:
        err.print("stopped: what is finished is kept; run the same command again to go on")
        sys.exit(130)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        told = f"unlearnbench: failed with {one_line(error)}{_where(error)}; {DEBUG}=1 shows the traceback"
        err.print(told, highlight=False, soft_wrap=True)
        sys.exit(1)


def _where(error: Exception) -> str:
    """The last line of our own, or of a plug-in's, that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in Path(frame.filename).parts] or frames
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


if __name__ == "__main__":
    main()
