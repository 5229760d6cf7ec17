"""The method `checkpoint`: weights named by hash, for the models of every task."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support import cifar_checkpoints, tiny_cifar
from tests.support.compvis import written
from tests.support.ddpm_folder import write_folder
from tests.support.ddpm_reference import Reference
from tests.support.fidelity import Fidelity
from tests.support.tiny_model import Linear
from tests.support.unlearned_sd import attention, expected, same, text, unet
from tests.support.web import COMMIT
from unlearnbench.errors import UserError
from unlearnbench.fingerprint import definitions
from unlearnbench.hashing import file_hash
from unlearnbench.methods.checkpoint import Checkpoint
from unlearnbench.models.external.apply import checkpoint_fit, checkpoint_hash
from unlearnbench.pipeline.cell import Cell, require
from unlearnbench.records.folder import load_all
from unlearnbench.tasks.cifar10_class import Cifar10Class
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.verification.conformance import TinyDigits, conformance

FIDELITY = Fidelity(
    "checkpoint",
    "none",
    departs="Weights that others made, hence without presets: what is measured is their file, bit for bit.",
)
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


# ---- every task ------------------------------------------------------------------------------------------------------


def test_hub_addresses_are_pinned_to_their_commit(site, fresh_store, sd, sd_before, sd_after, tmp_path):
    site.files["unet/diffusion_pytorch_model.safetensors"] = written(
        unet(sd_after), tmp_path / "a.safetensors"
    ).read_bytes()
    method = Checkpoint.configured({"path": "hub:org/set"})
    assert method.path == f"hub:org/set@{COMMIT}" and method.given(["path"]) == {"sha256": method.sha256[:12]}
    method.unlearn(sd, TASK)
    same(sd, expected(sd_before, sd_after, {"unet"}))
    assert Checkpoint.configured(method.settings()) == method, "a record's settings give the same weights again"


def test_an_adapters_configuration_is_part_of_its_hash(tmp_path):
    save_file({"base_model.model.x.lora_A.weight": torch.ones(1, 1)}, tmp_path / "adapter_model.safetensors")
    alone = checkpoint_hash(tmp_path / "adapter_model.safetensors")
    assert alone == file_hash(tmp_path / "adapter_model.safetensors")
    hashes = set()
    for alpha in (4, 8):
        (tmp_path / "adapter_config.json").write_text(f'{{"lora_alpha": {alpha}}}')
        hashes |= {checkpoint_hash(tmp_path), checkpoint_hash(tmp_path / "adapter_model.safetensors")}
    assert len(hashes | {alone}) == 3, "one for each alpha, and one without"


WIDTH = 8


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_cifar.write(tmp_path_factory.mktemp("cifar") / "data")


@pytest.fixture
def cifar(monkeypatch):
    """`cifar10-class` on a narrow network, drawn in two steps, with a protocol for either form of weights."""
    smoke = Cifar10Class.protocols["smoke"]
    smoke = dataclasses.replace(smoke, width=WIDTH, sampler=dataclasses.replace(smoke.sampler, steps=2))
    monkeypatch.setitem(Cifar10Class.protocols, "smoke", smoke)
    monkeypatch.setitem(Cifar10Class.protocols, "raw", dataclasses.replace(smoke, name="raw", weights="raw"))


def ddpm_file(path, raw, mean=None):
    """A checkpoint of the papers' code: `[model, optimiser, step]`, with the average as a fourth entry."""
    state = {f"module.{key}": value for key, value in raw.items()}
    torch.save([state, {"state": {}, "param_groups": []}, 1000, *([] if mean is None else [mean])], path)
    return path


@pytest.fixture
def trained():
    """Raw weights and average of an original, and of an unlearned model in which one layer is another."""
    torch.manual_seed(0)
    raw, mean = (Reference(width=WIDTH, groups=2).state_dict() for _ in range(2))
    after = [{**state, "conv_out.bias": state["conv_out.bias"] + shift} for state, shift in ((raw, 1.0), (mean, 2.0))]
    return raw, mean, *after


@pytest.mark.usefixtures("cifar")
def test_an_unlearned_ddpm_is_scored_beside_its_original(cli, images, tmp_path, trained):
    raw, mean, raw_after, mean_after = trained
    ddpm_file(tmp_path / "ckpt.pth", raw, mean)
    ddpm_file(tmp_path / "unlearned.pth", raw_after, mean_after)
    words = ("run", "--task", "cifar10-class", "--data", images, "--protocol", "smoke", "--checkpoint", "ckpt.pth")
    said = cli(*words, "--method", "checkpoint", "--set", "path=unlearned.pth", "--results", "here")
    assert said.code == 0, said.err
    records = {record.method.name: record for record in load_all(tmp_path / "here")}
    assert set(records) == {"original", "checkpoint"}
    assert records["checkpoint"].weights["original"] == records["original"].weights["original"]
    assert records["checkpoint"].scores["trained_parameters"].value == 3, "the three numbers of one bias"


