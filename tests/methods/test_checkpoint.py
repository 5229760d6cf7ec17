"""The method `checkpoint`: weights named by hash, for the models of every task."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.compvis import written
from tests.support.tiny_model import Linear
from tests.support.unlearned_sd import attention, expected, same, text, unet
from unlearnbench.errors import UserError
from unlearnbench.fingerprint import definitions
from unlearnbench.hashing import file_hash
from unlearnbench.methods.checkpoint import Checkpoint
from unlearnbench.models.external.apply import checkpoint_hash
from unlearnbench.pipeline.cell import Cell, require
from unlearnbench.verification.conformance import TinyDigits, conformance

TASK: Any = SimpleNamespace(protocol=None)
"""All that the method asks a task for is which weights its protocol compares."""


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
    assert method.settings() == {"path": "esd.pt", "alpha": None, "sha256": file_hash(path)}
    assert Checkpoint.configured(method.settings()) == method
    assert method.unlearn(sd, TASK) is sd
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
        Checkpoint().unlearn(sd, TASK)
    with pytest.raises(UserError, match=r"no checkpoint at .*/gone\.pt"):
        Checkpoint(path=str(tmp_path / "gone.pt"))


def test_conformance_runs_where_settings_are_given():
    require(Cell(Checkpoint(), TinyDigits()))
    said = {name: message for name, _, message in conformance(Checkpoint)}
    assert all(message is None or message.startswith("not tried here") for message in said.values())
    assert said["access"] is None
    assert "runs only with settings that a user gives" in said["returns_a_model"]


def test_a_model_of_any_class_takes_its_own_state(tmp_path):
    model, other = Linear(0), Linear(1)
    torch.save(other.state_dict(), tmp_path / "linear.pt")
    Checkpoint(path=str(tmp_path / "linear.pt")).unlearn(model, TASK)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match="alpha=2 is for LoRA"):
        Checkpoint(path=str(tmp_path / "linear.pt"), alpha=2.0).unlearn(model, TASK)


def test_alpha_is_a_number_above_zero():
    with pytest.raises(UserError, match="alpha=-1"):
        Checkpoint.configured({"alpha": "-1"})


def test_the_code_that_reads_files_is_the_methods_own():
    modules = {one.module.rpartition(".")[2] for one in definitions([Checkpoint])}
    assert {"checkpoint", "apply", "compvis", "lora", "state_files"} <= modules
