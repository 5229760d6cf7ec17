"""Pictures of samples: what was written can be read back tile by tile."""

from __future__ import annotations

import hashlib

import pandas as pd
import pytest
import torch
from PIL import Image

from tests.support.small_world import made_record
from unlearnbench.records.sample_grid import (
    COLUMNS,
    PICTURE,
    SIDE,
    fitted,
    grid_concepts,
    images_at,
    tiles,
    write_grid,
    write_sides,
)
from unlearnbench.storage.lazy_arrays import ArrayPart, Rows
from unlearnbench.tasks.digits_class import DigitsClass

DIGITS = list("0123456789")


def drawn(path, size=8, label="esd"):
    """A picture of random images, and those images."""
    task, generator = DigitsClass("3"), torch.Generator().manual_seed(size)
    shape = (len(task.plan()), 3, size, size)
    sides = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(2)]
    write_grid(path, task, *sides, label)
    return task, sides


def test_tiles_are_the_images_that_were_drawn(tmp_path):
    task, sides = drawn(tmp_path / "a.png", size=PICTURE)
    found = tiles(tmp_path / "a.png", DIGITS)
    assert list(found) == DIGITS
    for concept in DIGITS:
        planned = [i for i, item in enumerate(task.plan()) if item.concept == concept][:COLUMNS]
        for images, cut in zip(sides, found[concept], strict=True):
            assert len(cut) == COLUMNS
            for i, tile in zip(planned, cut, strict=True):
                pixels = torch.tensor(list(tile.tobytes()), dtype=torch.uint8).view(PICTURE, PICTURE, 3)
                assert torch.equal(pixels.permute(2, 0, 1), images[i])


def test_of_images_on_disk_each_part_is_read_once_for_all_that_are_shown():
    images, read = torch.arange(6).view(6, 1), []
    parts = [ArrayPart(3, lambda n=n: read.append(n) or images[3 * n : 3 * n + 3]) for n in range(2)]
    assert images_at(Rows(parts), [5, 0, 2]) == {5: images[5], 0: images[0], 2: images[2]} and read == [0, 1]


def test_tiles_of_miniatures_keep_their_pixels(tmp_path):
    task, (before, _) = drawn(tmp_path / "a.png", size=2)
    first = next(i for i, item in enumerate(task.plan()) if item.concept == "3")
    tile = tiles(tmp_path / "a.png", DIGITS)["3"][0][0]
    corners = [tile.getpixel((x, y)) for y in (0, PICTURE - 1) for x in (0, PICTURE - 1)]
    assert corners == [tuple(before[first][:, y, x].tolist()) for y in (0, 1) for x in (0, 1)]


def test_tiles_that_are_written_again_make_the_same_picture(tmp_path):
    drawn(tmp_path / "a.png", label="mine")
    found = tiles(tmp_path / "a.png", DIGITS)
    sides = [
        (name, {concept: pair[i] for concept, pair in found.items()}) for i, name in enumerate(("original", "mine"))
    ]
    write_sides(tmp_path / "b.png", sides, {"3"})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_picture_of_a_run_has_stayed_as_it_was(tmp_path):
    drawn(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (708, 572)
        beside_words = picture.convert("RGB").crop((84, 40, 708, 572))
    assert hashlib.sha256(beside_words.tobytes()).hexdigest()[:16] == "cfef694ad8406351"


def test_a_row_that_is_not_full_has_fewer_tiles(tmp_path):
    tile = Image.new("RGB", (PICTURE, PICTURE), "black")
    sides = [(name, {"a": [tile] * 2, "b": [tile] * COLUMNS}) for name in ("original", "mine")]
    write_sides(tmp_path / "a.png", sides, {"a"})
    found = tiles(tmp_path / "a.png", ["a", "b"])
    assert {name: [len(side) for side in pair] for name, pair in found.items()} == {"a": [2, 2], "b": [COLUMNS] * 2}


@pytest.mark.parametrize("concepts", [[], DIGITS[1:], [*DIGITS, "x"]])
def test_a_picture_of_another_size_has_no_tiles(tmp_path, concepts):
    drawn(tmp_path / "a.png")
    assert tiles(tmp_path / "a.png", concepts) is None


def test_what_is_no_picture_has_no_tiles(tmp_path):
    assert tiles(tmp_path / "none.png", DIGITS) is None
    (tmp_path / "text.png").write_text("text")
    assert tiles(tmp_path / "text.png", DIGITS) is None
    drawn(tmp_path / "a.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    assert tiles(tmp_path / "half.png", DIGITS) is None


def test_rows_follow_the_task_and_a_users_own_concepts_come_first():
    groups = ["forget", "retain", "retain", "neighbours"]
    images = pd.DataFrame({"group": groups, "concept": ["mine", "8", "0", "5"]})
    assert grid_concepts(made_record(), images) == ["mine", "0", "8"]
    assert grid_concepts(made_record(task="nowhere"), images) == ["mine", "8", "0"], (
        "as planned where the task is unknown"
    )


def test_a_heading_is_no_wider_than_its_images():
    from PIL import ImageFont

    assert fitted("A: esd") == "A: esd"
    short = fitted("esd+" + "w" * 80)
    assert short.startswith("esd+w") and short.endswith("...")
    assert ImageFont.load_default(15).getlength(short) <= SIDE
