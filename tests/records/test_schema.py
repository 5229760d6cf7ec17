"""Records: valid, sealed, written whole, and never outside their folder."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.support.small_world import ROOT, debris, made_record
from unlearnbench.errors import Damaged, UserError
from unlearnbench.records.folder import load_all
from unlearnbench.records.schema import VERSION, label, read_record, upgraded, write_record
from unlearnbench.records.sealed_json import sealed
from unlearnbench.storage.files import replace_file

OLD = ROOT / "tests/support/files/record-v1.json"
HOSTILE = ["../../x", "/etc/passwd", "..", ".", "a/b", "a\\b", "a\nb", "a\0b", "~", "$HOME", "ü" * 200, "x" * 500, ""]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_label_never_leaves_its_folder(tmp_path, value):
    changed = {"name": "esd", "overrides": {"part": value}}
    record = made_record(method_changes=changed)
    path = record.path(tmp_path)
    assert path.resolve().parents[3] == tmp_path.resolve() / "digits-class"
    assert path.resolve().relative_to(tmp_path.resolve()).parts[:3] == ("digits-class", "default", "3")
    assert len(record.label()) <= 80
    write_record(record, path)
    assert load_all(tmp_path)[0].method.overrides == {"part": value}


@pytest.mark.parametrize("preset", HOSTILE)
def test_neither_does_a_preset(preset):
    with pytest.raises(ValidationError, match="cannot be a name"):
        made_record(method_changes={"preset": preset})


def test_labels_are_readable_and_tell_settings_apart():
    assert label("esd", "default", {}) == "esd"
    assert label("esd", "published", {}) == "esd@published"
    assert label("esd", "default", {"lr": 0.001, "eta": 2}) == "esd+eta=2+lr=0.001"
    assert label("esd", "default", {"lr": 1e-5}) != label("esd", "default", {"lr": 1e-6})
    one, two = ({"part": "x" * 100 + end} for end in "ab")
    assert label("esd", "default", one) != label("esd", "default", two)


def test_labels_of_different_values_differ_after_cleaning():
    assert label("esd", "default", {"part": "a/b"}) != label("esd", "default", {"part": "a-b"})


def test_round_trip(tmp_path):
    record = made_record(scores={"ua": 0.5, "fid": None})
    path = record.path(tmp_path)
    written = write_record(record, path)
    assert read_record(path) == written
    assert written.content_hash == written.seal() != ""
    assert path == tmp_path / "digits-class/default/3/esd/seed-0.json"
    raw = json.loads(path.read_text())
    assert raw["scores"]["fid"]["value"] is None
    assert raw["schema_version"] == VERSION == 6
    assert load_all(tmp_path) == [written]


def test_seal_covers_everything_but_itself():
    record = made_record(scores={"ua": 0.5})
    assert record.seal() == record.model_copy(update={"content_hash": "anything"}).seal()
    for change in ({"revision": 2}, {"created": "later"}, {"forget": "4"}, {"environment": {"threads": 2}}):
        assert record.model_copy(update=change).seal() != record.seal()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValidationError):
        made_record(scores={"ua": value})


def test_unknown_fields_and_wrong_kinds_are_refused():
    with pytest.raises(ValidationError, match="extra"):
        made_record(more=1)
    with pytest.raises(ValidationError):
        made_record(status="fine")
    with pytest.raises(ValidationError):
        made_record(method_changes={"division": "best"})
    with pytest.raises(ValidationError):
        made_record(schema_version=VERSION + 1)
    with pytest.raises(ValidationError, match="no unlearning is given"):
        made_record(seeds={"pretraining": 0, "sampling": 0})
    with pytest.raises(ValidationError, match="no original is given"):
        made_record(weights={"unlearned": None})
    with pytest.raises(ValidationError):
        made_record().status = "skipped"


def edit(**changes):
    def apply(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


def edit_score(path):
    raw = json.loads(path.read_text())
    raw["scores"]["ua"]["value"] = 0.99
    path.write_text(json.dumps(raw))


DAMAGE = [
    edit_score,
    edit(status="skipped"),
    edit(extra=1),
    edit(forget=None),
    edit(content_hash=""),
    lambda path: path.write_text(path.read_text()[:-50]),
    lambda path: path.write_text(""),
    lambda path: path.write_text("null"),
    lambda path: path.write_text("[" * 100_000),
    lambda path: path.write_bytes(b"\xff\x00"),
    lambda path: path.write_text(path.read_text().replace("0.5", "NaN")),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_a_remedy_in_one_line(tmp_path, damage):
    record = made_record(scores={"ua": 0.5})
    path = record.path(tmp_path)
    write_record(record, path)
    damage(path)
    for use in (read_record, lambda path: load_all(tmp_path)):
        with pytest.raises(Damaged) as caught:
            use(path)
        assert str(path) in str(caught.value)
        assert "delete it and run its command again" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_record_of_the_first_schema_still_loads_under_its_own_seal(tmp_path):
    values = json.loads(OLD.read_text())
    assert values["schema_version"] == 1
    record = read_record(OLD)
    assert record.schema_version == VERSION
    assert record.content_hash == sealed(values) == values["content_hash"]
    assert (record.images, record.step, record.method.selection) == (None, None, None)
    assert all(score.floor is None for score in record.scores.values())
    assert record.scores["ra"].value == values["scores"]["ra"]["value"] == 0.82
    written = write_record(record, tmp_path / "new.json")
    assert read_record(tmp_path / "new.json") == written
    assert upgraded(json.loads((tmp_path / "new.json").read_text())) == json.loads((tmp_path / "new.json").read_text())


@pytest.mark.parametrize(
    "change", [{"forget": "4"}, {"images": "a" * 64}, {"schema_version": 3}, {"seeds": {}}, {"content_hash": "0" * 64}]
)
def test_an_edited_record_of_the_first_schema_is_refused(tmp_path, change):
    path = tmp_path / "old.json"
    path.write_bytes(OLD.read_bytes())
    edit(**change)(path)
    with pytest.raises(Damaged, match=r"old\.json"):
        read_record(path)


def test_a_newer_schema_asks_for_a_newer_version(tmp_path):
    path = tmp_path / "new.json"
    path.write_bytes(OLD.read_bytes())
    edit(schema_version=VERSION + 1)(path)
    with pytest.raises(UserError, match=f"has schema {VERSION + 1}, .* knows up to {VERSION}: install a newer one"):
        read_record(path)


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch, at):
    path = tmp_path / "a/b.json"
    replace_file(path, b"old")

    def fail(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if at == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert debris(tmp_path) == []
    monkeypatch.undo()
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_interrupt_in_a_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "b.json", b"new")
    assert list(tmp_path.iterdir()) == []


def test_other_files_among_records_are_passed_over(tmp_path):
    record = write_record(made_record(), made_record().path(tmp_path))
    folder = record.path(tmp_path).parent
    for name in ("seed-0.parquet", "seed-0.png", "notes.json", ".new-abc"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "README.md").write_text("x")
    assert load_all(tmp_path) == [record]
    assert load_all(tmp_path / "nowhere") == []
