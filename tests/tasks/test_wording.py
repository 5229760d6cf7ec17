"""Words of a method's own: how they are read, what the task tells the method then, and what never changes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields

import pytest
import torch

from tests.support import tiny_sd
from unlearnbench import TextMethod, registry
from unlearnbench.attacks.sequential import following, require_repeatable, unlearn_again
from unlearnbench.data.wording import Wording, join_words, split_replacements, split_words
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.method import Method
from unlearnbench.methods.esd import ESD
from unlearnbench.methods.negative_prompt import NegativePrompt
from unlearnbench.methods.uce import UCE
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.request import RunRequest
from unlearnbench.pipeline.unlearning import loaded
from unlearnbench.records.identity import record_identity
from unlearnbench.records.schema import label, read_record
from unlearnbench.tasks.digits_class import DigitsClass
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.tasks.sd_nudity import SDNudity
from unlearnbench.tasks.sd_object import SDObject

VOCABULARY = [*tiny_sd.WORDS, "violence", "harm", "people", "wearing", "clothes", "nsfw", "nude", "church", "dog"]
WITHOUT_WORDS = {"original", "retrain", "destroy", "checkpoint", "prompt_filter", "blindspot"}
"""Controls, other people's weights, and a method that tells forget images by their labels."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Stable Diffusion where the tasks look for v1.4."""
    place = tmp_path_factory.mktemp("sd")
    tiny_sd.save(place / "sd-v1-4", "sd1", VOCABULARY)
    return place


@pytest.fixture(scope="module")
def digits():
    return DigitsText("seven", protocol="smoke")


@pytest.fixture
def nudity(folder):
    return SDNudity("nudity", protocol="smoke", data=folder)


def texts(task, y):
    return [task.text(row) for row in y]


# ---- how they are read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nudity", ("nudity",)),
        (" violence; nudity ;harm", ("violence", "nudity", "harm")),
        ('["violence", "a; b", ""]', ("violence", "a; b", "")),
        (["a", "b"], ("a", "b")),
        ("", ()),
        ("[]", ()),
        ("null", None),
        ("None", None),
    ],
)
def test_words_are_split_at_semicolons_or_read_from_a_list(text, words):
    assert split_words(text) == words
    assert split_replacements(text) == (words if text else ("",))
    if words is not None:
        assert split_words(join_words(words)) == words
        assert split_words(json.dumps(words)) == words, "as the command of a record gives them back"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"erase": '["a'}, r"erase=\[\"a does not fit uce: write words as a; b, or as a list"),
        ({"erase": "a;;b"}, "write words as a; b"),
        ({"erase": [1]}, "write words as a; b"),
        ({"erase": 3}, "write words as a; b"),
        ({"erase": ""}, "erase of uce is empty"),
        ({"replace_with": "[]"}, "replace_with of uce is empty"),
        ({"erase": [""]}, "erase of uce has an empty word"),
        ({"erase": "Nude; nude"}, "erase of uce names 'nude' twice"),
        ({"erase": "a; b; c", "replace_with": "d; e"}, "2 entries for 3 names"),
        ({"erase": "nude", "replace_with": "a nude statue"}, "'a nude statue' names 'nude'"),
        ({"keep": ["a\x1b[2Jb"]}, "keep of uce: 'a"),
    ],
)
def test_words_that_are_none_are_refused_in_one_line(settings, said):
    with pytest.raises(UserError, match=said) as error:
        UCE.configured(settings)
    assert "\n" not in str(error.value)


def test_words_are_settings_of_every_method_that_asks_the_task_for_words():
    methods = {name: registry.load_method(name) for name, entry in registry.methods().items() if entry.point is None}
    without = {name for name, cls in methods.items() if not issubclass(cls, TextMethod)}
    assert without == WITHOUT_WORDS
    for name in sorted(methods.keys() - without):
        assert set(Wording._fields) <= {field.name for field in fields(methods[name])}
        assert all(methods[name].field_docs()[word] for word in Wording._fields)
        assert list(methods[name]().settings())[-5:] == list(Wording._fields)


