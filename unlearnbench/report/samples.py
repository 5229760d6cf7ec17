"""The report's sample grids: the same noise through every model, one row per concept, one strip per method."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unlearnbench.leaderboard.board import Images
from unlearnbench.records.identity import record_identity
from unlearnbench.records.sample_grid import grid_concepts, tiles
from unlearnbench.records.schema import Record

if TYPE_CHECKING:
    from PIL.Image import Image

EACH = 3
"""Images per concept and method."""
SIZES = (8, 16, 28, 32)
"""Side lengths of miniatures, which grids show enlarged."""
ORIGINAL = "original"
Sides = dict[str, tuple[list["Image"], list["Image"]]]
"""Images of the original and of the method, by concept."""


class Strip(NamedTuple):
    """The samples of one method, one row per concept; without a picture, the reason."""

    label: str
    picture: str
    """A data: URL, or empty."""
    alt: str
    reason: str
    other: bool = False
    """Whether it is shown only when a reader asks for all settings."""


class Grid(NamedTuple):
    """Strips with the same concepts in their rows, sampled from the same noise."""

    concepts: list[str]
    forgotten: list[str]
    strips: list[Strip]


def build_strips(
    methods: Sequence[tuple[str, Record]], results: Path, images: Images, others: Collection[str] = ()
) -> Grid | None:
    """Make a strip for each method, given its label and record; the originals come first. `others` are marked so.

    Methods that were made from different originals have one strip for each of these. Returns None where no record has
    the per-image values that say what the rows are.
    """
    told = next(((record, frame) for _, record in methods if (frame := images(record)) is not None), None)
    if told is None:
        return None
    record, frame = told
    concepts = grid_concepts(record, frame)
    forgotten = [name for name in concepts if name in set(frame.concept[frame.group == "forget"])]
    sides = {label: _sides(record, results, concepts) for label, record in methods}
    originals = _originals(methods, sides)
    rest = {label: one for label, one in sides.items() if label not in originals}
    strips = [
        Strip(label, "", "", one) if isinstance(one, str) else _strip(label, one, concepts, forgotten)
        for label, one in {**originals, **rest}.items()
    ]
    return Grid(concepts, forgotten, [strip._replace(other=strip.label in others) for strip in strips])


def _originals(methods: Sequence[tuple[str, Record]], sides: Mapping[str, Sides | str]) -> dict[str, Sides]:
    """Images of each original by label. They come from the methods' sample grids, since originals have none."""
    keys = {label: (one.original, one.engine) for label, record in methods for one in [record_identity(record)]}
    names = {keys[label]: label for label, record in methods if record.method.name == ORIGINAL}
    found: dict[str, Sides] = {}
    for label, own in sides.items():
        if isinstance(own, str):
            continue
        key = keys[label]
        alone = len(set(keys.values())) == 1
        name = names.setdefault(key, ORIGINAL if alone else f"{ORIGINAL} of {label}")
        found.setdefault(name, {concept: (before, before) for concept, (before, _) in own.items()})
    return {name: found[name] for name in names.values() if name in found}


def _sides(record: Record, results: Path, concepts: Sequence[str]) -> Sides | str:
    """Both halves of a record's sample grid, or the reason why there are none."""
    path = record.path(results).with_suffix(".png")
    if record.status in ("diverged", "skipped"):
        return f"{record.status}: no samples"
    if not path.is_file():
        return "no sample file"
    try:
        found = tiles(path, concepts)
    except (OSError, SyntaxError):  # what Pillow says of a damaged PNG
        found = None
    return "sample file cannot be read" if found is None else found


def _strip(label: str, sides: Sides, concepts: Sequence[str], forgotten: Sequence[str]) -> Strip:
    which = f"; forgotten: {', '.join(forgotten)}" if forgotten else ""
    alt = f"Samples of {label}, a row for each of {', '.join(concepts)}{which}"
    return Strip(label, compose_picture([sides[name][1][:EACH] for name in concepts]), alt, "")


def compose_picture(rows: Sequence[Sequence[Image]]) -> str:
    """Compose rows of tiles into one lossless picture with miniatures in their own size; returns a data: URL."""
    from PIL import Image

    side = native([tile for row in rows for tile in row])
    step = side + max(1, side // 8)
    canvas = Image.new("RGBA", (max(EACH, 1) * step, len(rows) * step))
    for down, row in enumerate(rows):
        for across, tile in enumerate(row):
            small = tile.resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(small, (across * step, down * step))
    buffer = io.BytesIO()
    canvas.save(buffer, "WEBP", lossless=True, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def native(every: Sequence[Image]) -> int:
    """The side length to which all tiles can be reduced without loss, if they are enlarged miniatures."""
    from PIL import Image

    whole = max((tile.width for tile in every), default=1)
    for side in SIZES:
        if side < whole and all(
            tile.resize((side, side), Image.Resampling.NEAREST).resize(tile.size, Image.Resampling.NEAREST) == tile
            for tile in every
        ):
            return side
    return whole
