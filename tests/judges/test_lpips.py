"""LPIPS: the distance itself by hand, its weights, and that a run compares with the original's images."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from tests.support import canvas
from unlearnbench.errors import UserError
from unlearnbench.judges import lpips as judge
from unlearnbench.judges.lpips import ALEXNET, Lpips
from unlearnbench.judges.scorer import PairScorer
from unlearnbench.records.schema import read_record
from unlearnbench.tasks._sd import base

WIDTHS = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
"""Outputs, inputs and kernel of AlexNet's convolutions: pytorch/vision, torchvision/models/alexnet.py."""
LAYERS = (0, 3, 6, 8, 10)
"""Their places in `features`."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""richzhang/PerceptualSimilarity, lpips/lpips.py, ScalingLayer."""


def alexnet():
    """The features of torchvision's AlexNet, random, and a layer of the classifier that LPIPS does not use."""
    draw = torch.Generator().manual_seed(0)
    state = {"classifier.6.bias": torch.zeros(1000)}
    for layer, (out, into, kernel) in zip(LAYERS, WIDTHS, strict=True):
        bound = (into * kernel**2) ** -0.5
        state[f"features.{layer}.weight"] = bound * torch.randn(out, into, kernel, kernel, generator=draw)
        state[f"features.{layer}.bias"] = bound * torch.randn(out, generator=draw)
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with torchvision's keys, named by its own hash as torchvision's is."""
    folder = tmp_path_factory.mktemp("alexnet")
    torch.save(alexnet(), folder / "new.pth")
    name = f"alexnet-{hashlib.sha256((folder / 'new.pth').read_bytes()).hexdigest()[:8]}.pth"
    return (folder / "new.pth").rename(folder / name)


def by_hand(first, second, lins):
    """Zhang et al., CVPR 2018, eq. 1: squared differences of unit features, weighted, averaged over places, summed."""
    state, sides = alexnet(), []
    for image in (first, second):
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255
        x = ((x - 0.5) * 2 - torch.tensor(SHIFT).view(1, 3, 1, 1)) / torch.tensor(SCALE).view(1, 3, 1, 1)
        features = []
        for number, layer in enumerate(LAYERS):
            if number in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            stride, padding = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))[number]
            x = F.relu(F.conv2d(x, state[f"features.{layer}.weight"], state[f"features.{layer}.bias"], stride, padding))
            features.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        sides.append(features)
    pairs = zip(*sides, lins, strict=True)
    return sum((((a - b) ** 2) * lin.view(1, -1, 1, 1)).sum(dim=1).mean().item() for a, b, lin in pairs)


def test_the_distance_is_the_papers_at_64_pixels(weights):
    package = pytest.importorskip("lpips", reason="the extra [lpips] is not installed")
    draw = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (3, 6, 96, 96), dtype=torch.uint8, generator=draw)
    images[2, 3:] = images[2, :3]
    before = torch.random.get_rng_state()
    scorer = Lpips(weights, "cpu")
    assert torch.equal(before, torch.random.get_rng_state())
    found = scorer(images, [""] * 3)
    folder = package.__path__[0]
    kept = torch.load(f"{folder}/weights/v0.1/alex.pth", map_location="cpu", weights_only=True)
    lins = [kept[f"lin{number}.model.1.weight"].flatten() for number in range(5)]
    for image, value in zip(images[:2], found[:2, 0].tolist(), strict=True):
        assert value == pytest.approx(by_hand(image[:3], image[3:], lins), rel=2e-3)
    assert found[2, 0] == 0 and found.shape == (3, 1)


def test_weights_that_are_not_what_their_name_says_are_refused(weights, tmp_path):
    pytest.importorskip("lpips", reason="the extra [lpips] is not installed")
    wrong = shutil.copy(weights, tmp_path / ALEXNET.name)
    with pytest.raises(UserError, match=r"alexnet-owt-7be5be79\.pth is not the file that its name says"):
        Lpips(wrong, "cpu")
    with pytest.raises(UserError, match="no weights of AlexNet"):
        Lpips(tmp_path / "none.pth", "cpu")


# ---- in a run ------------------------------------------------------------------------------------------------------


class Difference(PairScorer):
    """Mean absolute difference of grey levels, in the place of LPIPS."""

    name, version, columns, threshold, hash = "difference", "1", ("distance",), float("nan"), "f" * 64
    groups = Lpips.groups

    def __init__(self, weights, device):
        pass

    def __call__(self, images, prompts):
        mine, original = images.float().split(3, dim=1)
        return (mine - original).abs().flatten(1).mean(dim=1, keepdim=True)


@pytest.fixture
def comparing(monkeypatch):
    monkeypatch.setattr(base, "Lpips", Difference)
    monkeypatch.setattr(base, "has_lpips", lambda: True)
    with canvas.narrow_classifiers():
        yield


@pytest.mark.usefixtures("comparing")
def test_a_run_compares_with_the_originals_images_of_the_same_noise(cli, tmp_path):
    data = canvas.folder(tmp_path / "data")
    (data / ALEXNET.name).write_bytes(b"only its place is looked at")
    words = ("run", "--task", "sd-unlearncanvas", "--protocol", "smoke", "--device", "cpu", "--data", data)
    said = cli(*words, "--results", "out", "--method", "destroy", "--forget", "Monet")
    assert said.code == 0, said.err
    folder = next((tmp_path / "out").rglob("original"))
    own = read_record(folder / "seed-0.json")
    assert own.scores["lpips_e"].value == own.scores["lpips_u"].value == 0
    record = read_record(folder.parent / "destroy" / "seed-0.json")
    assert record.witnesses["lpips"].name == "difference" and record.scores["lpips_u"].n == 4
    tables = [pd.read_parquet(next((folder.parent / name).glob("*.parquet"))) for name in ("original", "destroy")]
    assert tables[0].seed.tolist() == tables[1].seed.tolist()
    pictures = []
    for name in ("original", "destroy"):
        out = tmp_path / f"pictures-{name}"
        assert cli("samples", folder.parent / name / "seed-0.json", out, "--data", data).code == 0
        files = sorted(out.rglob("*.png"))
        pictures.append(np.stack([np.asarray(Image.open(path), dtype=float) for path in files]))
    away = np.abs(pictures[0] - pictures[1]).mean()
    shares = [(record.scores[name].value, record.scores[name].n) for name in ("lpips_e", "lpips_u")]
    assert sum(value * n for value, n in shares) / 6 == pytest.approx(away, rel=1e-5) and away > 1
    assert cli("validate", tmp_path / "out").code == 0, "its values follow from those of the images"


@pytest.mark.usefixtures("comparing")
def test_images_that_were_drawn_elsewhere_have_no_original_to_compare_with(cli, tmp_path):
    data = canvas.folder(tmp_path / "data")
    (data / ALEXNET.name).write_bytes(b"only its place is looked at")
    place = tmp_path / "set" / "forget"
    place.mkdir(parents=True)
    Image.new("RGB", (512, 512), "red").save(place / "0.png")
    words = ("--task", "sd-unlearncanvas", "--forget", "Monet", "--data", data, "--device", "cpu")
    said = cli("score", *words, "--images", tmp_path / "set")
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "scores.json").read_text())
    assert "original" in found["not_run"]["lpips_e"] and "ua" in found["scores"]


def test_without_the_package_or_its_file_records_leave_it_out(monkeypatch, tmp_path):
    monkeypatch.setattr(judge, "find_spec", lambda name: None)
    assert not judge.has_lpips()
    with canvas.narrow_classifiers():
        task = base_task(canvas.folder(tmp_path / "data"))
        assert "lpips" not in task.witness_makers()


def base_task(data):
    from unlearnbench.tasks.sd_unlearncanvas import SDUnlearnCanvas

    return SDUnlearnCanvas("Monet", protocol="smoke", data=data)
