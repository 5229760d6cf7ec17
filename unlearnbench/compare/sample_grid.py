"""The picture of a comparison: the same noise through the original and two methods, a row per concept."""

from __future__ import annotations

from pathlib import Path

from unlearnbench.compare.pairs import Run
from unlearnbench.errors import UserError
from unlearnbench.records.sample_grid import Tiles, concepts_of, fitted, tiles, write_sides


def write_pair(path: Path, a: Run, b: Run) -> None:
    """PNG: original, A and B from the pictures beside their records; `UserError` where one has none."""
    known = next((run for run in (a, b) if run.images is not None), None)
    if known is None or known.images is None:
        raise UserError(f"no per-image values (.parquet) beside {a.path}: without them its picture cannot be read")
    concepts = concepts_of(known.record, known.images)
    shown = {name: _sides(run, concepts) for name, run in (("A", a), ("B", b)) if run.record.method.name != "original"}
    if not shown:
        raise UserError("A and B are both the original, which has no picture of its own: name another method")
    before = next(iter(shown.values()))[0]
    sides: list[tuple[str, Tiles]] = [("original", before)] if len(shown) == 2 else []
    for name, run in (("A", a), ("B", b)):
        sides.append((fitted(f"{name}: {run.record.label()}"), shown[name][1] if name in shown else before))
    forgotten = known.images.concept[known.images.group == "forget"]
    write_sides(path, sides, set(forgotten))


def _sides(run: Run, concepts: list[str]) -> tuple[Tiles, Tiles]:
    """Tiles of the original and of a run's own model."""
    picture = run.path.with_suffix(".png")
    found = tiles(picture, concepts)
    if found is None:
        why = "it is not one that `unlearnbench run` made of these concepts" if picture.is_file() else "it is missing"
        raise UserError(f"no images from {picture}: {why}; run the record's command again with --force")
    return {name: pair[0] for name, pair in found.items()}, {name: pair[1] for name, pair in found.items()}
