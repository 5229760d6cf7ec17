"""What training code saves: the weights are found beside optimisers, averages and wrappers' prefixes."""

from __future__ import annotations

import zipfile

import pytest
import torch
from safetensors.torch import save_file

from unlearnbench.errors import UserError
from unlearnbench.models.external.training_files import training_weights

RAW = {"conv_in.weight": torch.ones(2), "mid.bias": torch.full((1,), 2.0)}
MEAN = {name: value + 0.5 for name, value in RAW.items()}
OPTIMISER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}


def read(path, form=None):
    return numbers(training_weights(path, form))


def numbers(state):
    return {name: value.tolist() for name, value in state.items()}


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


SHAPES = {
    # name: (what is saved, whether it holds an average)
    "state dictionary": (RAW, False),
    # OPTML-Group/Unlearn-Saliency at a6e89fd, DDPM/runners/diffusion.py, lines 598-610, `ema: False`
    "SalUn": ([under("module.", RAW), OPTIMISER, 999], False),
    # clear-nus/selective-amnesia at b736571, ddpm/runners/diffusion.py, lines 338-348; EraseDiff's and SFRon's alike
    "Selective Amnesia": ([under("module.", RAW), OPTIMISER, 19_999, MEAN], True),
    # ermongroup/ddim, runners/diffusion.py: model, optimiser, epoch, step, average
    "DDIM": ([under("module.", RAW), OPTIMISER, 4, 5000, MEAN], True),
    "PyTorch's tutorials": (
        {"epoch": 3, "model_state_dict": RAW, "optimizer_state_dict": OPTIMISER, "loss": 0.1},
        False,
    ),
    "Lightning": (
        {"state_dict": under("model.", RAW), "optimizer_states": [OPTIMISER], "pytorch-lightning_version": "2.4"},
        False,
    ),
    "Lightning with an average": (
        {"state_dict": under("model.", RAW) | under("ema_model.", MEAN), "global_step": 7, "callbacks": {}},
        True,
    ),
    "DeepSpeed": ({"module": under("module.", RAW), "optimizer": None, "ds_version": "0.15"}, False),
    "timm": ({"state_dict": RAW, "state_dict_ema": MEAN, "optimizer": OPTIMISER}, True),
    "guided": ({"model": RAW, "ema": MEAN, "step": 1}, True),
    "EMA class": ({"model": RAW, "ema_state_dict": {"shadow": MEAN, "decay": 0.999, "num_updates": 5}}, True),
    "ema-pytorch": (
        under("online_model.", RAW)
        | under("ema_model.", MEAN)
        | {"initted": torch.tensor(True), "step": torch.tensor(1)},
        True,
    ),
    "AveragedModel": (under("module.", RAW) | {"n_averaged": torch.tensor(5)}, False),
    "torch.compile": (under("_orig_mod.", RAW), False),
    "DataParallel of a compiled model": (under("module._orig_mod.", RAW), False),
    "FSDP": (
        {name.replace(".", "._fsdp_wrapped_module._checkpoint_wrapped_module."): value for name, value in RAW.items()},
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_weights_are_found_in_either_form(tmp_path, shape):
    saved, averaged = SHAPES[shape]
    torch.save(saved, tmp_path / "ckpt.pth")
    assert read(tmp_path / "ckpt.pth") == read(tmp_path / "ckpt.pth", "raw") == numbers(RAW)
    if averaged:
        assert read(tmp_path / "ckpt.pth", "ema") == numbers(MEAN)


@pytest.mark.parametrize("shape", ["SalUn", "PyTorch's tutorials", "Lightning"])
def test_a_file_of_training_without_an_average_has_raw_weights_only(tmp_path, shape):
    torch.save(SHAPES[shape][0], tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=r"ckpt.pth has no running mean .*--protocol raw"):
        training_weights(tmp_path / "ckpt.pth", "ema")


def test_a_state_that_does_not_say_its_form_is_taken_for_either(tmp_path):
    save_file(under("_orig_mod.", RAW), tmp_path / "a.safetensors")
    path = tmp_path / "a.safetensors"
    assert read(path, "ema") == read(path, "raw") == numbers(RAW)


def test_a_file_with_an_average_only(tmp_path):
    torch.save({"ema": MEAN, "optimizer": OPTIMISER}, tmp_path / "ckpt.pth")
    assert read(tmp_path / "ckpt.pth") == read(tmp_path / "ckpt.pth", "ema") == numbers(MEAN)
    with pytest.raises(UserError, match="running mean only"):
        training_weights(tmp_path / "ckpt.pth", "raw")


def test_the_original_names_of_stable_diffusion_stay(tmp_path):
    """Lightning puts `model.` before every name of a module that holds it; CompVis's own names begin so too."""
    own = under("model.diffusion_model.", RAW) | under("cond_stage_model.transformer.", RAW)
    for saved in (own, under("model.", own)):
        torch.save({"state_dict": saved}, tmp_path / "ckpt.pth")
        assert read(tmp_path / "ckpt.pth") == numbers(own)


def test_what_cannot_be_named_is_refused(tmp_path):
    path = tmp_path / "ckpt.pth"
    for saved, said in (
        ({"model": RAW, "ema": {"decay": 0.99, "shadow_params": list(MEAN.values())}}, "without names"),
        (under("module.", RAW) | RAW, "both for conv_in.weight"),
        (3, "holds a int"),
        ({"state_dict": RAW | {"names": ["a"]}}, "names of type list"),
    ):
        torch.save(saved, path)
        with pytest.raises(UserError, match=said) as caught:
            training_weights(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_archives_and_compressed_entries_are_refused_before_anything_is_unpacked(tmp_path):
    """torch.save stores; a deflated entry of zeros is a thousandth of what it becomes in memory."""
    torch.save({"x": torch.zeros(1 << 20)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with zipfile.ZipFile(tmp_path / "models.zip", "w") as archive:
        archive.writestr("../../escaped.pt", b"x")
    for name, said in (("bomb.pth", "compressed"), ("models.zip", "is an archive of files .*: unpack it")):
        with pytest.raises(UserError, match=said):
            training_weights(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb.pth", "models.zip", "plain.pth"]
    assert training_weights(tmp_path / "plain.pth")["x"].numel() == 1 << 20
