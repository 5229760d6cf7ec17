"""`samples` writes the very images that were judged, by concept, from the store or drawn anew."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.small_world import write_nudge
from unlearnbench.export import png_files
from unlearnbench.pipeline import sampling
from unlearnbench.records.folder import load_all
from unlearnbench.tasks.digits_class import DigitsClass

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Where results and store of a run are kept."""
    return tmp_path_factory.mktemp("ran")


@pytest.fixture
def made(cli, tmp_path, fresh_store, ran):
    """Words that name a record of a method of one's own, which is run once."""
    mine, kept = write_nudge(tmp_path), {tmp_path / "here": ran / "here", fresh_store: ran / "store"}
    if not (ran / "here").exists():
        assert cli("run", "--method", mine, "--results", "here").code == 0
        for own, copy in kept.items():
            shutil.copytree(own, copy)
    else:
        for own, copy in kept.items():
            shutil.copytree(copy, own)
    (record,) = (record for record in load_all(tmp_path / "here") if record.method.name == "nudge")
    return ("samples", record.path(tmp_path / "here"), "out", "--method", mine, "--device", "cpu")


def test_the_images_are_those_that_were_judged(cli, made, tmp_path, monkeypatch):
    seen = []
    plain = png_files.sample_images
    monkeypatch.setattr(png_files, "sample_images", lambda *given: seen.append(plain(*given)) or seen[-1])
    monkeypatch.setattr(sampling, "_drawn", lambda *given: pytest.fail("they are in the store"))
    said = cli(*made)
    assert said.code == 0, said.err
    plan = DigitsClass("3").plan()
    assert f"wrote {len(plan)} images to out" in said.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "forget-3", *(f"retain-{digit}" for digit in "012456789"),
    }  # fmt: skip
    files = [path for name in dict.fromkeys(f"{p.group}-{p.concept}" for p in plan)
             for path in sorted((tmp_path / "out" / name).iterdir())]  # fmt: skip
    read = torch.from_numpy(np.stack([np.array(Image.open(path)) for path in files])).permute(0, 3, 1, 2)
    assert torch.equal(read, seen[0][:]) and read.float().std() > 10


def test_without_a_store_they_are_drawn_anew_and_twice_is_no_harm(cli, made, tmp_path, monkeypatch):
    assert cli(*made).code == 0
    first = (tmp_path / "out" / "retain-5" / "00000.png").read_bytes()
    (tmp_path / "out" / "retain-5" / "00000.png").write_bytes(b"half a fi")
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "other"))
    assert cli(*made).code == 0
    assert (tmp_path / "out" / "retain-5" / "00000.png").read_bytes() == first


def test_other_images_in_the_folder_are_refused_and_left(cli, made, tmp_path):
    (tmp_path / "out" / "forget-3").mkdir(parents=True)
    (tmp_path / "out" / "forget-3" / "99999.png").write_bytes(b"mine")
    said = cli(*made)
    assert said.code == 2 and "out holds other images, such as forget-3/99999.png" in said.err
    assert [path.name for path in (tmp_path / "out").rglob("*.png")] == ["99999.png"]


def test_what_cannot_be_is_one_line(cli, made, tmp_path):
    (tmp_path / "out").write_text("a file")
    said = cli(*made)
    assert said.code == 2 and len(said.errors) == 1
    assert "cannot write to out" in said.err
    said = cli("samples", "nothing-here", "out")
    assert said.code == 2 and len(said.errors) == 1
