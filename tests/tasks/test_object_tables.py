"""sd-object by MACE's protocol, on CIFAR-10's classes, and by ESD's, on its file of Imagenette's classes."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from tests.support import object_files, tiny_data
from tests.support.light_judges import narrow_objects
from unlearnbench.errors import UserError
from unlearnbench.judges.clip import Clip, ClipObjects
from unlearnbench.judges.inception import Extractor
from unlearnbench.records.schema import read_record
from unlearnbench.tasks._sd.words import CIFAR10_OBJECTS, OBJECTS
from unlearnbench.tasks.sd_object import SDObject

ALL = "+".join(CIFAR10_OBJECTS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tiny_data.folder(tmp_path_factory.mktemp("objects") / "data")
    object_files.synonyms(folder)
    object_files.imagenette(folder)
    return folder


def task(data, forget="airplane", protocol="mace-cvpr24"):
    return SDObject(forget, protocol=protocol, data=data)


# ---- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("forget", "erased"), [("airplane", 1), ("ship+bird", 2), (ALL, 10)])
def test_every_word_is_asked_for_200_times(data, forget, erased):
    about = task(data, forget)
    plan = about.plan()
    counts = Counter(item.group for item in plan)
    assert counts == Counter(forget=200 * erased, synonyms=600 * erased, retain=200 * (10 - erased))
    assert set(Counter(item.prompt for item in plan).values()) == {200}
    assert about.image_count() == len(plan) == len({item.seed for item in plan})
    names = list(CIFAR10_OBJECTS)
    assert all(names[item.label] == item.concept for item in plan)
    assert about.forget == "+".join(sorted(forget.split("+"), key=names.index))
    for item in plan:
        assert item.prompt == f"a photo of the {item.concept}" or item.group == "synonyms"
    said = {item.prompt for item in plan if item.group == "synonyms" and item.concept == forget.split("+")[0]}
    assert said == {f"a photo of the {word}" for word in about._synonyms[forget.split("+")[0]]}


def test_methods_are_told_names_and_never_synonyms(data):
    about = task(data, "airplane+ship")
    assert about.told_names == ("airplane", "ship")
    told = {about.text(row) for row in about.names("retain")}
    assert len(told) <= 8 and not any("airplane" in word or "ship" in word for word in told)
    prompts = about.training_prompts("forget") + about.training_prompts("retain")
    words = about._synonyms["airplane"] + about._synonyms["ship"]
    assert len(prompts) == 2 * 10 and not any(word in prompt for word in words for prompt in prompts)
    assert all(concept.synonyms for concept in about.erased)  # so that replaced and forgotten prompts know them


def test_where_all_ten_are_erased_others_are_kept(data):
    about = task(data, ALL)
    assert set(about.training_prompts("retain")) == {t.format(n) for t in about.texts[:2] for n in OBJECTS}


@pytest.mark.parametrize(
    ("forget", "protocol", "said"),
    [
        (
            "church",
            "mace-cvpr24",
            r"has no class church: give --forget one or several \(airplane\+bird\) of airplane, auto",
        ),
        ("airplane", "default", r"has no class airplane: give .* tench, .*, or --protocol mace-cvpr24"),
        ("ship", "esd-iccv23", "has no class ship"),
        ("church+ship", "default", "has no class ship"),
    ],
)
def test_a_class_of_the_other_list_is_refused(data, forget, protocol, said):
    with pytest.raises(UserError, match=said):
        task(data, forget, protocol)


@pytest.mark.parametrize("name", ["10_objects_paraphrase.json", "small_imagenet_prompts.csv"])
def test_a_missing_file_is_named_with_the_command_and_counted_before_it_is_there(data, tmp_path, name):
    for path in data.iterdir():
        if path.name != name:
            (tmp_path / path.name).symlink_to(path)
    protocol, forget, images = {"10": ("mace-cvpr24", "dog", 2600), "sm": ("esd-iccv23", "church", 100)}[name[:2]]
    about = task(tmp_path, forget, protocol)
    assert about.image_count() == images
    with pytest.raises(UserError, match=rf"{name} is not in .*unlearnbench fetch --task sd-object"):
        about.plan()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "has no list of other words for frog"),
        ("toad", "has no list of other words for frog"),
        (["toad", ""], "frog: '' is no plain word"),
        (["toad", 7], "frog: '7' is no plain word"),
        (["a" * 61], "is no plain word of up to 60"),
        (["to\u202ead"], "is no plain word"),
    ],
    ids=["none", "text", "empty", "number", "long", "hidden"],
)
def test_synonyms_that_are_none_are_refused_by_class(data, tmp_path, words, said):
    object_files.synonyms(tmp_path, frog=words)
    with pytest.raises(UserError, match=rf"10_objects_paraphrase\.json.*{said}.*fetch 10_objects"):
        task(tmp_path)


def test_esds_rows_are_drawn_with_their_seeds(data, tmp_path):
    about = task(data, "French horn", "esd-iccv23")
    plan = about.plan()
    assert Counter(item.group for item in plan) == {"forget": 10, "retain": 90} and about.image_count() == 100
    assert {item.prompt for item in plan if item.group == "forget"} == {"Image of french horn"}
    assert sorted(item.seed for item in plan) == list(range(4000, 4100))
    assert all(list(OBJECTS)[item.label] == item.concept for item in plan)
    object_files.imagenette(tmp_path, without="tench")
    with pytest.raises(UserError, match="has no prompts of the class tench"):
        task(tmp_path, "church", "esd-iccv23").plan()
    object_files.imagenette(tmp_path, rows=3)
    with pytest.raises(UserError, match="has 3 prompts of tench, protocol esd-iccv23 means 10"):
        task(tmp_path, "church", "esd-iccv23").plan()


# ---- what is judged --------------------------------------------------------------------------------------------------


def test_clip_judges_by_the_softmax_of_100_cosines_and_never_abstains(data):
    clip = Clip(data / "clip-vit-b-32", "cpu")
    judge = ClipObjects(clip, ("ship", "frog", "cat"), Extractor(None, "cpu"))
    images = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = clip.images(images).double().numpy()
    t = clip.texts(["a photo of the ship", "a photo of the frog", "a photo of the cat"]).double().numpy()
    odds = np.exp(100 * x @ t.T)
    found = judge(images)
    np.testing.assert_allclose(found.probabilities.numpy(), odds / odds.sum(axis=1, keepdims=True), atol=1e-4)
    assert not found.refused.any()


def run(data, forget, protocol, *more):
    start = ("run", "--task", "sd-object", "--protocol", protocol, "--device", "cpu", "--data", data)
    return (*start, "--results", "out", "--forget", forget, "--method", "uce", *more)


def test_a_run_by_maces_protocol_has_its_four_numbers_by_hand(cli, data, tmp_path):
    said = cli(*run(data, "ship+airplane", "mace-smoke"))
    assert said.code == 0, said.err
    (path,) = (tmp_path / "out").glob("sd-object/mace-smoke/airplane+ship/uce*/seed-*.json")
    record, images = read_record(path), pd.read_parquet(path.with_suffix(".parquet"))
    p = {group: images[images.group == group].p_asked.to_numpy(float) for group in ("forget", "retain", "synonyms")}
    assert [len(values) for values in p.values()] == [4, 16, 12]
    e, s, g = (values.mean() for values in p.values())
    scores = {name: record.scores[name].value for name in ("acc_e", "acc_s", "acc_g")}
    assert scores == pytest.approx({"acc_e": e, "acc_s": s, "acc_g": g}, abs=1e-6)
    (row,) = json.loads(cli("leaderboard", "out", "--table", "objects", "--methods", "uce", "--format", "json").out)
    assert row["h_o"] == pytest.approx(3 / (1 / (1 - e) + 1 / s + 1 / (1 - g)), abs=1e-6)
    assert {"ua", "ra", "ua_synonyms", "clip_score"} <= set(record.scores)
    assert record.judge.name == "clip-objects" and set(record.prompts.files) == {"10_objects_paraphrase.json"}
    told = cli("validate", "out").out.splitlines()
    assert not [line for line in told if line.startswith("out/") and "no version of its" not in line]


def test_a_run_by_esds_protocol_has_its_two_accuracies(cli, data, tmp_path):
    with narrow_objects():
        from torchvision import models

        torch.manual_seed(0)
        torch.save(models.resnet50().state_dict(), data / "resnet50-11ad3fa6.pth")
        said = cli(*run(data, "church", "esd-smoke"))
    assert said.code == 0, said.err
    (path,) = (tmp_path / "out").glob("sd-object/esd-smoke/church/uce*/seed-*.json")
    record = read_record(path)
    assert (record.scores["ua"].n, record.scores["ra"].n) == (2, 18)
    assert not {"acc_e", "acc_s", "acc_g"} & set(record.scores)
