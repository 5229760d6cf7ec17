"""What was fetched stays what it was, and the command `fetch`."""

from __future__ import annotations

import hashlib

import pytest

from tests.support.web import BODY, COMMIT, HASH, NAME, OTHER, failing, lying, source
from unlearnbench import registry
from unlearnbench.data import download
from unlearnbench.data.sources import LOCK, check_source, fetch_source, known, locks, state
from unlearnbench.errors import Damaged, UserError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def task(monkeypatch):
    """A task with these sources, for the command line."""

    def make(*sources):
        monkeypatch.setattr(registry, "load_task", lambda name: type("Fake", (), {"sources": sources}))

    return make


# ---- the lock --------------------------------------------------------------------------------------------------------


def test_what_was_locked_first_is_not_replaced_by_another(site, folder):
    fetch_source(source(site), folder).unlink()
    before = (folder / LOCK).read_bytes()
    site.files["a"] = OTHER
    with pytest.raises(Damaged) as caught:
        fetch_source(source(site), folder)
    for word in (NAME, site.at("a"), HASH[:12], str(folder / LOCK), "delete its entry"):
        assert word in str(caught.value)
    assert lying(folder) == [LOCK]
    assert (folder / LOCK).read_bytes() == before
    (folder / LOCK).unlink()
    assert fetch_source(source(site), folder).read_bytes() == OTHER


def test_of_another_size_nothing_is_fetched(site, folder):
    fetch_source(source(site), folder).unlink()
    site.files["a"] = OTHER + b"!"
    assert "10501 bytes, not 10500" in failing(site, folder)
    assert lying(folder) == [LOCK]


@pytest.mark.parametrize(
    ("told", "says"),
    [({"sha256": "0" * 64}, "not 000000000000"), ({"size": 9}, "not 9")],
    ids=lambda value: next(iter(value), "")[:8],
)
def test_what_the_source_says_of_itself_holds(site, folder, told, says):
    line = failing(site, folder, **told)
    assert says in line
    assert "newer one" in line
    assert lying(folder) == []


def test_the_sources_own_hash_comes_before_the_lock(site, folder):
    fetch_source(source(site), folder).unlink()
    site.files["a"] = OTHER + b"!"
    told = source(site, sha256=hashlib.sha256(OTHER + b"!").hexdigest())
    assert fetch_source(told, folder).read_bytes() == OTHER + b"!"
    assert check_source(folder, told).is_file()
    assert locks(folder)[NAME].size == len(OTHER) + 1


@pytest.mark.parametrize("damage", [BODY[:-1], BODY[:-1] + b"?", b""], ids=["cut", "flipped", "empty"])
def test_a_damaged_file_is_named_and_left(site, folder, damage):
    path = fetch_source(source(site), folder)
    path.write_bytes(damage)
    assert state(folder, source(site)) == "differs"
    for use in (lambda: check_source(folder, source(site)), lambda: fetch_source(source(site), folder)):
        with pytest.raises(Damaged, match=r"delete it and fetch again") as caught:
            use()
        assert str(path) in str(caught.value)
    assert path.read_bytes() == damage
    assert len(site.asked) == 1
    path.unlink()
    assert fetch_source(source(site), folder).read_bytes() == BODY


def test_a_file_put_there_by_hand_is_locked_without_a_request(site, folder):
    (folder / NAME).parent.mkdir(parents=True)
    (folder / NAME).write_bytes(BODY)
    assert check_source(folder, source(site)) == folder / NAME
    fetch_source(source(site), folder)
    assert locks(folder) == {NAME: (len(BODY), HASH, None)}
    assert site.asked == []
    with pytest.raises(Damaged, match="SHA-256"):
        check_source(folder, source(site, sha256="0" * 64))
    (folder / LOCK).unlink()
    with pytest.raises(Damaged, match="10500 bytes, not 9"):
        fetch_source(source(site, size=9), folder)
    assert locks(folder) == {}


def test_a_file_that_is_not_there_is_named_with_the_command(site, folder):
    with pytest.raises(UserError, match=r"parquet is not in .*: fetch it with `unlearnbench fetch`, or .* --data"):
        check_source(folder, source(site))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": {}}', '{"a": null}', '{"a": {"size": "x"}}'])
def test_a_damaged_lock_is_named(site, folder, text):
    folder.mkdir()
    (folder / LOCK).write_text(text)
    with pytest.raises(Damaged, match=r"lock\.json is damaged: restore it"):
        known(folder, source(site))
    assert "lock.json" in failing(site, folder)
    assert site.asked == []


# ---- the command -----------------------------------------------------------------------------------------------------


