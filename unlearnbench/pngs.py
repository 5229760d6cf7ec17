"""A record's images as PNG files, for evaluators of others: nothing here reads them back."""

from __future__ import annotations

import re
from pathlib import Path

from unlearnbench.errors import UserError
from unlearnbench.export import recalled
from unlearnbench.progress import track
from unlearnbench.record import Record
from unlearnbench.runner import sample_parts
from unlearnbench.samples import draw
from unlearnbench.stages import Cell, loaded
from unlearnbench.store import Store, cannot_write


def write_pngs(record: Record, cell: Cell, store: Store, folder: Path) -> int:
    """Write group-concept/00000.png and so on; returns how many there are.

    Images come from the store, or are drawn anew by the weights that the record names. Files that are there already are
    written over, so that the same command goes on where it was stopped.
    """
    from PIL import Image

    state = recalled(record, cell, store)
    plan, counts = cell.task.plan(), dict[Path, int]()
    images = draw(cell, loaded(cell, state), sample_parts(cell, state), plan, store)
    pictures = (image for some in images.split(500) for image in some)
    try:
        for item, image in track(zip(plan, pictures, strict=True), len(plan), "writing"):
            place = folder / re.sub(r"[^\w+-]", "-", f"{item.group}-{item.concept}")
            number = counts[place] = counts.get(place, -1) + 1
            if not number:
                place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number:05}.png")
    except OSError as error:
        raise UserError(cannot_write(folder, error, "`samples RECORD DIR`")) from error
    return len(plan)
