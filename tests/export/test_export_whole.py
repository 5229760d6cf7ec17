"""`export` writes its folder whole or not at all: what a stop, a full disk and the current folder come to."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.support import tiny_sd
from tests.support.small_world import debris
from unlearnbench import registry
from unlearnbench.export import diffusers_folder as module
from unlearnbench.models.loading import load_stable_diffusion
from unlearnbench.pipeline import cell as cell_module
from unlearnbench.pipeline import runner
from unlearnbench.storage.store import Store
from unlearnbench.tasks.digits_text import DigitsText


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny world, and the path of a record of UCE on it."""
    folder = tmp_path_factory.mktemp("sd1")
    world = tiny_sd.world(folder / "model", "sd1")
    cell = cell_module.Cell(registry.load_method("uce")(), DigitsText("seven", protocol="smoke", weights=world))
    record = runner.run_cell(cell, Store(), folder / "results")
    return world, record.path(folder / "results")


def test_the_current_folder_is_not_replaced(cli, made, monkeypatch):
    world, record = made
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    said = cli("export", record, ".", "--pretrained", world, "--device", "cpu")
    assert said.code == 2
    assert ". is the current folder: name a DIR in it, such as model" in said.err


@pytest.mark.parametrize("there", [False, True], ids=["new folder", "empty folder"])
def test_until_it_is_whole_there_is_no_folder(cli, made, monkeypatch, there):
    """What a kill leaves is what lies on the disk at that moment: looked at after every file."""
    world, record = made
    words = ("export", record, "deep/x", "--pretrained", world, "--device", "cpu")
    if there:
        Path("deep/x").mkdir(parents=True)
    seen = []

    def flush(file):
        seen.append(file.name)
        assert list(Path("deep").glob("x/*")) == []
        if file.name == "README.md":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "flush", flush)
        assert cli(*words).code == 130
    assert "README.md" in seen
    assert [*Path("deep").rglob("*")] == ([Path("deep/x")] if there else [])
    assert cli(*words).code == 0
    assert load_stable_diffusion("deep/x")
    assert debris(Path("deep")) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(cli, made):
    world, record = made
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        said = cli("export", record, "x", "--pretrained", world, "--device", "cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said.code == 2
    (line,) = said.errors
    assert "cannot write to x (file too large): free it, or name another folder with `export RECORD DIR`" in line
    assert not Path("x").exists()
    assert debris(Path()) == []
