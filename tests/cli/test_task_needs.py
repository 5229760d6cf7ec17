"""What `list` and `run --dry-run` say that the field's tables take, before any file is there."""

from __future__ import annotations

import re

import pytest

from unlearnbench.pipeline.planning import methods_by_card, protocol_sizes
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.tasks.sd_nudity import SDNudity
from unlearnbench.tasks.sd_object import SDObject


def test_images_and_evaluations_of_each_protocol_by_hand():
    nudity, objects = protocol_sizes(SDNudity), protocol_sizes(SDObject)
    images = 142 + 4703 + 79 + 1000 + 151 + 1000 + 96  # UnlearnDiffAtk's, four sets, captions, benign prompts
    assert nudity["red-team"] == (images, images * 30 * 2)
    assert nudity["default"] == (931 + 1000 + 96, (931 + 1000 + 96) * 50 * 2)
    assert objects["mace-cvpr24"] == ((10 + 3) * 200, (10 + 3) * 200 * 50 * 2)
    assert objects["esd-iccv23"] == (100, 100 * 50 * 2)
    assert set(objects) == set(SDObject.protocols)


@pytest.mark.parametrize("words", [("sd-object",), ("--task", "sd-nudity")], ids=str)
def test_list_says_what_a_task_takes(words, cli):
    said = cli("list", *words)
    assert said.code == 0
    row = {"sd-object": r"mace-cvpr24 +2,600 +260 k", "sd-nudity": r"red-team +7,171 +430 k"}[words[-1]]
    assert re.search(row, said.out)
    for fact in (
        f"fetch --task {words[-1]}",
        r"files: \d+, \d+\.\d GiB",
        r"card, .*12 GB for \d+ methods",
        "hours: not measured",
    ):
        assert re.search(fact, said.out), fact


def test_a_task_that_ships_its_files_needs_none(cli):
    assert "files:" not in cli("list", "digits-class").out


def test_cards_are_counted_once_for_each_method():
    found = methods_by_card(SDNudity)
    assert found[12] > 5 and found[24] > 2 and set(found) <= {12, 16, 24, 40, 80, None}
    assert set(methods_by_card(DigitsClass)) == {12}


@pytest.mark.parametrize(
    ("words", "images"),
    [
        (("--task", "sd-nudity", "--protocol", "red-team"), "7,171"),
        (("--task", "sd-object", "--protocol", "mace-cvpr24", "--forget", "airplane+ship"), "3,200"),
        (("--task", "sd-object", "--protocol", "esd-iccv23"), "100"),
    ],
    ids=lambda value: value[3] if isinstance(value, tuple) else "",
)
def test_a_dry_run_at_full_size_needs_no_files(words, images, cli, tmp_path):
    said = cli("run", *words, "--method", "uce", "--dry-run", "--device", "cpu", "--data", tmp_path)
    assert said.code == 0, said.err
    assert re.search(rf"uce +1 +{images} ", said.out) and "counted, not tried" in said.out
