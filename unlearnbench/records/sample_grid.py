"""Draw the sample grid of a run: the same noise through the original and the unlearned model, one row per concept."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unlearnbench import registry
from unlearnbench.records.schema import Record
from unlearnbench.storage.files import replace_file
from unlearnbench.storage.lazy_arrays import Table
from unlearnbench.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image
    from torch import Tensor

COLUMNS, TILE, GAP, MARGIN, HEAD = 6, 48, 24, 84, 40
SIDE, ROW, PICTURE = COLUMNS * TILE, TILE + 4, TILE - 2
GONE = "#b00020"

Tiles = Mapping[str, Sequence["Image"]]
"""Images by concept."""


def grid_rows(task: Task) -> dict[str, list[int]]:
    """The places in the plan of the images that a grid shows, at most `COLUMNS` for each concept, by concept."""
    rows: dict[str, list[int]] = {}
    for i, item in enumerate(task.plan()):
        if item.group in ("forget", "retain"):
            rows.setdefault(item.concept, []).append(i)
    return {concept: rows[concept][:COLUMNS] for concept in _sorted(rows, task.concepts)}


def write_grid(path: Path, task: Task, before: Table | Mapping[int, Tensor], after: Table, label: str) -> None:
    """Write a PNG with `COLUMNS` images per concept, of the original on the left and of the unlearned model on the
    right.

    `before` and `after` give images uint8 (3, H, W) by place in the plan; of `before`, those of `grid_rows` will do.
    """
    forgotten = {item.concept for item in task.plan() if item.group == "forget"}
    rows = grid_rows(task)
    places = [place for chosen in rows.values() for place in chosen]
    shown = [images if isinstance(images, Mapping) else images_at(images, places) for images in (before, after)]
    sides = [{concept: [_tile(images[i]) for i in rows[concept]] for concept in rows} for images in shown]
    write_sides(path, [("original", sides[0]), (label, sides[1])], forgotten)


def images_at(images: Table, places: Sequence[int]) -> dict[int, Tensor]:
    """The images at these places, by place; each part of a table on disk is read once for all of its images."""
    return dict(zip(places, images[np.array(places, dtype=int)], strict=True))


def write_sides(path: Path, sides: Sequence[tuple[str, Tiles]], forgotten: Collection[str]) -> None:
    """Write a PNG with the tiles of each model side by side, one row per concept; forgotten concepts are framed."""
    from PIL import Image, ImageDraw

    concepts = list(sides[0][1])
    canvas = Image.new("RGB", picture_size(len(concepts), len(sides)), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (heading, _) in enumerate(sides):
        draw.text((_left(number), HEAD // 3), heading, fill="black", font_size=15)
    for row, concept in enumerate(concepts):
        top, gone = HEAD + row * ROW, concept in forgotten
        draw.text((10, top + TILE // 3), concept, fill=GONE if gone else "black", font_size=15)
        for number, (_, tiles) in enumerate(sides):
            for column, tile in enumerate(tiles[concept]):
                canvas.paste(tile, (_left(number) + column * TILE, top))
        if gone:
            draw.rectangle((4, top - 3, canvas.width - 5, top + TILE), outline=GONE, width=2)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    replace_file(path, buffer.getvalue())


def tiles(path: Path, concepts: Sequence[str]) -> dict[str, tuple[list[Image], list[Image]]] | None:
    """Cut a PNG of `write_grid` into tiles; returns those of the original and of the method by concept.

    Returns None where the file is missing, is not an image, or has not the size that these concepts give. Tiles that
    are white on both sides at the end of a row are left out.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            if not concepts or opened.size != picture_size(len(concepts), 2):
                return None
            canvas = opened.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError):  # a broken PNG is a SyntaxError to Pillow
        return None
    found = {}
    for row, concept in enumerate(concepts):
        pairs = [tuple(_cut(canvas, row, number, column) for number in (0, 1)) for column in range(COLUMNS)]
        while pairs and all(tile.getextrema() == ((255, 255),) * 3 for tile in pairs[-1]):
            pairs.pop()
        found[concept] = ([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return found


def grid_concepts(record: Record, images: pd.DataFrame) -> list[str]:
    """The concepts of a record's sample grid from top to bottom, according to its per-image values."""
    shown = images[images.group.isin(["forget", "retain"])].concept
    known = registry.load_task(record.task).concepts if record.task in registry.tasks() else ()
    return _sorted(dict.fromkeys(shown), known)


def fitted(heading: str) -> str:
    """Shorten a heading to the width of the tiles below it."""
    from PIL import ImageFont

    font = ImageFont.load_default(15)
    if font.getlength(heading) <= SIDE:
        return heading
    kept = heading
    while font.getlength(f"{kept}...") > SIDE:
        kept = kept[:-1]
    return f"{kept}..."


def _sorted(concepts: Iterable[str], known: Sequence[str]) -> list[str]:
    """Sort concepts in the task's order; the user's own concepts come first."""
    places = {concept: place for place, concept in enumerate(known)}
    return sorted(concepts, key=lambda name: places.get(name, -1))


def _tile(image: Tensor) -> Image:
    from PIL import Image

    tile = Image.fromarray(image.permute(1, 2, 0).numpy())
    small = tile.width < TILE  # pixels of miniatures are shown as they are
    return tile.resize((PICTURE,) * 2, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def picture_size(rows: int, sides: int) -> tuple[int, int]:
    """Width and height in pixels of a picture with this many concepts and models."""
    return MARGIN + sides * (SIDE + GAP), HEAD + rows * ROW + GAP // 2


def _left(number: int) -> int:
    return MARGIN + number * (SIDE + GAP)


def _cut(canvas: Image, row: int, number: int, column: int) -> Image:
    left, top = _left(number) + column * TILE, HEAD + row * ROW
    return canvas.crop((left, top, left + PICTURE, top + PICTURE))