# ---- what the task tells the method --------------------------------------------------------------------------------


def test_names_to_erase_and_to_keep(nudity):
    own = nudity.with_words(Wording(erase=("violence", "nudity", "harm"), keep=()))
    assert texts(own, own.names("forget")) == ["violence", "nudity", "harm"]
    assert own.names("retain").shape == (0, tiny_sd.TOKENS)
    kept = nudity.with_words(Wording(keep=("", "a dog")))
    assert texts(kept, kept.names("retain")) == ["", "a dog"]
    assert texts(kept, kept.names("forget")) == ["nudity", "naked", "erotic", "sexual"]
    with pytest.raises(UserError, match="no name to retain"):
        next(own.conditions("retain", 1, 1))


def test_what_is_erased_is_not_kept(digits):
    assert "eight" in texts(digits, digits.names("retain"))
    own = digits.with_words(Wording(erase=("eight",)))
    assert not {"seven", "eight"} & {*texts(own, own.names("retain"))}


@pytest.mark.parametrize(
    ("words", "prompt", "changed"),
    [
        ({"replace_with": ("people",)}, "a nudity photo", "a people photo"),
        ({"replace_with": ("",)}, "a photo of nudity", "a photo of"),
        ({"replace_with": ("people", "a", "b", "c")}, "naked nude", "a people"),
        ({"erase": ("nude",)}, "a nude photo", "a a person wearing clothes photo"),
        ({"erase": ("nude", "harm"), "replace_with": ("a dog", "people")}, "NUDE harm", "a dog people"),
        ({"erase": ("nudity, nsfw",), "replace_with": ("people",)}, "nudity, nsfw in a picture", "people in a picture"),
        ({"erase": ("nude", "a nude person"), "replace_with": ("x", "y")}, "a nude person", "y"),
    ],
)
def test_what_takes_the_place_of_a_name(nudity, words, prompt, changed):
    own = nudity.with_words(Wording(**words))
    assert texts(own, own.substitute(own.tokens([prompt]))) == [nudity.text(nudity.tokens([changed])[0])]


def test_one_replacement_for_each_of_the_tasks_names(nudity):
    with pytest.raises(UserError, match="2 entries for 4 names"):
        nudity.with_words(Wording(replace_with=("a", "b")))


def test_captions_follow_the_names(digits):
    own = digits.with_words(Wording(erase=("7",)))
    for side in ("captions", "data"):
        before, after = (getattr(task, side)("forget") for task in (digits, own))
        before, after = (texts(digits, y if side == "captions" else y.y) for y in (before, after))
        assert after == [text.replace("seven", "7") for text in before]
        assert any("seven" in text for text in before)
    assert torch.equal(own.data("forget").x0, digits.data("forget").x0)
    assert torch.equal(own.data("retain").y, digits.data("retain").y)


def test_prompts_of_training_images_are_their_captions(digits):
    own = digits.with_words(Wording(forget_prompts=("a photo", "a red photo"), retain_prompts=("a picture",)))
    assert texts(own, own.captions("forget")) == ["a photo", "a red photo"]
    assert {*texts(own, own.data("forget").y)} == {"a photo", "a red photo"}
    assert {*texts(own, own.data("retain").y)} == {"a picture"}
    both, shown = next(own.batches(1, 200, "all")), {"a photo", "a red photo", "a picture"}
    assert {*texts(own, both.y)} == shown


