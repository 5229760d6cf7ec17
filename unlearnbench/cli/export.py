"""`export` and `samples`: write a record's model or images for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unlearnbench import registry
from unlearnbench.cli.arguments import Device, RecordsIn, opened_record
from unlearnbench.cli.console import err, out
from unlearnbench.errors import UserError
from unlearnbench.reporting import bars

exporting = typer.Typer()


@exporting.command()
def export(
    record: Annotated[Path, typer.Argument(help="Record (seed-*.json), or folder with exactly one.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to create; it may exist if it is empty.")],
    method: Annotated[str | None, typer.Option(help="Path of the method's .py file, if it is not built in.")] = None,
    device: Annotated[Device, typer.Option(help="Device to compute on.")] = Device.auto,
    pretrained: Annotated[Path | None, typer.Option(help="Folder with the original model's weights.")] = None,
    results: RecordsIn = None,
) -> None:
    """Save a record's unlearned model as a diffusers folder.

    The folder loads with `from_pretrained` and has a model card. For text-to-image tasks."""
    _, opened = opened_record(record, results)

    from unlearnbench.compute.device import pick_device
    from unlearnbench.export.diffusers_folder import export_folder
    from unlearnbench.storage.store import Store
    from unlearnbench.verification.verify import rebuilt

    cell = rebuilt(opened, pick_device(device.value), method, pretrained)
    with bars(err, 1) as begin:
        begin(f"{opened.label()} · forget {opened.forget} · seed {opened.seeds['unlearning']}")
        export_folder(opened, cell, Store(), folder)
    out.print(
        f"wrote {folder}, a diffusers folder; {folder / 'README.md'} is its card", soft_wrap=True, highlight=False
    )


@exporting.command()
def samples(
    record: Annotated[Path, typer.Argument(help="Record (seed-*.json), or folder with exactly one.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")],
    method: Annotated[str | None, typer.Option(help="Path of the method's .py file, if it is not built in.")] = None,
    device: Annotated[Device, typer.Option(help="Device to compute on.")] = Device.auto,
    pretrained: Annotated[Path | None, typer.Option(help="Value of --pretrained that the record was run with.")] = None,
    data: Annotated[Path | None, typer.Option(help="Value of --data that the record was run with.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Value of --checkpoint that the record was run with.")] = None,
    include_unsafe: Annotated[bool, typer.Option("--include-unsafe", help="Allow images of an unsafe task.")] = False,
    results: RecordsIn = None,
) -> None:
    """Save a record's images as PNG files, for other evaluators."""
    _, opened = opened_record(record, results)
    if not include_unsafe and opened.task in registry.tasks() and registry.load_task(opened.task).unsafe:
        raise UserError(f"images of {opened.task} may be unfit to be shown: --include-unsafe writes them all the same")

    from unlearnbench.compute.device import pick_device
    from unlearnbench.export.png_files import write_pngs
    from unlearnbench.storage.store import Store
    from unlearnbench.verification.verify import rebuilt

    cell = rebuilt(opened, pick_device(device.value), method, pretrained, data=data, checkpoint=checkpoint)
    with bars(err, 1) as begin:
        begin(f"{opened.label()} · forget {opened.forget} · seed {opened.seeds['unlearning']}")
        count = write_pngs(opened, cell, Store(), folder)
    out.print(f"wrote {count:,} images to {folder}, a folder for each group and concept", soft_wrap=True)
