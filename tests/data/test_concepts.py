"""Concepts of one's own: what a file says, each way it can be wrong, and a whole run with one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.support.small_world import read_only
from unlearnbench.data.concepts import Concept, build_concepts, mentions, read_concepts
from unlearnbench.errors import UserError
from unlearnbench.tasks._digits.images import digit_colours
from unlearnbench.tasks.digits_text import DigitsText

EXAMPLE = Path(__file__).parents[1] / "support" / "files" / "seven-and-red.toml"
SEVEN = {"names": ["seven"], "substitute": "one"}
RED = {"names": ["red"], "substitute": "blue"}
RUN = ("run", "--task", "digits-text", "--protocol", "smoke", "--device", "cpu", "--results", "here")


def written(folder, text, name="mine.toml"):
    path = folder / name
    path.write_text(text)
    return path


def concept(**fields):
    """A [[concept]] table; words are given as Python writes them, which TOML reads alike."""
    return "[[concept]]\n" + "".join(f"{name} = {value!r}\n" for name, value in fields.items())


def own(*tables, name="mine", **settings):
    return DigitsText(name, protocol="smoke", concepts=build_concepts(tables, "here"), **settings)


# ---- what a file says ----------------------------------------------------------------------------------------------


def test_a_file_gives_every_field_of_every_concept():
    name, (seven, red) = read_concepts(EXAMPLE)
    assert name == "seven-and-red"
    prompts = ("a photo of a {}", "a blue {}")
    assert seven == Concept(("seven",), ("7",), "one", ("eight", "five"), prompts, "seven")
    assert red == Concept(("red",), ("crimson",), "blue", ("magenta", "yellow"))
    assert (seven.label, red.label, red.name) == ("seven", "red", "red")


def test_what_may_be_left_out(tmp_path):
    name, (only,) = read_concepts(written(tmp_path, concept(**SEVEN), "no-sevens.toml"))
    assert name == "no-sevens"
    assert only == Concept(("seven",), substitute="one")
    _, (other,) = read_concepts(written(tmp_path, concept(names=["ruby"], substitute="blue", judge="red")))
    assert (other.name, other.label) == ("ruby", "red")


def test_a_concept_is_found_as_a_word_and_never_within_another():
    pattern = mentions(["red", "dark red", "7"])
    assert pattern.search("a Red seven")[0] == "Red"
    assert pattern.search("a dark red seven")[0] == "dark red"
    assert not pattern.search("a bored 77 redder")


# ---- files that are refused ----------------------------------------------------------------------------------------

FILES = [
    ("name = ", "is no TOML", "README.md"),
    ("\xff", "is no TOML", "README.md"),
    ("", "it has no [[concept]]", "one [[concept]] table"),
    ("name = 'x'\n[concept]\nnames = ['seven']\n", "it has no [[concept]]", "one [[concept]] table"),
    ("concept = []", "it has no [[concept]]", "one [[concept]] table"),
    ("title = 'x'\n" + concept(**SEVEN), "'title' is unknown", "write `name = …`"),
    ("name = 'a/b'\n" + concept(**SEVEN), "name 'a/b'", "letters, digits"),
    ("name = 3\n" + concept(**SEVEN), "name 3", "letters, digits"),
    ("concept = [1]", "concept 1", "dictionary"),
    (concept(**SEVEN, neighbors=["one"]), "concept 1: unknown field 'neighbors'", "did you mean neighbours"),
    (concept(**SEVEN) + concept(**RED, colour="red"), "concept 2: unknown field 'colour'", "known: judge, names"),
    (concept(substitute="one"), "concept 1, names", "required"),
    (concept(names="seven", substitute="one"), "concept 1, names", "valid tuple"),
    (concept(**SEVEN) + concept(names=["red"], substitute=["blue"]), "concept 2, substitute", "valid string"),
    (concept(**SEVEN, prompts=[7]), "concept 1, prompts", "valid string"),
    (concept(names=[], substitute="one"), "concept 1, names: empty", "give a word"),
    (concept(names=["seven", " "], substitute="one"), "concept 1, names: empty", "give a word"),
    (concept(**SEVEN) + concept(names=["red"]), "concept 2, substitute: empty", "give a word"),
    (concept(**SEVEN, synonyms=[""]), "concept 1, synonyms: empty", "give a word"),
    (concept(**SEVEN, neighbours=["eight", ""]), "concept 1, neighbours: empty", "give a word"),
    (concept(**SEVEN, prompts=["a {}", "a seven"]), "concept 1, prompts: 'a seven' has no {}", "for the name"),
    (concept(names=["seven"], substitute="a Seven"), "concept 1, substitute: 'a Seven' names 'Seven'", "give another"),
    (concept(names=["seven"], substitute="7", synonyms=["7"]), "concept 1, substitute: '7' names '7'", "give another"),
    (concept(**SEVEN) + concept(names=["one"], substitute="two"), "concept 1, substitute: 'one'", "give another"),
    (concept(**SEVEN) + concept(**RED, synonyms=["Seven"]), "concept 2, synonyms: 'Seven'", "of concept 1 already"),
]


@pytest.mark.parametrize(("text", "names", "remedy"), FILES)
def test_files_that_are_no_concepts(cli, tmp_path, text, names, remedy):
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("latin-1" if text == "\xff" else "utf-8"))
    said = cli(*RUN, "--method", "uce", "--concept", path)
    (line,) = said.errors
    assert said.code == 2 and line.startswith(f"unlearnbench: --concept {path}")
    assert names in line and remedy in line
    assert list(tmp_path.iterdir()) == [path], "found out before anything is done"


@pytest.mark.parametrize(("name", "why"), [("nowhere.toml", "no such file or directory"), (".", "is a directory")])
def test_a_file_that_is_not_there(cli, tmp_path, name, why):
    said = cli(*RUN, "--method", "uce", "--concept", name)
    assert said.code == 2
    assert said.errors == [f"unlearnbench: --concept {name} cannot be read ({why}): give a .toml file"]


# ---- words that the task does not know -----------------------------------------------------------------------------

TABLES = [
    ({**SEVEN, "judge": "sevn"}, "unknown label of the judge coloured-digits-cnn 'sevn'", "did you mean seven"),
    ({"names": ["ruby"], "substitute": "blue"}, "'ruby'", "known: blue"),
    ({"names": ["ruby"], "substitute": "blue", "judge": "red"}, "'ruby' letter by letter (r u b y</w>)", "trained on"),
    ({**SEVEN, "synonyms": ["heptad"]}, "'heptad' letter by letter", "trained on"),
    ({**SEVEN, "substitute": "a giraffe"}, "'a giraffe' letter by letter", "trained on"),
    (
        {**SEVEN, "neighbours": ["eight", "zebra"]},
        "unknown neighbour: coloured-digits-cnn cannot name 'zebra'",
        "did you mean zero?",
    ),
    ({**SEVEN, "names": ["digit"], "judge": "seven"}, "what must be kept say 'digit' too", "another word"),
]


@pytest.mark.parametrize(("table", "names", "remedy"), TABLES)
def test_words_that_mean_nothing_to_judge_or_model(monkeypatch, small_text, table, names, remedy):
    monkeypatch.setitem(DigitsText.protocols, "smoke", small_text)  # with prompts of every template
    with pytest.raises(UserError) as caught:
        own(table)
    assert names in str(caught.value) and remedy in str(caught.value)


def test_prompts_over_the_limit_are_counted_and_refused():
    fits, long = "a photo of a {}" + " red" * 9, "a picture of a {}" + " red" * 10
    assert len(own({**SEVEN, "prompts": [fits]}).plan()[0].prompt.split()) == 14  # and a start and an end are 16
    with pytest.raises(UserError, match="longer than the 16 tokens") as caught:
        own({**SEVEN, "prompts": [fits, long, long + " red"]})
    prompts = {item.prompt for item in own({**SEVEN, "prompts": [fits]}).plan()}
    assert f"of {2 * len(prompts)} prompts" not in str(caught.value)
    assert str(caught.value).startswith("4 of ") and long.replace("{}", "seven") in str(caught.value)


def test_prompts_that_the_substitute_makes_too_long_are_refused():
    prompt = "a photo of a {}" + " red" * 9
    with pytest.raises(UserError, match=r"1 of .* longer than the 16 tokens.*'a photo of a red one red"):
        own({"names": ["seven"], "substitute": "red one", "prompts": [prompt]})


def test_a_name_of_the_tasks_own_concepts_is_refused():
    for name in ("seven", "seven+red"):
        with pytest.raises(UserError, match=r"would take the place of the records of --forget seven"):
            own(SEVEN, RED, name=name)
    assert own(SEVEN, RED, name="seven-red").forget == "seven-red"


def test_a_folder_without_weights_is_refused(cli):
    said = cli(*RUN, "--method", "uce", "--concept", EXAMPLE, "--pretrained", "nowhere")
    (line,) = said.errors
    assert said.code == 2 and "nowhere" in line and "unlearnbench pretrain" in line


# ---- concepts under other names than the judge's -------------------------------------------------------------------


def test_names_of_ones_own_reach_captions_and_prompts(monkeypatch):
    empty = torch.zeros(len(digit_colours("train")), 4, 8, 8)  # its captions are looked at alone
    monkeypatch.setattr("unlearnbench.tasks.digits_text.latents", lambda split, folder: empty)
    task = own({"names": ["crimson"], "substitute": "blue", "judge": "red", "neighbours": ["magenta"]})
    captions = [task.text(row) for row in task.captions("forget")]
    assert captions and all("crimson" in caption for caption in captions)
    assert all(" red" not in f" {caption}" for caption in captions)
    assert not any("red" in task.text(row) or "crimson" in task.text(row) for row in task.captions("retain"))
    assert [task.text(row) for row in task.names("forget")] == ["crimson"]
    assert "red" not in [task.text(row) for row in task.names("retain")]
    asked = [item for item in task.plan() if item.group == "forget"]
    assert all("crimson" in item.prompt and item.label == task.labels()["red"] for item in asked)
    (forget,) = task.batches(1, 64, "forget")
    assert task.forgotten(forget.y).all()


def test_neither_case_nor_signs_of_a_substitute_matter():
    task = own({"names": ["Seven"], "substitute": "one \\1", "judge": "seven"})
    (row,) = task.substitute(task.tokens(["a red seven"]))
    assert task.text(row).startswith("a red one")


# ---- the command line ----------------------------------------------------------------------------------------------

WORDS = [
    (("--forget", "seven", "--concept", EXAMPLE), "--forget and --concept exclude each other", "give one of them"),
    (("--concept", EXAMPLE, "--task", "digits-class", "--protocol", "default"), "digits-class takes no", "are 0, 1"),
    (("--forget", "sevn"), "'sevn'", "did you mean seven"),
    (("--forget", "seven+sevn"), "'sevn'", "did you mean seven"),
    (("--forget", "seven+"), "''", "known: blue"),
    (("--forget", "one+seven"), "--forget one+seven: concept 1, substitute: 'seven'", "in a --concept file"),
]


@pytest.mark.parametrize(("words", "names", "remedy"), WORDS)
def test_words_that_are_refused(cli, tmp_path, words, names, remedy):
    said = cli(*RUN, "--method", "uce", *words)
    (line,) = said.errors
    assert said.code == 2 and names in line and remedy in line
    assert list(tmp_path.iterdir()) == []


def test_several_concepts_by_name_are_one_whatever_their_order():
    assert DigitsText("seven+red").forget == DigitsText("red+seven").forget == "seven+red"
    assert DigitsText("seven+seven").forget == "seven"
    assert [concept.name for concept in DigitsText("red+seven").erased] == ["seven", "red"]


def test_a_run_with_a_file_is_recorded_with_it_and_can_be_verified(cli, tmp_path):
    said = cli(*RUN, "--concept", EXAMPLE, "--method", "uce")
    assert said.code == 0, said.err
    record = read_only(tmp_path / "here")
    assert record.status in ("ok", "unreliable"), record.reason
    assert record.forget == "seven-and-red"
    assert build_concepts(record.protocol.settings["concepts"], "the record") == read_concepts(EXAMPLE)[1]
    assert record.protocol.hash != DigitsText("seven+red", protocol="smoke").protocol.hash
    assert {"ua", "ua_synonyms", "ua_held_out", "ra", "ra_neighbours"} <= set(record.scores)
    path = tmp_path / "here/digits-text/smoke/seven-and-red/uce/seed-0.json"
    verified = cli("verify", path, "--device", "cpu")
    assert verified.code == 0, verified.out + verified.err
    assert cli("validate", "here").code == 0


def test_a_files_concepts_are_in_the_protocol():
    task = own(SEVEN, RED)
    assert [asdict(concept) for concept in task.protocol.concepts] == [asdict(concept) for concept in task.erased]
    assert DigitsText("seven", protocol="smoke").protocol.concepts == ()
