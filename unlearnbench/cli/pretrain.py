"""Commands to prepare a task: pretrain, first-hour."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unlearnbench import registry
from unlearnbench.cli.arguments import Device, OldOut, Results, results_folder
from unlearnbench.cli.completion import complete_tasks
from unlearnbench.cli.console import err, out, print_table
from unlearnbench.errors import UserError
from unlearnbench.reporting import bars

prepare = typer.Typer()
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of images in the Hugging Face layout, instead of what `fetch` downloaded."),
]


@prepare.command()
def pretrain(
    task: Annotated[
        str, typer.Option(help="Task; see `unlearnbench list tasks`.", autocompletion=complete_tasks)
    ] = "digits-class",
    protocol: Annotated[
        str, typer.Option(help="Protocol whose model and judge are meant, where a task has several.")
    ] = "default",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    device: Annotated[Device, typer.Option(help="Device to compute on.")] = Device.auto,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the weights. [default: pretrained/TASK, and -PROTOCOL if one is given]"),
    ] = None,
    judge: Annotated[bool, typer.Option("--judge", help="Train only the judge.")] = False,
    data: Data = None,
) -> None:
    """Train a task's original model and judges from scratch.

    Run the same command again to continue where it was stopped."""
    task_class = registry.load_task(task)

    from unlearnbench.task import accepted

    more = accepted(task_class, data=data)
    task_class.resolve_protocol(protocol)
    if judge and not hasattr(task_class, "pretrain_judge"):
        raise UserError(f"--judge: the judge of {task} is trained with its model: leave it out")

    from unlearnbench.compute.device import pick_device
    from unlearnbench.compute.precision import out_of_memory, too_little
    from unlearnbench.storage.files import cannot_write

    named = "" if protocol == "default" else f"-{protocol}"
    folder = folder or Path("pretrained") / f"{task}{named}"
    trained = task_class(task_class.default_forget, protocol=protocol, device=pick_device(device.value), **more)
    with bars(err, 1) as begin:
        begin(f"pretraining {task}{', its judge' if judge else ''}, seed {seed}")
        try:
            reached = (trained.pretrain_judge if judge else trained.pretrain)(folder, seed)  # type: ignore[attr-defined]
        except OSError as error:
            raise UserError(cannot_write(folder, error, "--out")) from error
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise too_little("pretraining", error, None) from error
    for name, value in reached.items():
        out.print(f"{name}: {value:.1%}")
    by = f" --protocol {protocol}" if named else ""
    use = f"unlearnbench run --task {task}{by} --pretrained {folder} --method original"
    out.print(f"weights in {folder}; use them with: {use}", soft_wrap=True)


@prepare.command("first-hour")
def first_hour(
    task: Annotated[
        str, typer.Option(help="Task; see `unlearnbench list tasks`.", autocompletion=complete_tasks)
    ] = "cifar10-class",
    protocol: Annotated[str, typer.Option(help="Protocol that the original model is measured by.")] = "first-hour",
    checkpoint: Annotated[Path | None, typer.Option(help="Original model from a file of the papers' authors.")] = None,
    pretrained: Annotated[
        Path | None, typer.Option(help="Folder made by `pretrain`, with the judge and the original model.")
    ] = None,
    data: Data = None,
    device: Annotated[Device, typer.Option(help="Device to compute on.")] = Device.auto,
    results: Results = None,
    old: OldOut = None,
    steps: Annotated[bool, typer.Option("--steps", help="Also measure what fewer sampling steps change.")] = False,
) -> None:
    """Check data, checkpoint, judge and original on a new machine.

    Prints what is expected beside what was obtained, and exits with 1 if something is wrong.
    """
    task_class = registry.load_task(task)
    if not hasattr(task_class, "looked_over"):
        raise UserError(f"first-hour is for cifar10-class and the nudity tasks: nothing is published for {task}")
    if steps and not hasattr(task_class, "fewer_steps"):
        raise UserError(f"--steps: {task} has no protocol of fewer steps to compare: leave it out")
    task_class.resolve_protocol(protocol)
    folder = results_folder(results, old)

    from unlearnbench.task import accepted

    more = accepted(task_class, data=data, checkpoint=checkpoint)

    from unlearnbench.compute.device import pick_device
    from unlearnbench.storage.store import Store
    from unlearnbench.verification.first_hour import HEADS, first_hour_findings, stages

    about = task_class(
        task_class.default_forget, protocol=protocol, device=pick_device(device.value), weights=pretrained, **more
    )
    with bars(err, stages(task_class, protocol, steps)) as begin:
        found = list(first_hour_findings(about, Store(), folder, begin, steps))
    marks, sources = {True: "✓", False: "✗", None: ""}, list(dict.fromkeys(f.source for f in found if f.source))
    numbers = {source: f"[{number}]" for number, source in enumerate(sources, 1)}
    rows = [[f.what, f.expected, f.obtained, marks[f.passed], numbers.get(f.source, "")] for f in found]
    print_table(f"{task}, protocol {protocol}", HEADS, [("", rows)], left=len(HEADS))
    for source, number in numbers.items():
        out.print(f"{number} {source}", markup=False, soft_wrap=True)
    raise typer.Exit(1 if any(f.passed is False for f in found) else 0)
