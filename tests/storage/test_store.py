"""The store: whole entries or none, checked on every reading."""

from __future__ import annotations

import errno
import json
import pickle

import pytest
import torch

from tests.support.small_world import debris
from unlearnbench.errors import Damaged, UserError
from unlearnbench.storage import files
from unlearnbench.storage import store as module
from unlearnbench.storage.store import DATA, META, Store, default_root

PARTS = {"method": "esd", "lr": 0.1, "seed": 0}


def made():
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2], dtype=torch.uint8)}, {"error": None, "n": 3}


class Counted:
    """A stage that counts how often it is made."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return made()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def same(one, other):
    return one[1] == other[1] and all(torch.equal(one[0][name], other[0][name]) for name in one[0] | other[0])


def test_root_is_the_environment_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "there"))
    assert default_root() == Store().root == tmp_path / "there"
    monkeypatch.delenv("UNLEARNBENCH_CACHE")
    assert default_root().name == "unlearnbench"


def test_made_once_and_read_equal(store):
    make = Counted()
    assert not store.has("weights", PARTS)
    first = store.stage("weights", PARTS, make)
    assert store.has("weights", PARTS)
    second = store.stage("weights", PARTS, make)
    assert make.times == 1
    assert same(first, second)
    assert second[0]["b"].dtype == torch.uint8


def test_key_is_the_parts_whatever_their_order_and_the_kind(store):
    make = Counted()
    store.stage("weights", PARTS, make)
    store.stage("weights", dict(reversed(PARTS.items())), make)
    assert make.times == 1
    for kind, parts in (("samples", PARTS), ("weights", {**PARTS, "seed": 1}), ("weights", {**PARTS, "more": None})):
        assert not store.has(kind, parts)
    assert store.folder("weights", PARTS).parent == store.root / "weights"


def test_force_makes_anew_and_replaces(store):
    store.stage("weights", PARTS, made)
    store.stage("weights", PARTS, lambda: ({"a": torch.zeros(1)}, {}), force=True)
    assert torch.equal(store.stage("weights", PARTS, made)[0]["a"], torch.zeros(1))
    assert debris(store.root) == []


def test_what_keep_denies_is_given_but_not_kept(store):
    make = Counted()
    given = store.stage("judged", PARTS, make, keep=lambda made: made[1]["error"] is not None)
    assert same(given, made())
    assert not store.has("judged", PARTS)
    assert not store.root.exists()


def test_what_fails_is_not_kept(store):
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        store.stage("weights", PARTS, fail)
    assert not store.root.exists()


@pytest.mark.parametrize("at", ["save_state", "flush"])
def test_a_full_disk_leaves_nothing_and_says_so(store, monkeypatch, at):
    def full(*words):
        if at == "save_state":
            words[1].write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, at, full)
    with pytest.raises(UserError, match=r"the disk is full.*UNLEARNBENCH_CACHE") as caught:
        store.stage("weights", PARTS, made)
    assert str(store.root) in str(caught.value)
    assert list((store.root / "weights").iterdir()) == []
    monkeypatch.undo()
    assert same(store.stage("weights", PARTS, made), made())


def test_a_failed_replacement_keeps_the_old_entry(store, monkeypatch):
    store.stage("weights", PARTS, made)

    def full(*words):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "flush", full)
    monkeypatch.setattr(module, "flush", full)
    with pytest.raises(UserError):
        store.stage("weights", PARTS, lambda: ({"a": torch.zeros(1)}, {}), force=True)
    monkeypatch.undo()
    assert same(store.stage("weights", PARTS, made), made())


def test_another_process_may_be_first(store):
    def slow():
        store.stage("weights", PARTS, made)
        return made()

    assert same(store.stage("weights", PARTS, slow), made())
    assert same(store.stage("weights", PARTS, Counted()), made())
    assert len(list((store.root / "weights").iterdir())) == 1


def test_an_entry_is_flushed_before_it_is_named(store, monkeypatch):
    order = []
    real_flush, real_rename = files.flush, module.Path.rename
    monkeypatch.setattr(files, "flush", lambda path: order.append(path.name) or real_flush(path))
    monkeypatch.setattr(module, "flush", lambda path: order.append(path.name) or real_flush(path))
    monkeypatch.setattr(module.Path, "rename", lambda self, new: order.append("rename") or real_rename(self, new))
    store.stage("weights", PARTS, made)
    assert order == [DATA, META, "rename"]


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def shorten(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def to_pickle(path):
    path.write_bytes(pickle.dumps({"a": 1}))


def other_facts(path):
    entry = json.loads(path.read_text())
    path.write_text(json.dumps({**entry, "facts": {"error": None, "n": 4}}))


def no_seal(path):
    entry = json.loads(path.read_text())
    del entry["seal"]
    path.write_text(json.dumps(entry))


DAMAGE = [
    (DATA, flip),
    (DATA, shorten),
    (DATA, to_pickle),
    (DATA, lambda path: path.write_bytes(b"")),
    (DATA, lambda path: path.unlink()),
    (META, shorten),
    (META, other_facts),
    (META, no_seal),
    (META, lambda path: path.write_bytes(b"")),
    (META, lambda path: path.write_bytes(b"\xff\xfe")),
    (META, lambda path: path.write_text("[]")),
    (META, lambda path: path.write_text("null")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_damage_is_named_set_aside_and_mended_by_the_next_call(store, name, damage):
    store.stage("weights", PARTS, made)
    folder = store.folder("weights", PARTS)
    damage(folder / name)
    with pytest.raises(Damaged) as caught:
        store.stage("weights", PARTS, Counted())
    assert str(folder) in str(caught.value)
    assert "run the same command again" in str(caught.value)
    assert not folder.exists()
    assert folder.with_name(folder.name + ".damaged").is_dir()
    make = Counted()
    assert same(store.stage("weights", PARTS, make), made())
    assert make.times == 1


def test_damage_twice_is_set_aside_twice(store):
    for _ in range(2):
        store.stage("weights", PARTS, made)
        flip(store.folder("weights", PARTS) / DATA)
        with pytest.raises(Damaged):
            store.stage("weights", PARTS, made)
    assert not store.has("weights", PARTS)


def test_a_missing_meta_is_an_entry_that_is_not_there(store):
    store.stage("weights", PARTS, made)
    (store.folder("weights", PARTS) / META).unlink()
    make = Counted()
    assert same(store.stage("weights", PARTS, make), made())
    assert make.times == 1


def test_files_can_be_read_by_others(store):
    store.stage("weights", PARTS, made)
    folder = store.folder("weights", PARTS)
    assert {oct((folder / name).stat().st_mode & 0o444) for name in (DATA, META)} == {"0o444"}


def test_a_reader_reads_the_entry_each_time_or_keeps_what_was_not_kept(tmp_path):
    store, calls = Store(tmp_path), []

    def make():
        calls.append(1)
        return {"x": torch.arange(3.0)}, {}

    kept = store.stage("kind", {"a": 1}, make)
    read = store.reader("kind", {"a": 1}, "x", kept)
    kept[0]["x"] += 1  # the reader holds none of it
    assert torch.equal(read(), torch.arange(3.0)) and read() is not read()
    lost = store.stage("kind", {"a": 2}, make, keep=lambda made: False)
    assert torch.equal(store.reader("kind", {"a": 2}, "x", lost)(), torch.arange(3.0))
    assert len(calls) == 2
