"""`judges`: the card of a task's judges, which says what they recognise and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unlearnbench import registry
from unlearnbench.cli.arguments import Device
from unlearnbench.cli.completion import complete_tasks
from unlearnbench.cli.console import err, print_table, show_lines
from unlearnbench.cli.pretrain import Data
from unlearnbench.reporting import bars

judging = typer.Typer()


@judging.command()
def judges(
    task: Annotated[
        str, typer.Option(help="Task; see `unlearnbench list tasks`.", autocompletion=complete_tasks)
    ] = "digits-class",
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="Protocol whose judge is meant; repeatable. [default: default, selection]"),
    ] = None,
    device: Annotated[Device, typer.Option(help="Device to compute on.")] = Device.auto,
    pretrained: Annotated[
        Path | None, typer.Option(help="Folder made by `pretrain`, instead of the shipped weights.")
    ] = None,
    data: Data = None,
) -> None:
    """Show what a task's judges recognise and refuse: corrupted real images, and images that show nothing.

    A judge must not refuse what can still be recognised: where at least 90 % of equally corrupted images are named
    right, at most 5 % may be refused; and it must refuse at least 98 % of noise. Exits with 1 if one does not."""
    from unlearnbench.compute.device import pick_device
    from unlearnbench.judges.card import card_rows, judge_cards, non_image_rows
    from unlearnbench.judges.corruptions import SEVERITIES
    from unlearnbench.task import accepted

    cls = registry.load_task(task)
    chosen = protocol or [name for name in ("default", "selection") if name in cls.protocols]
    more = accepted(cls, data=data)
    failed = 0
    for name in chosen:
        made = cls(cls.default_forget, protocol=name, device=pick_device(device.value), weights=pretrained, **more)
        images, labels = made.labelled_images()
        with bars(err, 1) as begin:
            begin(f"{task}: {made.protocol.judge}")
            cards = judge_cards(made.judge(), images, labels)
        for card in cards:
            of = f", labels {card.domain.start} to {card.domain.stop - 1}" if len(cards) > 1 else ""
            title = f"{card.judge}{of}: {card.images} real images, recognised / refused (%) by severity"
            heads = ["corruption", *map(str, SEVERITIES)]
            print_table(title, heads, [("", [list(row) for row in card_rows(card)])])
            print_table(
                "images that show nothing", ["", "refused (%)"], [("", [list(r) for r in non_image_rows(card)])]
            )
            failed += len(card.failed)
    verdict = "every requirement is met" if not failed else f"{failed} requirements are missed, marked ✗"
    show_lines(f"{verdict}: where 90 % are recognised, at most 5 % may be refused; 98 % of noise must be")
    raise typer.Exit(1 if failed else 0)
