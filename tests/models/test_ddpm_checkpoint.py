"""The papers' .pth files: raw weights and running mean, files without one, and what is refused."""

import pickle

import pytest
import torch

from tests.support.ddpm_reference import Reference
from unlearnbench.errors import UserError
from unlearnbench.models.ddpm import ConditionalDDPM, load_converted
from unlearnbench.models.ddpm_checkpoint import read_pth


@pytest.fixture(scope="module")
def states():
    torch.manual_seed(0)
    raw, mean = Reference(width=32).state_dict(), Reference(width=32).state_dict()
    return {f"module.{key}": value for key, value in raw.items()}, mean


def saved(tmp_path, value, name="ckpt.pth"):
    torch.save(value, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("which", ["raw", "ema"])
def test_either_of_both_is_read_and_fits(tmp_path, states, which):
    raw, mean = states
    path = saved(tmp_path, [raw, {"state": {}, "param_groups": [{"lr": 1e-4}]}, 800_000, mean])
    model = ConditionalDDPM(width=32)
    load_converted(model, read_pth(path, which), str(path))
    expected = raw["module.conv_in.weight"] if which == "raw" else mean["conv_in.weight"]
    assert torch.equal(model.unet.conv_in.weight, expected)
    table = raw["module.classes_emb.weight"] if which == "raw" else mean["classes_emb.weight"]
    assert torch.equal(model.classes_emb.weight, table)


def test_what_the_mean_lacks_is_taken_from_the_raw_weights(tmp_path, states):
    raw, mean = states
    some = {key: value for key, value in mean.items() if key != "conv_in.bias"}
    found = read_pth(saved(tmp_path, [raw, {}, 1, some]), "ema")
    assert torch.equal(found["conv_in.bias"], raw["module.conv_in.bias"])
    assert torch.equal(found["conv_out.bias"], mean["conv_out.bias"])


def test_a_file_without_a_mean_says_so(tmp_path, states):
    path = saved(tmp_path, [states[0], {}, 1000])
    assert set(read_pth(path, "raw")) == {key.removeprefix("module.") for key in states[0]}
    with pytest.raises(UserError, match=r"ckpt.pth has no running mean .*: ask for its raw .* --protocol raw"):
        read_pth(path, "ema")


class Danger:
    def __reduce__(self):
        return print, ("it ran",)


def test_what_is_no_such_file_is_refused_in_one_line(tmp_path, states, capsys):
    cases = {
        "a pickle that holds more than tensors": [states[0], Danger()],
        "is no training checkpoint (it is a list of int)": [1],
        "is no training checkpoint (it is a list of nothing)": [],
        "holds a Tensor": torch.zeros(1),
    }
    for says, value in cases.items():
        path = saved(tmp_path, value)
        before = path.read_bytes()
        with pytest.raises(UserError) as caught:
            read_pth(path, "raw")
        assert says in str(caught.value) and "\n" not in str(caught.value)
        assert path.read_bytes() == before
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Danger()))
    for name, says in (("text.pth", "text.pth"), ("plain.pth", "plain.pth"), ("gone.pth", "no checkpoint at")):
        with pytest.raises(UserError, match=says):
            read_pth(tmp_path / name, "raw")
    assert "it ran" not in capsys.readouterr().out
