"""Save a record's images as PNG files, for other evaluators. Nothing here reads them back."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from unlearnbench.errors import UserError
from unlearnbench.export.diffusers_folder import recalled
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.fingerprint import sample_parts
from unlearnbench.pipeline.sampling import sample_images
from unlearnbench.pipeline.unlearning import loaded
from unlearnbench.records.schema import Record
from unlearnbench.reporting import track
from unlearnbench.storage.files import cannot_write
from unlearnbench.storage.store import Store


def write_pngs(record: Record, cell: Cell, store: Store, folder: Path) -> int:
    """Write group-concept/00000.png and so on; return their number.

    Images come from the store, or are sampled again with the weights in the record. Files with these names are
    overwritten, so that the same command continues where it was stopped. Other images in the folder are refused, since
    evaluators would count them too.
    """
    from PIL import Image

    plan, counts = cell.task.plan(), Counter[str]()
    names = []
    for item in plan:
        place = re.sub(r"[^\w+-]", "-", f"{item.group}-{item.concept}")
        names.append(f"{place}/{counts[place]:05}.png")
        counts[place] += 1
    if strange := {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} - set(names):
        raise UserError(f"{folder} holds other images, such as {min(strange)}: name a DIR that is new or empty")
    state = recalled(record, cell, store)
    images = sample_images(cell, loaded(cell, state), sample_parts(cell, state), plan, store)
    pictures = (image for some in images.split(500) for image in some)
    try:
        for place in counts:
            (folder / place).mkdir(parents=True, exist_ok=True)
        for name, image in track(zip(names, pictures, strict=True), len(plan), "writing"):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name)
    except OSError as error:
        raise UserError(cannot_write(folder, error, "`samples RECORD DIR`")) from error
    return len(plan)