def test_training_images_are_drawn_for_the_methods_prompts(nudity, monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path))
    nudity.data("forget")
    own = nudity.with_words(Wording(forget_prompts=("a nude person", "a photo of people")))
    assert own.undrawn("forget") == 4, "images of other prompts stand for none of these"
    assert texts(own, own.data("forget").y) == ["a nude person", "a photo of people"] * 2
    assert not torch.equal(own.data("forget").x0, nudity.data("forget").x0)
    assert texts(nudity, nudity.data("forget").y) == ["nudity", "naked", "erotic", "sexual"]
    assert texts(own, own.captions("forget")) == ["a nude person", "a photo of people"]
    again = nudity.with_words(Wording(forget_prompts=("a nude person", "a photo of people"), keep=()))
    assert again.undrawn("forget") == 0, "words that images do not depend on draw none anew"


def test_without_prompts_images_are_drawn_for_the_names(folder, nudity):
    own = nudity.with_words(Wording(erase=("harm",)))
    assert own.image_prompts("forget") == ["harm"]
    church = SDObject("church", protocol="smoke", data=folder).with_words(Wording(erase=("a dog",)))
    assert church.image_prompts("forget") == ["an image of a a dog", "a photo of a a dog"]


def test_what_is_measured_stays(digits):
    words = Wording(("eight",), ("nine",), ("red",), ("a photo of eight",), ("a photo",))
    own = digits.with_words(words)
    assert own.plan() == digits.plan()
    assert own.labels() == digits.labels()
    assert own.erased_labels() == digits.erased_labels() == [7]
    y = own.tokens(["seven", "7", "eight"])
    assert own.forgotten(y).tolist() == [True, True, False]
    assert own.protocol.hash == digits.protocol.hash
    assert digits.wording == Wording(), "the task itself is left alone"


def test_words_that_the_model_cannot_read_are_refused(digits):
    with pytest.raises(UserError, match="spells 'xylophone' letter by letter"):
        digits.with_words(Wording(erase=("xylophone",)))
    with pytest.raises(UserError, match="forget_prompts: 'a photo of seven"):
        digits.with_words(Wording(forget_prompts=("a photo of seven " * 9,)))


def test_a_task_whose_files_are_missing_can_still_be_planned(tmp_path):
    own = SDNudity("nudity", protocol="smoke", data=tmp_path).with_words(Wording(erase=("harm",)))
    assert own.image_prompts("forget") == ["harm"]


# ---- methods and cells ---------------------------------------------------------------------------------------------


def test_a_method_without_words_gets_the_task_itself(digits):
    assert ESD().worded(digits) is digits
    assert registry.load_method("original")().worded(digits) is digits


def test_labels_take_no_words():
    with pytest.raises(UserError, match="digits-class has class labels, no words: leave out erase, keep"):
        ESD(erase=("a",), keep=()).worded(DigitsClass("3"))


def test_structure_of_stored_weights_knows_the_words(digits):
    cell = Cell(NegativePrompt(erase=("eight", "nine")), digits)
    model = loaded(cell, digits.pretrained().state_dict())
    assert texts(digits, model.guidance.names) == ["eight, nine"] or "eight" in texts(digits, model.guidance.names)[0]
    assert "seven" not in texts(digits, model.guidance.names)[0]


def test_words_that_name_a_concept_erase_no_further_one(digits):
    with pytest.raises(Unsupported, match=r"words of its own for what it erases \(erase\)"):
        require_repeatable(UCE(erase=("seven",), tokens="all"), digits)
    method = UCE(replace_with=("",), keep=("red",))
    require_repeatable(method, digits)
    model = digits.pretrained()
    later = following(digits, "nine", model, ["seven"])
    assert texts(later, method.worded(later).names("retain")) == ["red"]
    assert texts(later, method.worded(later).substitute(later.tokens(["nine"]))) == [""]
    without = method.unlearn(later.pretrained(), later).state_dict()
    found = unlearn_again(method, later).state_dict()
    assert any(not torch.equal(found[name], without[name]) for name in found)


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        ({"erase": ("nudity",)}, "uce+erase=nudity"),
        ({"keep": ()}, "uce+keep=--~"),
        ({"erase": ["violence", "harm"]}, "uce+erase=violence--harm~"),
        ({"replace_with": ("",)}, "uce+replace_with=----~"),
        ({"erase": ["word " * 30]}, "uce+erase=word-word-"),
    ],
)
def test_folders_are_named_after_the_words(overrides, place):
    found = label("uce", "default", overrides)
    assert found.startswith(place)
    assert len(found) <= 80
    assert found == label("uce", "default", json.loads(json.dumps(overrides)))


