"""What a record says is data: no name of it leads out of its folder, no character of it steers what shows it."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from tests.support.small_world import ROOT, made_record
from unlearnbench.errors import Damaged, UserError, one_line
from unlearnbench.launch.transfer import put, unpack
from unlearnbench.names import inside, wrong_name
from unlearnbench.printable import printable
from unlearnbench.records.folder import load_all
from unlearnbench.records.schema import read_record, write_record
from unlearnbench.records.sealed_json import sealed

NO_NAMES = [
    "",
    ".",
    "..",
    "../../x",
    "/etc",
    "a/b",
    "a\\b",
    "a\nb",
    "a\0b",
    "\x1b[31m",
    "a\u202eb",
    "a\u200bb",
    "a.",
    "a ",
]
NO_NAMES += ["-a", ".a", "~", "$a", "a|b", "a<b", "[red]", "x" * 129, "\u00fc" * 120, "\ud800"]
ESCAPES = "\x1b]0;gotcha\x07\x1b[31m\u202e\u2066\x00\x9b\r\nnext\u2028line"


@pytest.mark.parametrize("name", NO_NAMES)
def test_no_names(name):
    assert wrong_name(name)


@pytest.mark.parametrize(
    "name",
    ["3", "seven+red", "garbage truck", "Van Gogh", "esd@published", "esd+lr=0.001", "latent_probe@0.5", "M\u00fcnch"],
)
def test_names(name):
    assert wrong_name(name) == ""


def test_every_committed_record_has_names():
    assert len(load_all(ROOT / "results")) > 50


def forged(record, path: Path, *changes: tuple[str, object]) -> Path:
    """A record with other values at these dotted places, sealed as if it had been written so."""
    values = record.model_dump(mode="json")
    for place, value in changes:
        *parents, last = place.split(".")
        inner = values
        for parent in parents:
            inner = inner[parent]
        if value is RENAMED:
            inner["\x1b[31m"] = inner.pop(last)
        else:
            inner[last] = value
    values["content_hash"] = sealed(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


RENAMED = "a key of this name"
FORGERIES = [
    *((place, value) for place in ("task", "protocol.name", "forget", "method.preset") for value in NO_NAMES),
    *(("method.name", value) for value in [*NO_NAMES, "evil.py", "a b"]),
    ("protocol.hash", "../../x"),
    ("seeds.unlearning", -1),
    ("seeds.unlearning", 2**63),
    ("judge.name", "a\x1bb"),
    ("created", "2026\n"),
    ("scores.ua.unit", "\u202e"),
    ("scores.ua", RENAMED),
    ("method.settings.lr", RENAMED),
]


@pytest.fixture
def folder(tmp_path):
    """Two good records that tables can be made of."""
    for method in ("original", "esd"):
        record = made_record(method, scores={"ua": 0.5, "ra": 0.5})
        write_record(record, record.path(tmp_path / "results"))
    return tmp_path / "results"


@pytest.mark.parametrize(("place", "value"), FORGERIES, ids=lambda value: ascii(value)[:24])
def test_a_forged_record_is_refused_where_it_is_read(folder, place, value):
    path = forged(made_record(scores={"ua": 0.5}), folder / "a/b/c/d/seed-0.json", (place, value))
    with pytest.raises(Damaged) as refused:
        read_record(path)
    assert printable(one_line(refused.value)) == one_line(refused.value)


COMMANDS = [
    ("validate", "{results}"),
    *(("leaderboard", "{results}", "--format", kind) for kind in ("terminal", "markdown", "csv", "latex", "json")),
    ("leaderboard", "{results}", "--write"),
    ("report", "{results}"),
    ("compare", "{record}", "{good}"),
    ("diff", "{record}", "{good}"),
    ("verify", "{record}"),
    ("plot", "pareto", "{results}"),
]


def shown_safely(text: str) -> bool:
    return all(unicodedata.category(c) not in ("Cc", "Cf", "Cs") or c == "\n" for c in text)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(("place", "value"), [("forget", "../../x"), ("task", ESCAPES), ("protocol.hash", "../x" * 9)])
def test_no_command_follows_a_forged_record(cli, tmp_path, folder, command, place, value):
    path = forged(made_record(scores={"ua": 0.5}), folder / "a/b/c/d/seed-0.json", (place, value))
    good, before = folder / "digits-class/default/3/esd/seed-0.json", sorted(tmp_path.rglob("*"))
    said = cli(*(word.format(results=folder, record=path, good=good) for word in command))
    assert said.code == {"report": 0, "validate": 1}.get(command[0], 2)
    assert "damaged" in said.out + said.err
    assert "Traceback" not in said.err and shown_safely(said.out) and shown_safely(said.err)
    assert {path for path in tmp_path.rglob("*") if path not in before} <= {tmp_path / "report.html"}
    if command[0] == "report":
        assert shown_safely((tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", COMMANDS[:-2], ids=" ".join)
def test_what_a_record_says_freely_is_shown_without_what_steers_a_terminal(cli, tmp_path, folder, command):
    said = {"overrides": {"part": ESCAPES}, "settings": {"part": ESCAPES}, "division": "custom"}
    record = made_record(
        "salun",
        method_changes=said,
        status="diverged",
        reason=ESCAPES,
        environment={"device": ESCAPES, "memory": [ESCAPES]},
    )
    path = record.path(folder)
    write_record(record, path)
    good = folder / "digits-class/default/3/esd/seed-0.json"
    found = cli(*(word.format(results=folder, record=path, good=good) for word in command))
    assert "Traceback" not in found.err and shown_safely(found.out) and shown_safely(found.err)
    for page in [*tmp_path.glob("*.html"), *folder.glob("*.md")]:
        assert shown_safely(page.read_text(encoding="utf-8"))


def test_pictures_stay_in_the_folder_where_a_task_is_a_link(cli, tmp_path, folder):
    (folder / "digits-class").rename(tmp_path / "elsewhere")
    (folder / "digits-class").symlink_to(tmp_path / "elsewhere")
    said = cli("leaderboard", folder, "--write")
    assert said.code == 2 and "leads out of" in said.err
    assert not list((tmp_path / "elsewhere").rglob("*.png"))


def test_a_path_must_stay_in_its_folder(tmp_path):
    assert inside(tmp_path, "a/b.json") == tmp_path / "a/b.json"
    for path in ("../x", "a/../../x", "/etc/passwd", "..", "", "a/.."):
        with pytest.raises(UserError):
            inside(tmp_path, path)
    (tmp_path / "link").symlink_to(tmp_path.parent)
    with pytest.raises(UserError):
        inside(tmp_path, "link/x")


@pytest.mark.parametrize(
    "name", ["../a/b", "weights/../x", "/weights/b/c", "weights\\b/c/d", "weights/a/\x1b", "weights//x"]
)
def test_no_parcel_leads_out(tmp_path, name):
    with pytest.raises(UserError):
        unpack({name: b""}, tmp_path / "store")
    with pytest.raises(UserError):
        put({f"{name}/x/seed-0.json": b""}, tmp_path / "results")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_record_that_could_not_be_read_again_is_not_written(tmp_path):
    record = made_record(scores={"ua": 0.5})
    wrong = record.model_copy(update={"attacks": {}, "scores": {"a\nb": record.scores["ua"]}})
    with pytest.raises(UserError, match="cannot write"):
        write_record(wrong, tmp_path / "seed-0.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", [ESCAPES, "a\tb", "\ud800", "\u00ad"])
def test_printable_text_is_one_line_that_any_stream_takes(text):
    shown = printable(text)
    assert shown_safely(shown) and "\n" not in shown
    shown.encode()
    assert printable("caf\u00e9 \u2265 \u6f22 9") == "caf\u00e9 \u2265 \u6f22 9"
