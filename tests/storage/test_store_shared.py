"""One store for several processes, on disks that are full, read-only or damaged."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from tests.support.small_world import comparable, debris, read_only, write_nudge
from unlearnbench.errors import Damaged, UserError
from unlearnbench.pipeline import runner, writing
from unlearnbench.records import sample_grid, schema
from unlearnbench.storage import files
from unlearnbench.storage import store as module
from unlearnbench.storage.store import DATA, META, Store
from unlearnbench.training import Diverged

PARTS = {"method": "esd"}
RUN = ("run", "--results", "here", "--method", "nudge.py")


def entry(value=1.0, fact=0):
    return {"a": torch.full((3,), value)}, {"fact": fact}


def value(made):
    return made[0]["a"][0].item(), made[1]["fact"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def never():
    raise AssertionError("made although it is there")


def once(monkeypatch, owner, name, action):
    """Do something just before the first call of owner.name: another process's turn."""
    real = getattr(owner, name)
    turns = [action]

    def call(*words, **named):
        if turns:
            turns.pop()()
        return real(*words, **named)

    monkeypatch.setattr(owner, name, call)


def test_who_comes_second_goes_on_from_the_first_ones_entry(store, monkeypatch):
    once(monkeypatch, module, "_place", lambda: store.stage("weights", PARTS, lambda: entry(fact=1)))
    assert value(store.stage("weights", PARTS, lambda: entry(fact=2))) == (1.0, 1)
    assert value(store.stage("weights", PARTS, never)) == (1.0, 1)
    assert debris(store.root) == []


def test_two_forced_runs_replace_one_entry(store, monkeypatch):
    store.stage("weights", PARTS, entry)

    def other():
        store.stage("weights", PARTS, lambda: entry(fact=1), force=True)

    once(monkeypatch, Path, "rename", other)  # just before the old entry is moved away
    assert value(store.stage("weights", PARTS, lambda: entry(fact=2), force=True)) == (1.0, 2)
    assert value(store.stage("weights", PARTS, never)) == (1.0, 2)
    assert debris(store.root) == []


def test_a_forced_run_that_finds_the_old_entry_moved_away(store, monkeypatch):
    store.stage("weights", PARTS, entry)
    once(monkeypatch, Path, "rename", lambda: shutil.rmtree(store.folder("weights", PARTS)))
    assert value(store.stage("weights", PARTS, lambda: entry(fact=2), force=True)) == (1.0, 2)
    assert value(store.stage("weights", PARTS, never)) == (1.0, 2)


@pytest.mark.parametrize("at", ["file_hash", "load_state"])
def test_an_entry_replaced_while_it_is_read_is_no_damage(store, monkeypatch, at):
    store.stage("weights", PARTS, entry)

    def other():
        monkeypatch.undo()
        store.stage("weights", PARTS, lambda: entry(2.0, 2), force=True)

    once(monkeypatch, module, at, other)
    assert value(store.stage("weights", PARTS, never)) == (2.0, 2)


@pytest.mark.parametrize("at", ["file_hash", "load_state"])
def test_an_entry_that_vanishes_while_it_is_read_is_made(store, monkeypatch, at):
    store.stage("weights", PARTS, entry)
    once(monkeypatch, module, at, lambda: shutil.rmtree(store.folder("weights", PARTS)))
    assert value(store.stage("weights", PARTS, lambda: entry(2.0, 2))) == (2.0, 2)


def test_damage_that_another_process_has_set_aside_is_told(store, monkeypatch):
    store.stage("weights", PARTS, entry)
    folder = store.folder("weights", PARTS)
    (folder / DATA).write_bytes(b"")
    once(monkeypatch, Path, "rename", lambda: folder.replace(folder.with_name(folder.name + ".damaged")))
    with pytest.raises(Damaged, match="run the same command again"):
        store.stage("weights", PARTS, never)
    assert value(store.stage("weights", PARTS, entry)) == (1.0, 0)


def fails(number):
    def fail(*words, **named):
        raise OSError(number, os.strerror(number))

    return fail


def test_damage_in_a_store_that_cannot_be_written(store, monkeypatch):
    store.stage("weights", PARTS, entry)
    folder = store.folder("weights", PARTS)
    (folder / DATA).write_bytes(b"")
    monkeypatch.setattr(Path, "rename", fails(errno.EROFS))
    with pytest.raises(Damaged, match=r"read-only file system.*UNLEARNBENCH_CACHE") as caught:
        store.stage("weights", PARTS, never)
    assert str(folder) in str(caught.value)


def test_an_entry_that_cannot_be_read_is_not_called_damaged(store, monkeypatch):
    store.stage("weights", PARTS, entry)
    monkeypatch.setattr(module, "file_hash", fails(errno.EACCES))
    with pytest.raises(UserError, match=r"permission denied.*make it readable"):
        store.stage("weights", PARTS, never)
    monkeypatch.undo()
    assert value(store.stage("weights", PARTS, never)) == (1.0, 0)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    return {"folder": tmp_path_factory.mktemp("filled")}


@pytest.fixture
def done(cli, small, tmp_path, fresh_store, filled):
    """A finished run in this folder, with a store that holds what it needs and nothing else; its record."""
    folder = filled["folder"]
    write_nudge(tmp_path)
    if not (folder / "here").exists():
        assert cli(*RUN).code == 0
        shutil.copytree(tmp_path / "here", folder / "here")
        shutil.copytree(fresh_store, folder / "store")
    else:
        shutil.copytree(folder / "here", tmp_path / "here")
        shutil.copytree(folder / "store", fresh_store)
    return read_only(tmp_path / "here")