@pytest.mark.usefixtures("cifar")
@pytest.mark.parametrize(("protocol", "shift"), [("smoke", 2.0), ("raw", 1.0)])
def test_original_and_unlearned_weights_are_of_one_form(images, tmp_path, trained, protocol, shift):
    raw, mean, raw_after, mean_after = trained
    original = ddpm_file(tmp_path / "ckpt.pth", raw, mean)
    after = ddpm_file(tmp_path / "unlearned.pth", raw_after, mean_after)
    task = Cifar10Class("airplane", data=images, protocol=protocol, checkpoint=original)
    model: Any = task.pretrained()
    before = model.unet.conv_out.bias.detach().clone()
    Checkpoint(path=str(after)).unlearn(model, task)
    torch.testing.assert_close(model.unet.conv_out.bias.detach(), before + shift)


@pytest.mark.usefixtures("cifar")
@pytest.mark.parametrize("name", cifar_checkpoints.SAVED)
def test_what_each_papers_code_saves_is_a_row_of_its_own(cli, images, tmp_path, name):
    """Drawn with the weights that its own script draws with: raw or averaged, of the original and the unlearned."""
    about = cifar_checkpoints.SAVED[name]
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    cifar_checkpoints.write(tmp_path / "before", "erasediff", *cifar_checkpoints.pair(WIDTH, 2))
    nets = cifar_checkpoints.pair(WIDTH, 2, seed=1)
    path = cifar_checkpoints.write(tmp_path / "after", name, *nets)
    protocol = {"ema": "smoke", "raw": "raw"}[about.sampled]
    task = Cifar10Class("airplane", data=images, protocol=protocol, checkpoint=tmp_path / "before/ckpt_latest.pth")
    model: Any = Checkpoint.configured({"path": str(path)}).unlearn(task.pretrained(), task).eval()
    expected = nets[about.sampled == "ema"].eval()
    x, t, y = torch.randn(2, 3, 32, 32), torch.tensor([5, 900]), torch.tensor([0, 9])
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, y), expected(x, t, y), atol=1e-5, rtol=1e-4)
    if not about.average:
        with pytest.raises(UserError, match=r"ckpt\.pth has no running mean .*--protocol raw"):
            Checkpoint(path=str(path)).unlearn(model, small_task(images, "smoke"))


def small_task(images, protocol):
    return Cifar10Class("airplane", data=images, protocol=protocol)


def _pickled_code(path):
    torch.save([{"conv_in.weight": torch.zeros(1)}, pathlib.PurePosixPath("x"), 3], path)


def _cut_off(path):
    cifar_checkpoints.write(path.parent, "salun", *cifar_checkpoints.pair(WIDTH, 2))
    (path.parent / "ckpt.pth").rename(path)
    path.write_bytes(path.read_bytes()[:2000])


def _of_stl10(path):
    """Of the configuration for STL-10, which has a level more."""
    state = {**Reference(width=WIDTH, groups=2).state_dict(), "down.4.block.0.norm1.weight": torch.ones(16)}
    torch.save([{f"module.{key}": value for key, value in state.items()}, {}, 3], path)


def _not_finite(path):
    state = Reference(width=WIDTH, groups=2).state_dict()
    torch.save([{**state, "conv_out.bias": torch.full((3,), torch.nan)}, {}, 3], path)


BAD = {
    "code": (_pickled_code, "is a pickle that holds more than tensors, and could run code"),
    "cut off": (_cut_off, "get the file again"),
    "another network": (_of_stl10, "was made for another architecture"),
    "not finite": (_not_finite, "conv_out.bias holds values that are not finite"),
    "a list of texts": (lambda path: torch.save(["model", "optimizer"], path), "is no training checkpoint"),
}


@pytest.mark.usefixtures("cifar")
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_of_the_ddpm_is_one_line(cli, images, tmp_path, case):
    write, says = BAD[case]
    write(tmp_path / "bad.pth")
    words = ("run", "--task", "cifar10-class", "--data", images, "--protocol", "raw", "--checkpoint", "ckpt.pth")
    ddpm_file(tmp_path / "ckpt.pth", Reference(width=WIDTH, groups=2).state_dict())
    said = cli(*words, "--method", "checkpoint", "--set", "path=bad.pth", "--results", "here")
    assert said.code == 2 and says in said.errors[-1] and "bad.pth" in said.errors[-1]
    assert "Traceback" not in said.err
    assert not list(load_all(tmp_path / "here")), "nothing was drawn, not even by the original"


@pytest.mark.usefixtures("cifar")
def test_a_file_without_an_average_asks_for_the_protocol_of_raw_weights(cli, images, tmp_path, trained):
    raw, mean, raw_after, _ = trained
    ddpm_file(tmp_path / "ckpt.pth", raw, mean)
    ddpm_file(tmp_path / "salun.pth", raw_after)
    words = ("run", "--task", "cifar10-class", "--data", images, "--checkpoint", "ckpt.pth", "--protocol", "smoke")
    said = cli(*words, "--method", "checkpoint", "--set", "path=salun.pth", "--results", "here")
    assert said.code == 2 and "--protocol raw" in said.errors[-1] and "salun.pth" in said.errors[-1]


