"""The picture of a run: the same noise through the original and the unlearned model, a row per concept."""

from __future__ import annotations

import io
from pathlib import Path

from unlearnbench.record import replace_file
from unlearnbench.rows import Table
from unlearnbench.task import Task

COLUMNS, TILE, GAP, MARGIN, HEAD = 6, 48, 24, 84, 40


def write_grid(path: Path, task: Task, before: Table, after: Table, label: str) -> None:
    """PNG: `COLUMNS` images a concept, the original's on the left, the unlearned model's on the right."""
    from PIL import Image, ImageDraw

    rows: dict[str, list[int]] = {}
    forgotten = {item.concept for item in task.plan() if item.group == "forget"}
    for i, item in enumerate(task.plan()):
        if item.group in ("forget", "retain"):
            rows.setdefault(item.concept, []).append(i)
    known = {concept: place for place, concept in enumerate(task.concepts)}
    rows = {concept: rows[concept][:COLUMNS] for concept in sorted(rows, key=lambda name: known.get(name, -1))}
    side = COLUMNS * TILE
    width, height = MARGIN + 2 * side + 2 * GAP, HEAD + len(rows) * (TILE + 4) + GAP // 2
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, HEAD // 3), "original", fill="black", font_size=15)
    draw.text((MARGIN + side + GAP, HEAD // 3), label, fill="black", font_size=15)
    for row, (concept, index) in enumerate(rows.items()):
        top = HEAD + row * (TILE + 4)
        gone = concept in forgotten
        draw.text((10, top + TILE // 3), concept, fill="#b00020" if gone else "black", font_size=15)
        for column, i in enumerate(index):
            for left, images in ((MARGIN, before), (MARGIN + side + GAP, after)):
                tile = Image.fromarray(images[i].permute(1, 2, 0).numpy())
                small = tile.width < TILE  # pixels of miniatures are shown as they are
                tile = tile.resize((TILE - 2,) * 2, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
                canvas.paste(tile, (left + column * TILE, top))
        if gone:
            draw.rectangle((4, top - 3, width - 5, top + TILE), outline="#b00020", width=2)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    replace_file(path, buffer.getvalue())
