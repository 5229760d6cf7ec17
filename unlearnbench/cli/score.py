"""`score`: metrics of images that were drawn elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearnbench import __version__, registry
from unlearnbench.cli.arguments import Device
from unlearnbench.cli.completion import complete_tasks
from unlearnbench.cli.console import err, out, print_table
from unlearnbench.reporting import bars

if TYPE_CHECKING:
    from unlearnbench.pipeline.given_images import GivenScores
    from unlearnbench.task import Task

scoring = typer.Typer()
KIND = "scores of given images"
NO_RECORD = "not a record: nobody checked how these images were drawn, so they are ranked with no run"
FEW = 3


@scoring.command()
def score(
    images: Annotated[
        list[str],
        typer.Option(
            metavar="DIR|ZIP|GROUP=DIR",
            help="Folder or zip with forget/*.png and retain/*.png, and below them a folder for each concept if you "
            "like; or forget=DIR and retain=DIR. Repeatable.",
        ),
    ],
    task: Annotated[
        str,
        typer.Option(
            help="Task whose judge and metrics are used; see `unlearnbench list tasks`.", autocompletion=complete_tasks
        ),
    ],
    forget: Annotated[str | None, typer.Option(help="The concept that the system should not show.")] = None,
    protocol: Annotated[str, typer.Option(help="Protocol whose thresholds and reference images are used.")] = "default",
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|GROUP=FILE",
            help="What the images were asked for: a CSV with a column image (or case_number, for files such as "
            "17_0.png) and prompt, concept or group. Repeatable.",
        ),
    ] = None,
    names: Annotated[
        bool, typer.Option("--names-are-prompts", help="Take prompts from file names: a_red_car_0007.png is a red car.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the task's judges and reference images, instead of what `fetch` brought."),
    ] = None,
    pretrained: Annotated[
        Path | None, typer.Option(help="Folder made by `pretrain`, with the judge of cifar10-class.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Device to compute on.")] = Device.auto,
    file: Annotated[Path, typer.Option("--out", help="JSON file to write.")] = Path("scores.json"),
) -> None:
    """Score images that somebody already drew, such as those of a closed system.

    Only metrics that need images alone are run; the others are named with the reason. Files may be PNG, JPEG, WebP,
    BMP, TIFF or GIF; what cannot be read is left out and counted. The result is no record: no leaderboard has it."""
    from unlearnbench.compute.device import pick_device
    from unlearnbench.pipeline.given_images import (
        image_sources,
        list_images,
        prompts_of_names,
        score_images,
        with_descriptions,
    )
    from unlearnbench.storage.store import Store
    from unlearnbench.task import accepted

    cls = registry.load_task(task)
    cls.resolve_protocol(protocol)
    concept = cls.resolve_concept(forget or cls.default_forget)
    on, own = pick_device(device.value), accepted(cls, data=data)
    made = cls(concept, protocol=protocol, device=on, weights=pretrained, **own)
    listed, others = list_images(image_sources(images))
    given = with_descriptions(prompts_of_names(listed) if names else listed, prompts or [])
    _require_ours(file)
    with bars(err, 1) as begin:
        begin(f"scoring {len(given):,} images by {task}")
        found = score_images(made, given, Store())
    found = found._replace(left_out={**others, **found.left_out})
    _write(file, _as_json(made, found))
    _show(made, found, file)


def _require_ours(file: Path) -> None:
    """Refuse to replace a file that this command did not write."""
    from unlearnbench.errors import UserError

    if not file.exists():
        return
    try:
        ours = json.loads(file.read_text(encoding="utf-8")).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise UserError(f"--out {file} is there already and no result of `score`: give another name")


def _write(file: Path, values: dict[str, Any]) -> None:
    from unlearnbench.errors import UserError
    from unlearnbench.storage.files import cannot_write, replace_file

    try:
        replace_file(file, f"{json.dumps(values, indent=1, ensure_ascii=False)}\n".encode(errors="backslashreplace"))
    except OSError as error:
        raise UserError(cannot_write(file, error, "--out")) from error


def _as_json(task: Task, found: GivenScores) -> dict[str, Any]:
    """The result as data; prompts are never part of it."""
    from unlearnbench.compute.environment import now
    from unlearnbench.pipeline.scoring import score_record

    metrics = registry.load_metrics()
    judge = found.judge
    return {
        "kind": KIND,
        "note": NO_RECORD,
        "task": task.name,
        "forget": task.forget,
        "protocol": task.protocol.name,
        "images": {group: sum(item.group == group for item in found.plan) for group in _groups(found)},
        "images_sha256": found.sha256,
        "changed": found.changes,
        "left_out": found.left_out,
        "judge": None if judge is None else {"name": judge.name, "version": judge.version, "hash": judge.hash},
        "witnesses": {
            role: {"name": each.name, "version": each.version, "hash": each.hash}
            for role, each in found.witnesses.items()
        },
        "scores": {
            name: score_record(metrics[name], each).model_dump(mode="json") for name, each in found.scores.items()
        },
        "not_run": found.not_run,
        "unlearnbench": __version__,
        "created": now(),
    }


def _groups(found: GivenScores) -> list[str]:
    return list(dict.fromkeys(item.group for item in found.plan))


def _show(task: Task, found: GivenScores, file: Path) -> None:
    """Print scores, what was not run and why, and what was left out."""
    from unlearnbench.leaderboard.tables import head, shown
    from unlearnbench.statistics import clip_interval

    metrics, rows = registry.load_metrics(), []
    for name, each in found.scores.items():
        metric = metrics[name]
        bounds = clip_interval(each.interval, *metric.bounds())
        interval = "—" if bounds is None else " … ".join(shown(metric, bound) for bound in bounds)
        rows.append([head(metric), f"{each.n - each.missing:,}", shown(metric, each.value), interval])
    title = f"{task.name} · forget {task.forget} · protocol {task.protocol.name} · given images"
    if rows:
        print_table(title, ["metric", "n", "value", "95 % interval"], [("", rows)])
    counts = ", ".join(f"{sum(item.group == group for item in found.plan):,} {group}" for group in _groups(found))
    lines = [f"images: {counts}"]
    if found.changes:
        lines.append(f"changed: {'; '.join(f'{count:,} {what}' for what, count in found.changes.items())}")
    if found.left_out:
        first = "; ".join(f"{name} ({why})" for name, why in list(found.left_out.items())[:FEW])
        more = f"; {len(found.left_out) - FEW} more in {file}" if len(found.left_out) > FEW else ""
        lines.append(f"left out: {len(found.left_out):,} files: {first}{more}")
    reasons: dict[str, list[str]] = {}
    for name, why in found.not_run.items():
        reasons.setdefault(why, []).append(name)
    lines += [f"not run: {', '.join(left)}: {why}" for why, left in reasons.items()]
    lines += [f"{name} has no value: {each.reason}" for name, each in found.scores.items() if each.reason]
    lines += [NO_RECORD, f"scores: {file}"]
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)
    if not rows:
        err.print("no metric could be run: see the reasons above", soft_wrap=True)
        raise typer.Exit(1)