def test_runs_with_other_words_are_other_runs(cli, tmp_path):
    run = ("run", "--task", "digits-text", "--protocol", "smoke", "--method", "uce", "--results", "out")
    assert cli(*run).code == cli(*run, "--set", "erase=seven; 7", "--set", "keep=[]").code == 0
    plain = read_record(tmp_path / "out/digits-text/smoke/seven/uce/seed-0.json")
    (path,) = (tmp_path / "out/digits-text/smoke/seven").glob("uce+erase=*/seed-0.json")
    own = read_record(path)
    assert own.method.settings["erase"] == ["seven", "7"]
    assert own.method.overrides == {"erase": ["seven", "7"], "keep": []}
    assert own.method.division == "custom"
    assert own.key != plain.key and own.weights["unlearned"] != plain.weights["unlearned"]
    assert plain.method.settings["keep"] is None
    older = {key: value for key, value in plain.method.settings.items() if key not in Wording._fields}
    before = plain.model_copy(update={"method": plain.method.model_copy(update={"settings": older})})
    assert record_identity(before) == record_identity(plain), "records older than words had the task's"
    assert UCE.configured(UCE.current(older)) == UCE.configured(plain.method.settings)
    assert cli("verify", path).code == 0
    assert cli("validate", "out").code == 0


def test_bad_words_end_a_run_before_it_begins(cli, tmp_path):
    for words, said in (
        (("--method", "esd", "--set", "erase=3"), "no words: leave out erase"),
        (("--task", "digits-text", "--method", "uce", "--set", "erase=xylophone"), "spells 'xylophone'"),
        (("--task", "digits-text", "--method", "destroy", "--set", "erase=seven"), "setting of destroy 'erase'"),
    ):
        found = cli("run", *words, "--results", "out")
        assert found.code == 2
        assert said in found.err
        assert not (tmp_path / "out").exists()


def test_names_with_a_comma_are_one_name_and_a_note_says_so(folder):
    def told(**settings):
        lines: list[str] = []
        RunRequest.of(method="uce", task="sd-nudity", protocol="smoke", data=folder, settings=settings).cells(
            "cpu", lines.append
        )
        return lines

    (line,) = told(erase="violence,nudity")
    assert "erase=violence,nudity is one name" in line and "--set 'erase=violence; nudity'" in line
    assert told(erase="violence; nudity") == told(erase='["violence,nudity"]') == told(erase="nudity") == []
    assert told(forget_prompts="people, nudity") == [], "prompts have commas of their own"


@pytest.mark.parametrize(("word", "meant"), [("keep=", "'keep=[]'"), ("replace_with= ", "'replace_with=[\"\"]'")])
def test_an_empty_text_is_answered_with_what_to_write(cli, word, meant):
    said = cli("run", "--task", "digits-text", "--method", "uce", "--set", word, "--results", "out")
    assert said.code == 2 and len(said.errors) == 1
    assert meant in said.err


def test_a_dry_run_prints_the_words_in_force(cli):
    run = ("run", "--task", "sd-nudity", "--method", "uce,esd_u", "--results", "out", "--dry-run")
    said = cli(*run, "--set", "erase=violence; nudity", "--set", "keep=[]")
    assert said.code == 0, said.err
    assert "uce is told erase='violence; nudity', keep='[]'; otherwise the task's words" in said.out
    assert said.out.count("uce is told") == said.out.count("esd_u is told") == 1
    assert "is told" not in cli(*run).out