@pytest.fixture
def refused(cli, tmp_path):
    """The one line that the run is refused with."""

    def call(*more):
        said = cli(*RUN, *more)
        assert (said.code, len(said.errors)) == (2, 1), said
        assert debris(tmp_path) == []
        return said.errors[0]

    return call


def read_only_disk(monkeypatch, root):
    """Nothing below a folder can be written; a superuser's rights do not matter."""
    for owner, name in ((tempfile, "mkdtemp"), (tempfile, "TemporaryFile"), (Path, "rename")):
        real = getattr(owner, name)

        def call(*words, real=real, **named):
            if str(root) in str((words, named)):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return real(*words, **named)

        monkeypatch.setattr(owner, name, call)


def test_a_read_only_store_serves_what_it_holds(cli, refused, done, tmp_path, fresh_store, monkeypatch):
    read_only_disk(monkeypatch, fresh_store)
    assert cli(*RUN).code == 0
    shutil.rmtree(tmp_path / "here")
    assert cli(*RUN).code == 0
    assert comparable(read_only(tmp_path / "here")) == comparable(done)
    for words in (["--force"], ["--seeds", "1"]):
        line = refused(*words)
        assert f"cannot write to {fresh_store} (read-only file system)" in line
        assert "UNLEARNBENCH_CACHE" in line
    shutil.rmtree(fresh_store / "samples")
    (fresh_store / "samples").mkdir()
    shutil.rmtree(tmp_path / "here")
    assert f"cannot write to {fresh_store} (read-only file system)" in refused()


STORE, RESULTS = "UNLEARNBENCH_CACHE", "--results"
FULL = [
    (module, "save_state", 1, STORE),
    (module, "flush", 4, STORE),
    (Path, "rename", 5, STORE),
    (os, "fdopen", 1, RESULTS),
    (schema, "replace_file", 1, RESULTS),
    (writing, "replace_file", 1, RESULTS),
    (sample_grid, "replace_file", 1, RESULTS),
]


@pytest.mark.parametrize(("owner", "name", "which", "remedy"), FULL)
def test_a_disk_that_is_full_from_some_write_on(
    cli, refused, done, tmp_path, fresh_store, monkeypatch, owner, name, which, remedy
):
    shutil.rmtree(tmp_path / "here")
    if remedy == STORE:
        shutil.rmtree(fresh_store)
    real, calls = getattr(owner, name), []

    def full(*words, **named):
        calls.append(words)
        return (real if len(calls) < which else fails(errno.ENOSPC))(*words, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        line = refused()
    assert "the disk is full" in line
    assert remedy in line
    assert {path.name for path in fresh_store.rglob("*") if path.is_file()} <= {DATA, META}
    assert cli(*RUN).code == 0
    assert comparable(read_only(tmp_path / "here")) == comparable(done)


def test_a_full_disk_when_a_run_has_diverged(cli, refused, done, tmp_path, monkeypatch):
    def diverges(*words):
        raise Diverged(3, "the loss")

    monkeypatch.setattr(runner, "unlearn", diverges)
    with monkeypatch.context() as patch:
        patch.setattr(files, "replace_file", fails(errno.ENOSPC))
        patch.setattr(schema, "replace_file", fails(errno.ENOSPC))
        line = refused("--force")
    assert "the disk is full" in line
    assert RESULTS in line
    assert read_only(tmp_path / "here") == done
    assert done.path(tmp_path / "here").with_suffix(".parquet").is_file(), "the earlier record is left whole"
    assert cli(*RUN, "--force").code == 1
    assert read_only(tmp_path / "here").status == "diverged"
    assert not done.path(tmp_path / "here").with_suffix(".parquet").exists()


def positions(size, generator):
    return {"first": 0, "last": size - 1, "some": generator.randrange(size)}


@pytest.mark.parametrize("name", [DATA, META])
@pytest.mark.parametrize("where", ["first", "last", "some"])
def test_one_flipped_byte_is_noticed(store, name, where):
    store.stage("weights", PARTS, entry)
    path, generator = store.folder("weights", PARTS) / name, random.Random(f"{name} {where}")
    raw = bytearray(path.read_bytes())
    raw[positions(len(raw), generator)[where]] ^= generator.randrange(1, 256)
    path.write_bytes(raw)
    with pytest.raises(Damaged, match="run the same command again"):
        store.stage("weights", PARTS, never)
    assert value(store.stage("weights", PARTS, entry)) == (1.0, 0)


def test_one_flipped_byte_in_every_entry(cli, done, tmp_path, fresh_store):
    """In one of its two files and in the other, in turn."""
    generator = random.Random(0)
    entries = {path.parent for path in fresh_store.rglob(DATA)}
    assert {path.parent.name for path in entries} == {"weights", "timed", "samples", "judged"}
    for number, folder in enumerate(sorted(entries)):
        name = (DATA, META)[number % 2]
        raw = bytearray((folder / name).read_bytes())
        raw[generator.randrange(len(raw))] ^= generator.randrange(1, 256)
        (folder / name).write_bytes(raw)
    shutil.rmtree(tmp_path / "here")
    named = set()
    while (said := cli(*RUN)).code:
        assert (said.code, len(said.errors)) == (2, 1), said
        (folder,) = [folder for folder in entries if f"store entry {folder} is damaged" in said.errors[0]]
        assert "run the same command again" in said.errors[0]
        assert folder not in named
        named.add(folder)
    assert named == entries
    assert comparable(read_only(tmp_path / "here")) == comparable(done)


def test_a_changed_blank_in_the_facts_is_noticed(store):
    store.stage("weights", PARTS, entry)
    meta = store.folder("weights", PARTS) / META
    meta.write_bytes(meta.read_bytes().replace(b"\n", b"\r", 1))
    with pytest.raises(Damaged, match=f"{META} was changed"):
        store.stage("weights", PARTS, never)