@pytest.mark.usefixtures("cifar")
def test_a_diffusers_folder_of_the_ddpm(tmp_path, images):
    task = Cifar10Class("airplane", data=images, protocol="smoke")
    model, hashes = task.architecture(1), set()
    for shift in (0.0, 1.0):
        with torch.no_grad():
            model.null_classes_emb.add_(shift)
        write_folder(model, tmp_path / "port")
        hashes.add(checkpoint_hash(tmp_path / "port"))
        found = Checkpoint(path=str(tmp_path / "port")).unlearn(task.architecture(0), task)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in found.state_dict().items())
    assert len(hashes) == 2, "the class embedding is weights too"


def test_states_of_the_digits(tmp_path):
    task = TinyDigits()
    after = task.architecture(1)
    torch.save({"model": {f"module.{k}": v for k, v in after.state_dict().items()}, "epoch": 3}, tmp_path / "a.pth")
    save_file({k: v.contiguous() for k, v in after.state_dict().items()}, tmp_path / "model.safetensors")
    save_file({"embedding.weight": after.embedding.weight.detach().clone()}, tmp_path / "part.safetensors")
    for name in ("a.pth", "model.safetensors"):
        model = Checkpoint(path=str(tmp_path / name)).unlearn(task.pretrained(), task)
        assert all(torch.equal(value, after.state_dict()[key]) for key, value in model.state_dict().items())
    model = Checkpoint(path=str(tmp_path / "part.safetensors")).unlearn(task.pretrained(), task)
    before = task.pretrained().state_dict()
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["embedding.weight"]


def test_states_that_do_not_fit_change_nothing(tmp_path):
    task, model = TinyDigits(), TinyDigits().pretrained()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for state, said in (
        ({"embedding.weight": torch.zeros(2, 2)}, "embedding.weight is (2, 2), the model's (11, 32)"),
        ({**before, "gate.weight": torch.zeros(1)}, "gate.weight is no tensor of the model"),
        ({**before, "embedding.weight": torch.full((11, 32), float("nan"))}, "embedding.weight holds values"),
        ({"x": torch.zeros(1)}, "holds none of the model's weights (its first keys: x)"),
    ):
        torch.save(state, tmp_path / "a.pth")
        with pytest.raises(UserError) as caught:
            Checkpoint(path=str(tmp_path / "a.pth")).unlearn(model, task)
        assert said in str(caught.value) and str(tmp_path / "a.pth") in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.usefixtures("small")
def test_a_file_is_checked_before_anything_is_drawn_and_a_partial_one_is_counted(cli, tmp_path):
    model = DigitsClass("3").architecture(0)
    first, value = next(iter(model.state_dict().items()))
    words = ("run", "--method", "checkpoint", "--set", "path=a.pth", "--results", "here")
    torch.save({first: torch.zeros(2)}, tmp_path / "a.pth")
    said = cli(*words)
    assert said.code == 2 and f"a.pth: {first} is (2,)" in said.errors[-1]
    assert not list(load_all(tmp_path / "here"))
    torch.save({first: value + 1}, tmp_path / "a.pth")
    line = f"replaced 1 of {len(model.state_dict())} tensors"
    assert line in (said := cli(*words)).err and said.code == 0
    assert line not in cli(*words).err, "the record is there"
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    assert Checkpoint(path=str(tmp_path / "whole.pth")).require_fit(DigitsClass("3")) == ""


def test_a_state_of_stable_diffusion_is_counted(sd, sd_after, tmp_path):
    path = written(unet(sd_after), tmp_path / "unet.pt")
    every = len(sd.unet.state_dict()) + sum(len(encoder.state_dict()) for encoder in sd.text_encoders)
    assert checkpoint_fit(sd, path) == (len(sd.unet.state_dict()), every)


def test_a_released_name_is_suggested_where_no_such_file_is():
    with pytest.raises(UserError, match="or released:esd-nudity for the one that was released"):
        Checkpoint(path="esd-nudity")


# ---- the list --------------------------------------------------------------------------------------------------------


def test_released_weights_are_listed(cli):
    said = cli("list", "checkpoints")
    assert said.code == 0 and "esd-nudity" in said.out and "by hand" in said.out and "released:NAME" in said.out
    said = cli("list", "mace-object")
    assert "arXiv:2403.06135" in said.out and "CompVis/stable-diffusion-v1-4" in said.out and "by hand" in said.out
    assert cli("list", "esd-nudty").errors == [
        "unlearnbench: unknown kind or name 'esd-nudty': did you mean esd-nudity, sd-nudity or sd3-nudity?"
    ]