def test_a_task_that_ships_all(cli):
    for words in ((), ("--list",)):
        said = cli("fetch", "--task", "digits-class", *words)
        assert (said.code, said.out, said.err) == (0, "digits-class ships all that it needs\n", "")


ABOUT = ["training", "images"]


def row(said, name):
    (line,) = [line for line in said.out.splitlines() if line.strip().startswith(name)]
    return line


def test_the_list_says_what_is_there_and_asks_nobody(cli, site, folder, task):
    names = ("fresh", "known", "gated", "whole", "spoilt")
    more = {"known": {"size": 3 << 20, "revision": COMMIT}, "gated": {"login": True}}
    site.files |= {name: BODY for name in names}
    sources = {name: source(site, name=name, path=name, **more.get(name, {})) for name in names}
    for name in ("whole", "spoilt"):
        fetch_source(sources[name], folder)
    (folder / "spoilt").write_bytes(OTHER)
    asked, before = len(site.asked), lying(folder)
    task(*sources.values())
    said = cli("fetch", "--task", "fake", "--list", "--data", folder)
    assert (said.code, said.err) == (0, "")
    assert f"fake: {folder}" in said.out
    for head in ("file", "use", "login", "size", "revision", "state", "files · MIT"):
        assert head in said.out
    assert row(said, "fresh").split()[1:] == [*ABOUT, "no", "not", "known", "—", "missing"]
    assert row(said, "known").split()[1:] == [*ABOUT, "no", "3.0", "MiB", COMMIT[:12], "missing"]
    assert row(said, "gated").split()[1:] == [*ABOUT, "yes", "not", "known", "—", "missing"]
    assert row(said, "whole").split()[-5:] == ["no", "0.0", "MiB", hashlib.md5(BODY).hexdigest()[:12], "there"]
    assert row(said, "spoilt").rstrip().endswith("differs")
    assert (len(site.asked), lying(folder)) == (asked, before)


def test_fetch_brings_what_is_missing_into_the_store(cli, site, task, fresh_store):
    site.files["b"] = OTHER
    task(source(site), source(site, name="b", path="b"))
    folder = fresh_store / "data/fake"
    fetch_source(source(site, name="b", path="b"), folder)
    said = cli("fetch", "--task", "fake")
    assert said.code == 0, said.err
    assert said.out == f"fake: fetched 1 of 2 files, in {folder}\n"
    assert said.err == f"[1/1] {NAME} · MIT\n"
    assert lying(folder) == ["b", LOCK, NAME]


def test_what_is_there_is_answered_without_a_request(cli, site, folder, task):
    task(source(site))
    cli("fetch", "--task", "fake", "--data", folder)
    asked = len(site.asked)
    said = cli("fetch", "--task", "fake", "--data", folder)
    assert (said.code, said.out, said.err) == (0, f"fake: 1 file, all there already, in {folder}\n", "")
    assert len(site.asked) == asked == 1


def test_a_damaged_file_is_named_before_anything_is_fetched(cli, site, folder, task):
    task(source(site, name="b", path="b"), source(site))
    fetch_source(source(site), folder).write_bytes(OTHER)
    said = cli("fetch", "--task", "fake", "--data", folder)
    assert said.code == 2
    (line,) = said.errors
    assert line.startswith(f"unlearnbench: {folder / NAME} is not what it was")
    assert len(site.asked) == 1


def test_stopped_in_the_middle_it_keeps_what_is_finished(cli, site, folder, task, monkeypatch):
    site.files["b"] = OTHER
    task(source(site, name="b", path="b"), source(site))
    real = download._require_length

    def stopped(came, size):
        if site.asked[-1].path == "a" and came > 3000:
            raise KeyboardInterrupt
        real(came, size)

    with monkeypatch.context() as patch:
        patch.setattr(download, "_require_length", stopped)
        said = cli("fetch", "--task", "fake", "--data", folder)
    assert said.code == 130
    assert said.errors == ["stopped: finished work is kept; run the same command again to continue"]
    assert lying(folder) == ["b", LOCK]
    assert cli("fetch", "--task", "fake", "--data", folder).code == 0
    assert [ask.path for ask in site.asked] == ["b", "a", "a"]


@pytest.mark.parametrize("below", ["", "/x"])
def test_a_folder_that_is_a_file(cli, site, tmp_path, task, below):
    (tmp_path / "file").write_text("in the way")
    task(source(site))
    said = cli("fetch", "--task", "fake", "--data", f"file{below}")
    assert said.code == 2
    (line,) = said.errors
    assert f"cannot write to file{below}/{NAME}" in line
    assert "--data" in line
    assert cli("fetch", "--task", "fake", "--list", "--data", f"file{below}").code == 0
    assert (tmp_path / "file").read_text() == "in the way"
