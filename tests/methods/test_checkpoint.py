"""The method `checkpoint`: weights named by hash, skipped where there is no Stable Diffusion."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.support.compvis import written
from tests.support.unlearned_sd import attention, expected, same, text, unet
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.fingerprint import definitions
from unlearnbench.hashing import file_hash
from unlearnbench.methods.checkpoint import Checkpoint
from unlearnbench.models.external.apply import checkpoint_hash
from unlearnbench.pipeline.cell import Cell, require
from unlearnbench.verification.conformance import TinyDigits, conformance


@pytest.fixture
def pipeline(sd_folder, sd_after, tmp_path):
    place = shutil.copytree(sd_folder, tmp_path / "pipeline")
    sd_after.unet.save_pretrained(place / "unet")
    sd_after.text_encoders[0].save_pretrained(place / "text_encoder")
    return place


def test_the_method_applies_the_file_and_names_it_by_hash(sd, sd_before, sd_after, tmp_path, monkeypatch):
    path = written(unet(sd_after), tmp_path / "esd.pt")
    monkeypatch.chdir(tmp_path)
    method = Checkpoint.configured({"path": "esd.pt"})
    assert method.settings() == {"path": "esd.pt", "sha256": file_hash(path)}
    assert Checkpoint.configured(method.settings()) == method
    assert method.unlearn(sd, None) is sd
    same(sd, expected(sd_before, sd_after, {"unet"}))
    written(attention(sd_after), path)
    assert Checkpoint(path="esd.pt").sha256 == file_hash(path) != method.sha256
    with pytest.raises(UserError, match=f"not {method.sha256}"):
        Checkpoint.configured(method.settings())


def test_a_folders_hash_is_its_weights(pipeline, sd_after):
    before = checkpoint_hash(pipeline)
    assert before == checkpoint_hash(pipeline) != checkpoint_hash(pipeline / "unet")
    (pipeline / "unet/config.json").write_text("{}")
    assert checkpoint_hash(pipeline) == before
    changed = {**text(sd_after), "text_model.final_layer_norm.bias": torch.ones(16)}
    written(changed, pipeline / "text_encoder/model.safetensors")
    assert checkpoint_hash(pipeline) != before


def test_no_path_and_one_that_does_not_exist(sd, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint is given: .*--set path=FILE"):
        Checkpoint().unlearn(sd, None)
    with pytest.raises(UserError, match=r"no checkpoint at .*/gone\.pt"):
        Checkpoint(path=str(tmp_path / "gone.pt"))


def test_where_there_is_no_stable_diffusion_the_cell_is_skipped():
    with pytest.raises(Unsupported, match="needs text_encoder"):
        require(Cell(Checkpoint(), TinyDigits()))
    said = {name: message for name, _, message in conformance(Checkpoint)}
    assert all(message is None or message.startswith("not tried here") for message in said.values())
    assert said["access"] is None
    assert "runs only with settings that a user gives" in said["returns_a_model"]


def test_the_code_that_reads_files_is_the_methods_own():
    modules = {one.module.rpartition(".")[2] for one in definitions([Checkpoint])}
    assert {"checkpoint", "apply", "compvis", "lora", "state_files"} <= modules
