"""`export` and `samples`: write a record's model or images for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unlearnbench import registry
from unlearnbench.cli.arguments import Device, opened_record
from unlearnbench.cli.console import err, out
from unlearnbench.errors import UserError
from unlearnbench.reporting import bars

exporting = typer.Typer()


@exporting.command()
def export(
    record: Annotated[Path, typer.Argument(help="A record, seed-*.json, or a folder with one.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; it must not exist, or be empty.")],
    method: Annotated[str | None, typer.Option(help="The method's .py file, where it is not built in.")] = None,
    device: Annotated[Device, typer.Option()] = Device.auto,
    pretrained: Annotated[Path | None, typer.Option(help="Folder with the original's weights.")] = None,
) -> None:
    """Write a record's unlearned text-to-image model as a diffusers folder with a model card."""
    _, said = opened_record(record)

    from unlearnbench.compute.device import pick_device
    from unlearnbench.export.diffusers_folder import export as write
    from unlearnbench.storage.store import Store
    from unlearnbench.verification.verify import rebuilt

    cell = rebuilt(said, pick_device(device.value), method, pretrained)
    with bars(err, 1) as begin:
        begin(f"{said.label()} · forget {said.forget} · seed {said.seeds['unlearning']}")
        write(said, cell, Store(), folder)
    out.print(
        f"wrote {folder}, a diffusers folder; {folder / 'README.md'} is its card", soft_wrap=True, highlight=False
    )


@exporting.command()
def samples(
    record: Annotated[Path, typer.Argument(help="A record, seed-*.json, or a folder with one.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")],
    method: Annotated[str | None, typer.Option(help="The method's .py file, where it is not built in.")] = None,
    device: Annotated[Device, typer.Option()] = Device.auto,
    pretrained: Annotated[Path | None, typer.Option(help="The --pretrained that the record was run with.")] = None,
    data: Annotated[Path | None, typer.Option(help="The --data that the record was run with.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The --checkpoint that the record was run with.")] = None,
    include_unsafe: Annotated[bool, typer.Option("--include-unsafe", help="Of an unsafe task too.")] = False,
) -> None:
    """Write a record's images as PNG files, for evaluators of others."""
    _, said = opened_record(record)
    if not include_unsafe and said.task in registry.tasks() and registry.load_task(said.task).unsafe:
        raise UserError(f"images of {said.task} may be unfit to be shown: --include-unsafe writes them all the same")

    from unlearnbench.compute.device import pick_device
    from unlearnbench.export.png_files import write_pngs
    from unlearnbench.storage.store import Store
    from unlearnbench.verification.verify import rebuilt

    cell = rebuilt(said, pick_device(device.value), method, pretrained, data=data, checkpoint=checkpoint)
    with bars(err, 1) as begin:
        begin(f"{said.label()} · forget {said.forget} · seed {said.seeds['unlearning']}")
        count = write_pngs(said, cell, Store(), folder)
    out.print(f"wrote {count:,} images to {folder}, a folder for each group and concept", soft_wrap=True)
