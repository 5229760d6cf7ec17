"""The picture of a comparison: the same noise through the original and two methods, one row for each concept."""

from __future__ import annotations

from pathlib import Path

from unlearnbench.compare.pairs import Run
from unlearnbench.errors import UserError
from unlearnbench.records.identity import record_identity
from unlearnbench.records.sample_grid import Tiles, fitted, grid_concepts, tiles, write_sides


def write_pair(path: Path, a: Run, b: Run) -> None:
    """Write a PNG with the original, A and B, taken from the sample grids beside their records.

    Where A and B were made from different originals, both originals are shown. Raises `UserError` where a sample grid
    is missing.
    """
    known = next((run for run in (a, b) if run.images is not None), None)
    if known is None or known.images is None:
        raise UserError(f"{a.path} has no per-image values (.parquet): without them its picture cannot be read")
    concepts = grid_concepts(known.record, known.images)
    shown = {name: _sides(run, concepts) for name, run in (("A", a), ("B", b)) if run.record.method.name != "original"}
    if not shown:
        raise UserError("A and B are both the original, which has no picture of its own: name another method")
    apart = _original(a) != _original(b)
    if apart and len(shown) == 1:
        (name,) = {"A", "B"} - set(shown)
        raise UserError(
            f"{name} is another original than that of {next(iter(shown))}, and has no picture of its own: name another "
            "method"
        )
    before = {name: originals for name, (originals, _) in shown.items()}
    sides: list[tuple[str, Tiles]] = []
    if apart:
        sides = [(f"original of {name}", originals) for name, originals in before.items()]
    elif len(shown) == 2:
        sides = [("original", before["A"])]
    for name, run in (("A", a), ("B", b)):
        own = shown[name][1] if name in shown else next(iter(before.values()))
        sides.append((fitted(f"{name}: {run.record.label()}"), own))
    forgotten = known.images.concept[known.images.group == "forget"]
    write_sides(path, sides, set(forgotten))


def _original(run: Run) -> tuple[str, str]:
    """Weights of the original and version of the engine, which together give its samples."""
    one = record_identity(run.record)
    return one.original, one.engine


def _sides(run: Run, concepts: list[str]) -> tuple[Tiles, Tiles]:
    """Tiles of the original and of a run's own model."""
    picture = run.path.with_suffix(".png")
    found = tiles(picture, concepts)
    if found is None:
        why = "it is not one that `unlearnbench run` made of these concepts" if picture.is_file() else "it is missing"
        raise UserError(f"no images from {picture}: {why}; run the record's command again with --force")
    return {name: pair[0] for name, pair in found.items()}, {name: pair[1] for name, pair in found.items()}
