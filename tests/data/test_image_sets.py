"""Image sets in the hub's parquet layout: decoded once, mapped, and every kind of damage named by file and row."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unlearnbench.data import image_sets
from unlearnbench.errors import Damaged, UserError

RNG = np.random.RandomState(0)
PICTURES = RNG.randint(0, 256, (10, 8, 8, 3), dtype=np.uint8)
LABELS = [i % 3 for i in range(10)]


def png(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder, rows, name, column="img"):
    """As the hub has it: a struct of bytes and path, and the label."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": png(PICTURES[i]), "path": f"{i}.png"} for i in rows]
    table = pa.table({column: pictures, "label": pa.array([LABELS[i] for i in rows], pa.int64())})
    pq.write_table(table, folder / name)
    return folder / name


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "set/plain_text", range(6), "train-00000-of-00002.parquet")
    write(tmp_path / "set/plain_text", range(6, 10), "train-00001-of-00002.parquet")
    write(tmp_path / "set/plain_text", range(3), "test-00000-of-00001.parquet", column="image")
    return tmp_path / "set"


def test_all_parts_come_in_order_and_are_mapped(folder, tmp_path):
    train = image_sets.read_image_set(folder, "train", tmp_path / "cache", 8)
    assert isinstance(train.x, np.memmap) and not train.x.flags.writeable
    np.testing.assert_array_equal(train.x, PICTURES.transpose(0, 3, 1, 2))
    assert train.y.tolist() == LABELS
    test = image_sets.read_image_set(folder, "test", tmp_path / "cache", 8)
    np.testing.assert_array_equal(test.x, PICTURES[:3].transpose(0, 3, 1, 2))


def test_they_are_decoded_once_and_anew_when_a_file_is_another(folder, tmp_path, monkeypatch):
    image_sets.read_image_set(folder, "train", tmp_path / "cache", 8)
    calls, decode = [], image_sets._decode
    monkeypatch.setattr(image_sets, "_decode", lambda *given: calls.append(1) or decode(*given))
    image_sets.read_image_set(folder, "train", tmp_path / "cache", 8)
    assert calls == []
    write(folder / "plain_text", range(5), "train-00001-of-00002.parquet")
    again = image_sets.read_image_set(folder, "train", tmp_path / "cache", 8)
    assert calls == [1]
    assert len(again.y) == 11


def test_a_stop_in_the_middle_leaves_nothing_half_done(folder, tmp_path, monkeypatch):
    def stopped(files, size):
        yield PICTURES[0].transpose(2, 0, 1), 0
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(image_sets, "_pictures", stopped)
        image_sets.read_image_set(folder, "train", tmp_path / "cache", 8)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(image_sets.read_image_set(folder, "train", tmp_path / "cache", 8).y) == 10


@pytest.mark.parametrize("case", ["none", "part", "columns", "size", "bytes", "truncated", "picture"])
def test_what_is_missing_or_damaged_is_named(folder, tmp_path, case):
    first = folder / "plain_text/train-00000-of-00002.parquet"
    kind, size = UserError, 8
    if case == "none":
        folder, says = tmp_path / "empty", r"no train-\*.parquet below .*empty: .*--data"
        folder.mkdir()
    elif case == "part":
        first.unlink()
        says = r"train-00000-of-00002.parquet is missing .* \(1 of 2 parts are there\): fetch it again"
    elif case == "columns":
        pq.write_table(pa.table({"a": [1], "label": [2]}), first)
        says = r"train-00000.* has columns a, label: img \(or image\) and label are needed"
    elif case == "size":
        size, says = 16, r"train-00000.*, row 0: an image of 8x8 pixels, not 16x16"
    elif case == "bytes":
        kind, says = Damaged, r"train-00000.* is no readable parquet file .*: fetch it again"
        first.write_bytes(b"nothing of the kind")
    elif case == "truncated":
        kind, says = Damaged, r"train-00000.* is no readable parquet file .*: fetch it again"
        first.write_bytes(first.read_bytes()[:-20])
    else:
        kind, says = Damaged, r"train-00000.*, row 1, cannot be read .*: fetch it again"
        table = pa.table({"img": [{"bytes": png(PICTURES[0])}, {"bytes": b"no picture"}], "label": [0, 1]})
        pq.write_table(table, first)
    with pytest.raises(kind, match=says):
        image_sets.read_image_set(folder, "train", tmp_path / "cache", size)
