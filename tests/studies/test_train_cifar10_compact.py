"""The study from its command line, on a small set of images and a network of a few thousand weights."""

from __future__ import annotations

import pytest
import torch
from filelock import FileLock
from PIL import Image

from tests.models.test_compact_ddpm import TINY
from tests.studies import train_cifar10_compact as study
from tests.support import tiny_cifar
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.judges.resnet56 import CifarResNet
from unlearnbench.models.compact_ddpm import CompactDDPM
from unlearnbench.models.compact_train import read_training_state
from unlearnbench.storage.weights import load_state, save_state

SHAPE = {**TINY, "size": 32}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_cifar.write(tmp_path_factory.mktemp("cifar"))


def run(command, data, out, *words):
    given = [] if command == "export" else ["--data", str(data)]
    return study.main([command, *given, "--out", str(out), *map(str, words)], **SHAPE)


def test_train_go_on_decay_evaluate_export(data, tmp_path, capsys):
    out = tmp_path / "out"
    for _ in range(2):
        assert run("train", data, out, "--steps", 2, "--batch", 4) == 0
    assert "from step 2" in capsys.readouterr().out
    assert read_training_state(out / "constant.pt")["done"] == 4
    assert run("train", data, out, "--decay-steps", 2, "--batch", 4) == 0
    assert "decay-4.pt: at step 6, complete" in capsys.readouterr().out
    save_state(CifarResNet(1).state_dict(), tmp_path / "judge.safetensors")
    words = ["--judge", tmp_path / "judge.safetensors", "--samples", 20, "--sampling-steps", 2]
    for _ in range(2):
        assert run("evaluate", data, out, *words) == 0
    head, *rows = (out / "evaluations.csv").read_text().splitlines()
    assert len(rows) == 2 and rows[0].split(",")[:-1] == rows[1].split(",")[:-1], "all but the speed"
    row = dict(zip(head.split(","), rows[0].split(","), strict=True))
    assert (row["state"], row["step"], row["images seen"], row["samples"]) == ("decay-4", "6", "24", "20")
    assert 0 <= float(row["judged right"]) <= 1 and len(row["judged right by class"].split()) == 10
    with Image.open(out / "grid-decay-4-6-w4.png") as picture:
        assert picture.size == (640, 640)
    assert study.main(["curve", "--out", str(out)]) == 0
    assert (out / "curve.svg").read_text().count("million images seen") >= 1
    assert run("export", data, out) == 0
    weights, mean = load_state(out / "model.safetensors"), read_training_state(out / "decay-4.pt")["mean"]
    assert weights.keys() == mean.keys()
    assert all(torch.equal(weights[name], value.half()) for name, value in mean.items())


def test_a_second_process_is_refused(data, tmp_path, capsys):
    with FileLock(tmp_path / ".lock"):
        assert run("train", data, tmp_path, "--steps", 1) == 2
    assert f"error: another process is training in {tmp_path}" in capsys.readouterr().err


def test_nothing_to_evaluate_is_said(data, tmp_path, capsys):
    assert run("evaluate", data, tmp_path, "--judge", tmp_path / "none") == 2
    assert f"error: no state in {tmp_path}: train first" in capsys.readouterr().err


def test_the_bound_of_1_is_the_samplers_own_clipping():
    model = CompactDDPM(**TINY).eval()
    y, sampler = torch.arange(3), Sampler(4, 0.0, 3.0)
    seeds = [study.seed_of("compact evaluation", i) for i in range(3)]
    with torch.inference_mode():
        plain = (model.sample(y, seeds, sampler=sampler) + 1) * 127.5
    ours = study.sampled(model, y, sampler, 1.0)
    assert (plain - ours).abs().max() <= 0.51
    assert (ours != study.sampled(model, y, sampler, 1.5)).any()
