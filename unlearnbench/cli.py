"""The command line; with cli_records the only module that prints."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from unlearnbench import __version__, registry
from unlearnbench.arguments import Device, accepted, parse_seeds, parse_settings, words
from unlearnbench.cli_board import boards
from unlearnbench.cli_compare import comparing
from unlearnbench.cli_fetch import fetching
from unlearnbench.cli_list import lists
from unlearnbench.cli_methods import own
from unlearnbench.cli_plot import plotting
from unlearnbench.cli_prepare import Data, prepare, show_probe
from unlearnbench.cli_records import records
from unlearnbench.cli_report import reporting
from unlearnbench.cli_tune import tuning
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.progress import Stopped, bars
from unlearnbench.terminal import err, out, show_run
from unlearnbench.trackers import tracking

if TYPE_CHECKING:
    from unlearnbench.concepts import Concept
    from unlearnbench.record import Record
    from unlearnbench.stages import Cell


class Commands(TyperGroup):
    """All commands; Ctrl-C in any of them is a stop that is told."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Stopped from interrupt


app = typer.Typer(
    cls=Commands,
    help="Measure what a diffusion model has forgotten, what it kept and what that cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (lists, boards, reporting, comparing, plotting, tuning, fetching, prepare, own, records):
    app.add_typer(commands)
DEBUG = "UNLEARNBENCH_DEBUG"
TUNED = "tuned"
"""The preset that `tune` makes."""


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
) -> None:
    """Unlearn, sample, judge, score and record; the same command again answers at once, a stopped one goes on."""
    numbers, overrides = parse_seeds(seeds), parse_settings(set_ or [])
    if budget is not None and attacks is None:
        raise UserError("--budget is for attacks: add --attacks standard, or leave it out")
    shown_by = tracking(tracker) if tracker is not None else None
    task_class = registry.load_task(task)
    task_class.resolve_protocol(protocol)
    more = accepted(task_class, data=data, checkpoint=checkpoint, coco=coco)

    from unlearnbench.environment import pick_device
    from unlearnbench.resources import Resources

    where = pick_device(device.value)
    resources = Resources.checked(precision, words(memory or []), where, compile)
    described: tuple[Concept, ...] = ()
    if concept is not None:
        from unlearnbench.concepts import read_concepts

        if forget:
            raise UserError("--forget and --concept exclude each other: give one of them")
        forgotten, described = read_concepts(concept)
        concepts = [forgotten]
    else:
        concepts = [task_class.resolve_concept(word) for word in words(forget or [task_class.default_forget])]
    given = words(method)
    names = list(dict.fromkeys([*(registry.methods() if "all" in given else []), *given]))
    names = [name for name in names if name != "all"]
    if not names or not concepts:
        raise UserError(f"--{'forget' if names else 'method'} is empty: name at least one")
    classes = [registry.load_method(name) for name in names]
    for cls in classes:
        registry.require_fields(cls)
        if cls.incomplete and cls.name in given and not overrides:
            first = next(iter(cls.configured({}).settings()))
            raise UserError(f"{cls.name} runs only with settings that you give: --set {first}=…")

    from unlearnbench.attacking import attacked, wanted
    from unlearnbench.run_table import grouped
    from unlearnbench.runner import run as run_cell
    from unlearnbench.stages import Cell, require
    from unlearnbench.store import Store
    from unlearnbench.trajectory import checked, followed
    from unlearnbench.tuning_record import require_apart, tuned_settings, was_tuned

    every = checked(eval_every)
    store, tried = Store(), wanted(attacks, budget) if attacks is not None else []

    def cell(cls: Any, concept: str, seed: int, preset: str, overrides: dict[str, Any]) -> Cell:
        selection = None
        if preset == TUNED:
            settings, selection = tuned_settings(results, task, cls.name)
            require_apart(cls.name, selection, concept, seed, task_class.protocols[protocol].sampling_seed)
        else:
            settings = cls.preset(preset, task)
        method = cls.configured({**settings, **overrides})
        about = task_class(
            concept, protocol=protocol, seed=seed, device=where, weights=pretrained, concepts=described, **more
        )
        given = method.given(overrides)
        return Cell(method, about, preset, given, selection, resources, include_unsafe)

    def hosted(cls: Any) -> bool:
        if preset == TUNED and not was_tuned(results, task, cls.name):
            err.print(f"left out: {cls.name} has no tuned settings", markup=False, highlight=False, soft_wrap=True)
            return False
        try:
            require(cell(cls, concepts[0], 0, preset, {}))
        except Unsupported as reason:
            err.print(f"left out: {reason}", markup=False, highlight=False, soft_wrap=True)
            return False
        return True

    if "all" in given:  # what is named beside it stays, and its record says why it cannot run
        classes = [cls for cls in classes if cls.name in given or (not cls.incomplete and hosted(cls))]
    original = registry.load_method("original")
    baseline = [cell(original, concept, 0, "default", {}) for concept in concepts]
    asked = [
        cell(cls, concept, seed, preset, overrides)
        for concept in concepts
        for cls in classes
        for seed in (numbers[:1] if cls.name == "retrain" and task_class.gold_once else numbers)
    ]
    if dry_run:
        show_probe([*baseline, *asked])
        return
    done: list[Record] = []
    with bars(err, len(baseline) + len(asked)) as begin:
        for number, item in enumerate([*baseline, *asked]):
            begin(f"{item.method.name} · forget {item.task.forget} · seed {item.task.seed}")
            again = force and number >= len(baseline)
            if number >= len(baseline) and (every or shown_by):
                record = followed(item, every, store, results, again, shown_by)
            else:
                record = run_cell(item, store, results, again)
            if tried and number >= len(baseline):
                record = attacked(item, record, tried, store, results, again)
            done.append(record)
    for group in grouped(done[len(baseline) :]):
        show_run(
            group,
            next(record for record in done if record.forget == group[0].forget),
            results,
            [want.label for want in tried],
        )


def main() -> None:
    """Entry point: bad input is one line and exit code 2, a stop keeps what is finished."""
    try:
        app()
    except UserError as error:
        if os.environ.get(DEBUG):
            raise
        err.print(f"unlearnbench: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except Stopped:
        err.print("stopped: what is finished is kept; run the same command again to go on")
        sys.exit(130)


if __name__ == "__main__":
    main()
