"""The commands before a run: pretrain, first-hour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnbench import registry
from unlearnbench.arguments import Device, accepted
from unlearnbench.errors import Failed, UserError, message
from unlearnbench.progress import bars
from unlearnbench.terminal import err, out, print_table

if TYPE_CHECKING:
    from unlearnbench.stages import Cell

prepare = typer.Typer()
Data = Annotated[
    Path | None, typer.Option("--data", help="Folder of images in the hub's layout, in place of what `fetch` brought.")
]


@prepare.command()
def pretrain(
    task: Annotated[str, typer.Option(help="Task; `unlearnbench list tasks`.")] = "digits-class",
    seed: Annotated[int, typer.Option(min=0, help="Pretraining seed.")] = 0,
    device: Annotated[Device, typer.Option()] = Device.auto,
    folder: Annotated[Path | None, typer.Option("--out", help="Where to; pretrained/<task> when left out.")] = None,
    judge: Annotated[bool, typer.Option("--judge", help="The judge alone.")] = False,
    data: Data = None,
) -> None:
    """Train the original model and the judges anew; the same command again goes on where it was stopped."""
    task_class = registry.load_task(task)
    more = accepted(task_class, data=data)
    if judge and not hasattr(task_class, "pretrain_judge"):
        raise UserError(f"--judge: the judge of {task} is made with its model: leave it out")

    from unlearnbench.environment import pick_device
    from unlearnbench.resources import out_of_memory, too_little
    from unlearnbench.store import cannot_write

    folder = folder or Path("pretrained") / task
    trained = task_class(task_class.default_forget, device=pick_device(device.value), **more)
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
    out.print(f"weights in {folder}; use them with: unlearnbench run --pretrained {folder} --method …", soft_wrap=True)


@prepare.command("first-hour")
def first_hour(
    task: Annotated[str, typer.Option(help="Task; `unlearnbench list tasks`.")] = "cifar10-class",
    protocol: Annotated[str, typer.Option(help="How the original's row is measured.")] = "first-hour",
    checkpoint: Annotated[Path | None, typer.Option(help="The original, from a file of the papers' own.")] = None,
    pretrained: Annotated[Path | None, typer.Option(help="Folder made by `pretrain`: judge, and original.")] = None,
    data: Data = None,
    device: Annotated[Device, typer.Option()] = Device.auto,
    results: Annotated[Path, typer.Option("--out", help="Folder of records.")] = Path("results"),
    steps: Annotated[
        bool, typer.Option("--steps", help="Also measure what the default protocol's fewer sampling steps change.")
    ] = False,
) -> None:
    """On a new machine: check data, checkpoint, judge and the original's row, expected beside obtained.

    Exit code 1 where something cannot be what it should be.
    """
    task_class = registry.load_task(task)
    if not hasattr(task_class, "looked_over"):
        raise UserError(f"first-hour is for cifar10-class and the nudity tasks: of {task} nothing is published")
    if steps and not hasattr(task_class, "fewer_steps"):
        raise UserError(f"--steps: {task} has no protocol of fewer steps to compare: leave it out")
    task_class.resolve_protocol(protocol)
    more = accepted(task_class, data=data, checkpoint=checkpoint)

    from unlearnbench.environment import pick_device
    from unlearnbench.first_hour import HEADS, STAGES, findings
    from unlearnbench.store import Store

    about = task_class(
        task_class.default_forget, protocol=protocol, device=pick_device(device.value), weights=pretrained, **more
    )
    with bars(err, STAGES if steps else STAGES - 1) as begin:
        found = list(findings(about, Store(), results, begin, steps))
    marks, sources = {True: "✓", False: "✗", None: ""}, list(dict.fromkeys(f.source for f in found if f.source))
    numbers = {source: f"[{number}]" for number, source in enumerate(sources, 1)}
    rows = [[f.what, f.expected, f.obtained, marks[f.passed], numbers.get(f.source, "")] for f in found]
    print_table(f"{task}, protocol {protocol}", HEADS, [("", rows)], left=len(HEADS))
    for source, number in numbers.items():
        out.print(f"{number} {source}", markup=False, soft_wrap=True)
    raise typer.Exit(1 if any(f.passed is False for f in found) else 0)


def show_probe(cells: list[Cell], results: Path, jobs: int = 1) -> None:
    """What a run of these cells would take: each method is tried for some seconds, for one of its cells.

    Cells whose record is there are counted, and left out of times and disk. A method whose trial fails, diverges or is
    not supported is named at the end, with exit code 1.
    """
    from unlearnbench.probe import probe, room
    from unlearnbench.runner import finished
    from unlearnbench.store import Store
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
            done = sum(finished(cell, results) is not None for cell in group)
            try:
                left, found = len(group) - done, probe(group[0])
            except (Diverged, UserError) as error:
                failed.append(f"{name}: the short trial came to nothing: {message(error)}")
                continue
            each = found.sampling + (found.unlearning or 0.0)
            total, stored = total + each * left, stored + found.stored * left
            unknown = unknown or found.unlearning is None
            fits = "" if found.batch == group[0].task.protocol.chunk else f", {found.batch} at once, for lack of memory"
            notes.append(
                f"{name}: {found.evaluations:,} evaluations of the network a run to draw {found.images:,} images{fits}"
            )
            cells_of = [name, str(len(group)), str(done), f"{found.images:,}"]
            cells_of += ["—" if found.steps is None else f"{found.steps:,}", _span(found.sampling)]
            cells_of += [_span(found.unlearning), _bytes(found.memory), _span(each * left)]
            rows.append(cells_of)
            if found.memory and here.memory and found.memory > here.memory:
                notes.append(f"{name}: {_bytes(found.memory)} are more than there is: see --memory and --precision")
    if not rows:
        raise Failed("; ".join(failed))
    heads = ["method", "runs", "done", "images", "steps", "sampling", "unlearning", "memory", "still to run"]
    print_table("what it would take here, judging and preparing left out", heads, [("", rows)])
    for note in notes:
        out.print(note, soft_wrap=True, highlight=False)
    more = "; — is not known: the method has no number of steps" if unknown else ""
    by = f", {_span(total / jobs)} by {jobs} jobs at a time" if jobs > 1 else ""
    out.print(f"in all about {_span(total)} of one device{by}{more}; nothing was run or kept", soft_wrap=True)
    out.print(
        f"memory {_bytes(here.memory)} ({here.kind}); disk {_bytes(stored)} of weights and images, "
        f"{_bytes(here.disk)} free at {Store().root}",
        soft_wrap=True,
        highlight=False,
    )
    if stored > here.disk:
        err.print("too little disk: free some, or name another folder with UNLEARNBENCH_CACHE", soft_wrap=True)
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
    """Seconds, minutes or hours, to two digits."""
    if seconds is None:
        return "—"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
