"""Judges and witnesses whose networks are on the card say of images what they say on the CPU."""

from functools import cache

import pytest
import torch

from tests.support import random_inception, tiny_data
from tests.support.light_judges import narrow_objects, narrow_resnet50
from tests.support.pretended_cuda import PretendedCuda
from unlearnbench.data.image_sets import Images
from unlearnbench.judges.cifar import ResNetJudge, started, train_resnet
from unlearnbench.judges.clip import Clip, ClipJudge, ClipScore
from unlearnbench.judges.imagenet import ResNet50
from unlearnbench.judges.inception import Extractor

PICTURES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("judges")
    tiny_data.clip(place / "clip", 0)
    random_inception.write(place / "inception.pth")
    torch.manual_seed(0)
    torch.save(narrow_resnet50().state_dict(), place / "resnet50.pth")
    return place


def clip_score(folder, device):
    return ClipScore(Clip(folder / "clip", device), "clip")(PICTURES, ["a cat", "red"])


def clip_judge(folder, device):
    return ClipJudge(Clip(folder / "clip", device), ["Vincent van Gogh", "Monet"], Extractor(None, device))(PICTURES)


def objects(folder, device):
    with narrow_objects():
        return ResNet50(folder / "resnet50.pth", Extractor(None, device), device)(PICTURES)


def inception(folder, device):
    return Extractor(folder / "inception.pth", device)(PICTURES[:1])


@cache
def weights():
    torch.manual_seed(0)
    return {**started(None).state_dict(), "threshold": torch.tensor(0.0)}


def cifar(folder, device):
    judge = ResNetJudge(weights(), "a" * 64, device, size=32)
    return (*judge(PICTURES), judge.scores(PICTURES))


@pytest.mark.parametrize("judge", [clip_score, clip_judge, objects, inception, cifar])
def test_on_the_card_a_judge_says_the_same(folder, judge):
    here = judge(folder, "cpu")
    with PretendedCuda() as card:
        there = judge(folder, "cuda")
        assert card.peak > 0, "the network was on the card"
        pairs = [(here, there)] if isinstance(here, torch.Tensor) else zip(here, there, strict=True)
        for one, other in pairs:
            assert other.device.type == "cpu"
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_a_judge_is_trained_on_the_card():
    images = Images(PICTURES.numpy(), torch.tensor([0, 1]).numpy())
    with PretendedCuda() as card:
        found = train_resnet(images, images, 0, "cuda", start=None, epochs=1, size=32, batch=2)
        assert card.peak > 0 and all(value.device.type == "cpu" for value in found.values())