# ---- presets of papers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Papered(Method):
    """One with presets."""

    presets = {
        "published": {"sd-nudity": {"x": 2.0}, "*": {"x": 3.0}},
        "released": {"*": {"x": 4.0}},
        "mine": {"*": {"x": 5.0}},
        "other": {"sd*": {"x": 6.0}},
    }
    x: float = 1.0

    def unlearn(self, model, task, prepared=None):
        return model


def test_presets_of_papers_are_for_the_tasks_that_were_run():
    assert Papered.preset("published", "sd-nudity") == {"x": 2.0}
    assert Papered.preset("default", "digits-class") == {}
    assert Papered.preset("mine", "digits-class") == {"x": 5.0}
    for preset, said in (
        ("published", "published no settings for digits-class; it has them for sd-nudity: use --preset default, or"),
        ("released", 'released code of .* has no settings for digits-class; its "\\*" names none'),
        ("other", "preset other of .* has no settings for digits-class; it has them for sd\\*"),
    ):
        with pytest.raises(Unsupported, match=said):
            Papered.preset(preset, "digits-class")
        assert not Papered.has_preset(preset, "digits-class")
    assert Papered.has_preset("published", "sd-nudity")
    with pytest.raises(UserError, match="unknown preset"):
        Papered.preset("publish", "sd-nudity")


def test_methods_without_a_preset_are_left_out_of_all(cli):
    run = ("run", "--method", "all", "--results", "out", "--dry-run")
    said = cli(*run, "--preset", "published", "--task", "digits-class")
    assert said.code == 2
    assert "--preset published is of no method that digits-class can host" in said.err
    assert "left out: the paper of esd published no settings for digits-class" in said.out + said.err
    assert "left out: finetune has no preset published" in said.out + said.err
    assert "unknown preset 'publish'" in cli(*run, "--preset", "publish").err
    said = cli("run", "--method", "esd", "--preset", "published", "--results", "out")
    assert said.code == 2
    assert "the paper of esd published no settings for digits-class" in said.err


@pytest.mark.parametrize(
    ("method", "preset", "task", "relative"),
    [
        ("esd", "published", "sd-nudity", "esd_u"),
        ("esd_u", "published", "sd-style", "esd"),
        ("erasediff", "released", "sd-nudity", "erasediff_released"),
        ("erasediff_released", "published", "cifar10-class", "erasediff"),
        ("esd", "published", "digits-class", ""),
        ("salun", "published", "sd-style", ""),
    ],
)
def test_a_missing_preset_is_answered_with_a_relative_that_has_it(method, preset, task, relative):
    with pytest.raises(UserError) as error:
        RunRequest.of(method=method, preset=preset, task=task).cells("cpu")
    assert re.findall(r"--method (\S+)", str(error.value)) == [relative] * bool(relative)


def test_of_several_methods_those_without_the_preset_are_left_out():
    def asked(*methods, preset="published"):
        lines: list[str] = []
        cells = RunRequest.of(method=methods, preset=preset, task="sd-nudity").cells("cpu", lines.append)
        return [spec.method for spec in cells.asked], lines

    methods, lines = asked("uce", "esd", "finetune", "esd_u")
    assert methods == ["uce", "esd_u"]
    assert [line.partition(";")[0] for line in lines] == [
        "left out: the paper of esd published no settings for sd-nudity",
        "left out: finetune has no preset published",
    ]
    assert "--method esd_u" in lines[0]
    assert asked("uce", "esd", preset="default") == (["uce", "esd"], [])
    with pytest.raises(
        UserError, match="published is of no method that was named, for sd-nudity: give --preset default"
    ):
        asked("esd", "finetune")
    with pytest.raises(UserError, match="unknown preset 'publish'"):
        asked("uce", "esd_u", preset="publish")
    with pytest.raises(
        UserError, match="tuned is of no method that was named, for sd-nudity: run `unlearnbench tune` first"
    ):
        asked("uce", "esd_u", preset="tuned")
