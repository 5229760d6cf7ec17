"""Bad input: exit code 2, one line that names the value and a remedy, nothing half-written."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.support.small_world import NUDGE, debris, run_cell, small_protocol, write_method, write_nudge
from unlearnbench.tasks.digits_class import DigitsClass

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def refused(cli, tmp_path):
    """The one line that a command is refused with."""

    def call(*words: object, names: str, remedy: str, code: int = 2) -> str:
        said = cli(*words)
        assert said.code == code, said
        assert len(said.errors) == 1, said.err
        (line,) = said.errors
        assert line.startswith("unlearnbench: ")
        assert names in line
        assert remedy in line
        assert "Traceback" not in said.out + said.err
        assert debris(tmp_path) == []
        return line

    return call


RUN = ("run", "--results", "here", "--method")
WORDS = [
    ((*RUN, "esdd"), "'esdd'", "did you mean esd"),
    ((*RUN, "checkpoint"), "checkpoint", "--set path="),
    ((*RUN, "qqqq"), "'qqqq'", "`unlearnbench list methods`"),
    ((*RUN, "esd", "--task", "digit-class"), "'digit-class'", "did you mean digits-class"),
    ((*RUN, "esd", "--task", "../../x"), "'../../x'", "known: cifar10-class"),
    ((*RUN, "esd", "--forget", "three"), "'three'", "known: 0, 1, 2"),
    ((*RUN, "esd", "--forget", "10"), "'10'", "did you mean"),
    ((*RUN, "esd", "--forget", "3,x"), "'x'", "known: 0, 1"),
    ((*RUN, "esd", "--forget", "../../x"), "'../../x'", "known: 0, 1"),
    ((*RUN, "esd", "--forget", "[bold]"), "'[bold]'", "known: 0, 1"),
    ((*RUN, "esd", "--protocol", "defualt"), "'defualt'", "did you mean default"),
    ((*RUN, "esd", "--protocol", "../../x"), "'../../x'", "known: default"),
    ((*RUN, "esd", "--preset", "publishd"), "'publishd'", "did you mean published"),
    ((*RUN, "esd", "--preset", "../../x"), "'../../x'", "known: default, published"),
    ((*RUN, "original", "--preset", "published"), "'published'", "default"),
    ((*RUN, "esd", "--set", "learning=1"), "'learning'", "known: "),
    ((*RUN, "esd", "--set", "step=1"), "'step'", "did you mean steps"),
    ((*RUN, "original", "--set", "lr=1"), "'lr'", "it has none"),
    ((*RUN, "esd", "--set", "steps=many"), "steps=many", "valid integer"),
    ((*RUN, "esd", "--set", "steps=1.5"), "steps=1.5", "valid integer"),
    ((*RUN, "esd", "--set", "lr=1e"), "lr=1e", "valid number"),
    ((*RUN, "esd", "--set", "lr"), "--set lr:", "write key=value"),
    ((*RUN, "esd", "--set", "lr="), "--set lr=:", "write key=value"),
    ((*RUN, "esd", "--set", "=1"), "--set =1:", "write key=value"),
    ((*RUN, "esd", "--seeds", "3-1"), "--seeds 3-1", "0-2"),
    ((*RUN, "esd", "--seeds", "abc"), "--seeds abc", "0-2"),
    ((*RUN, "esd", "--seeds", "-1"), "--seeds -1", "0-2"),
    ((*RUN, "esd", "--seeds", "0,,1"), "--seeds 0,,1", "0-2"),
    ((*RUN, "esd", "--seeds", "0-99999"), "--seeds 0-99999", "at most 1,000"),
    ((*RUN, "missing/x.py"), "missing/x.py", "give the path of a .py file"),
    ((*RUN, "esd", "--pretrained", "nowhere"), "nowhere", "unlearnbench pretrain"),
    (("list", "method"), "'method'", "did you mean methods"),
    (("list", "rec"), "'rec'", "did you mean rece, recall or receler?"),
    (("list", "presets"), "presets", "`unlearnbench list METHOD`"),
    (("list", "protocols"), "protocols", "`unlearnbench list TASK`"),
    ((*RUN, "esd", "--task", "sd-nudity", "--data", "nowhere"), "nowhere does not exist", "fetch --task sd-nudity"),
    (("check", "nowhere.py"), "nowhere.py", "give the path"),
    (("new-method", "Bad-Name"), "'Bad-Name'", "such as my_method"),
    (("new-method", "../x"), "'../x'", "such as my_method"),
    (("new-method", "esd"), "'esd'", "such as my_esd"),
    (("leaderboard", "nowhere"), "nowhere", "make some with"),
    (("pretrain", "--task", "x"), "'x'", "known: cifar10-class"),
    (("fetch", "--task", "x"), "'x'", "known: cifar10-class"),
]


@pytest.mark.parametrize(("words", "names", "remedy"), WORDS, ids=lambda value: " ".join(value[-2:]))
def test_words_that_mean_nothing(refused, tmp_path, words, names, remedy):
    refused(*words, names=names, remedy=remedy)
    assert list(tmp_path.iterdir()) == [], "found out before anything is done"


@pytest.mark.parametrize("words", [(*RUN, ""), (*RUN, ","), (*RUN, "original", "--forget", "")], ids=" ".join)
def test_empty_lists_are_refused(cli, words):
    assert cli(*words).code == 2


@pytest.mark.parametrize(
    "words",
    [("run",), ("run", "--method", "esd", "--bogus"), ("bogus",), ("run", "--method", "esd", "--device", "tpu")],
    ids=" ".join,
)
def test_usage_errors_exit_with_2_and_no_traceback(cli, tmp_path, words):
    said = cli(*words)
    assert said.code == 2
    assert "Error" in said.err
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


def test_no_cuda_here(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(*RUN, "esd", "--device", "cuda", names="--device cuda", remedy="--device cpu")


FILES = [
    ("mine", "", "defines no Method", "subclass unlearnbench.Method"),
    ("mine", NUDGE + "\n\n" + NUDGE.replace("Nudge", "Other"), "Nudge and Other", "leave one Method a file"),
    ("mine", "def (", "SyntaxError", "mine.py, line 1"),
    ("mine", "import no_such_package", "no_such_package", "cannot be imported"),
    ("my-method", NUDGE, "my-method.py", "such as my_method.py"),
    ("esd", NUDGE, "esd.py", "such as my_esd.py"),
]


@pytest.mark.parametrize(("name", "text", "names", "remedy"), FILES)
def test_files_that_are_no_method(refused, tmp_path, name, text, names, remedy):
    (tmp_path / f"{name}.py").write_text(text)
    refused(*RUN, f"{name}.py", names=names, remedy=remedy)
    refused("check", f"{name}.py", names=names, remedy=remedy)
    assert not (tmp_path / "here").exists()


BODIES = [
    ("return None", "mine.unlearn returned NoneType", "end it with `return model`"),
    ("return 3", "returned int", "end it with `return model`"),
    (
        'next(iter(model.select("full").values())).data.fill_(float("nan"))\nreturn model',
        "weights that are not finite",
        "lower its lr",
    ),
    (
        'next(iter(model.select("full").values())).data.fill_(float("inf"))\nreturn model',
        "weights that are not finite",
        "lower its lr",
    ),
    ('x = 1\nraise ValueError("boo")', "ValueError: boo (mine.py, line 18)", "UNLEARNBENCH_DEBUG=1"),
    ("return model.select(1, 2)", "TypeError", "(mine.py, line 17)"),
    ("raise ValueError('[bold]boo')", "[bold]boo", "UNLEARNBENCH_DEBUG=1"),
]


@pytest.mark.parametrize(("body", "names", "remedy"), BODIES)
def test_methods_that_go_wrong(refused, tmp_path, body, names, remedy):
    refused(*RUN, write_method(tmp_path, body), names=names, remedy=remedy, code=1)
    assert not (tmp_path / "here/digits-class/default/3/mine").exists()


def test_an_error_of_several_lines_is_told_in_one(refused, tmp_path):
    refused(
        *RUN,
        write_method(tmp_path, 'raise ValueError("one\\n\\ttwo")'),
        names="one",
        remedy="UNLEARNBENCH_DEBUG",
        code=1,
    )


def test_debug_shows_the_traceback(cli, tmp_path, monkeypatch):
    from unlearnbench.errors import UserError

    monkeypatch.setenv("UNLEARNBENCH_DEBUG", "1")
    with pytest.raises(UserError) as caught:
        cli(*RUN, write_method(tmp_path, 'raise ValueError("boo")'))
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("value", ["lr=inf", "lr=nan", "weight=inf", "weight=nan"])
def test_settings_that_are_no_numbers_leave_no_record_that_is_no_json(cli, tmp_path, value):
    said = cli(*RUN, "gradient_ascent", "--set", value, "--set", "steps=3")
    assert said.code in (0, 2)
    assert "Traceback" not in said.err

    def strict(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    for path in (tmp_path / "here").rglob("*.json"):
        json.loads(path.read_text(), parse_constant=strict)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("run", "--method", "nudge.py", "--results"), "--results"),
        (("pretrain", "--out"), "--out"),
        (("new-method", "mine", "--out"), "--out"),
    ],
    ids=["run", "pretrain", "new-method"],
)
@pytest.mark.parametrize("below", ["/x", ""])
def test_a_folder_that_cannot_be_written(refused, tmp_path, words, remedy, below):
    write_nudge(tmp_path)
    (tmp_path / "file").write_text("in the way")
    refused(*words, f"file{below}", names=f"file{below}", remedy=remedy)
    assert (tmp_path / "file").read_text() == "in the way"
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"file", "nudge.py"}


@pytest.mark.parametrize("below", ["", "/x"])
def test_a_store_that_cannot_be_written(refused, tmp_path, monkeypatch, below):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / f"file{below}"))
    refused(*RUN, write_nudge(tmp_path), names=f"file{below}", remedy="UNLEARNBENCH_CACHE")
    assert list((tmp_path / "here").rglob("*.json")) == []


def test_a_page_that_cannot_be_written(cli, refused, tmp_path):
    assert cli(*RUN, write_nudge(tmp_path)).code == 0
    (tmp_path / "here/README.md").mkdir()
    refused("leaderboard", "here", "--write", names="here", remedy="another folder")


def test_leaderboard_formats_and_columns(cli, refused, tmp_path):
    assert cli(*RUN, write_nudge(tmp_path)).code == 0
    refused("leaderboard", "here", "--format", "xml", names="'xml'", remedy="known: terminal, markdown")
    refused("leaderboard", "here", "--columns", "ua,fidd", names="'fidd'", remedy="did you mean fid")
    (tmp_path / "empty").mkdir()
    refused("leaderboard", "empty", names="empty", remedy="--results empty")


def cut(path):
    path.write_text(path.read_text()[:-100])


def edit(path):
    raw = json.loads(path.read_text())
    raw["scores"]["ua"]["value"] = 0.99
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize("damage", [cut, edit])
def test_a_damaged_record_is_named_and_never_overwritten(cli, refused, tmp_path, damage):
    words = (*RUN, write_nudge(tmp_path))
    assert cli(*words).code == 0
    path = tmp_path / "here/digits-class/default/3/nudge/seed-0.json"
    damage(path)
    text = path.read_text()
    for use in (words, (*words, "--force"), ("leaderboard", "here")):
        refused(
            *use, names="here/digits-class/default/3/nudge/seed-0.json", remedy="delete it and run its command again"
        )
        assert path.read_text() == text
    path.unlink()
    assert cli(*words).code == 0


def flip(folder):
    data = bytearray((folder / "data.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "data.safetensors").write_bytes(data)


@pytest.fixture(scope="module")
def filled_store(tmp_path_factory):
    """A store with all that `original` and `nudge` need, and nothing else."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DigitsClass.protocols, "default", small_protocol())
        for method in ("original", write_nudge(folder)):
            run_cell(method, folder / "store", folder / "here")
    return folder / "store"


@pytest.mark.parametrize(  # each kind is read by the same code
    ("kind", "damage"),
    [("weights", flip), ("samples", flip), ("judged", lambda folder: cut(folder / "meta.json"))],
    ids=["weights", "samples", "judged"],
)
def test_a_damaged_store_entry_is_set_aside_and_the_same_command_then_succeeds(
    cli, refused, tmp_path, fresh_store, filled_store, kind, damage
):
    shutil.copytree(filled_store, fresh_store)
    entry = min((fresh_store / kind).iterdir())
    damage(entry)
    words = (*RUN, write_nudge(tmp_path))
    refused(*words, names=f"store entry {entry} is damaged", remedy="run the same command again")
    assert [path.name for path in (fresh_store / kind).glob("*.damaged")] == [f"{entry.name}.damaged"]
    said = cli(*words)
    assert said.code == 0, said.err
    assert (entry / "meta.json").is_file()


def test_a_pickle_in_place_of_weights(refused, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(DigitsClass("3").folder, folder)
    torch.save({"a": torch.ones(1)}, folder / "model.safetensors")
    refused(
        *RUN,
        "original",
        "--pretrained",
        "own",
        names="own/model.safetensors is a pickle",
        remedy="save its tensors again",
    )


def test_weights_that_are_not_those_of_the_manifest(refused, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(DigitsClass("3").folder, folder)
    shutil.copy(folder / "judge.safetensors", folder / "model.safetensors")
    refused(
        *RUN, "original", "--pretrained", "own", names="model.safetensors is damaged", remedy="unlearnbench pretrain"
    )


def test_a_file_of_that_name_is_pointed_at(refused, tmp_path):
    write_method(tmp_path, "return model", name="mymethod")
    refused("run", "--method", "mymethod", names="'mymethod'", remedy="--method mymethod.py")
