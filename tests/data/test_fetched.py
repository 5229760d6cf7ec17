"""What was fetched stays what it was, and the command `fetch`."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.support.web import BODY, COMMIT, HASH, NAME, OTHER, failing, lying, source
from unlearnbench import registry
from unlearnbench.cli.console import PIPE
from unlearnbench.data import download
from unlearnbench.data.published_files import PublishedFile, published_files
from unlearnbench.data.sources import (
    LOCK,
    check_given,
    check_source,
    fetch_source,
    is_published,
    known,
    locks,
    source_path,
    state,
)
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


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("sd-nudity", lambda task: next(task.reference())),
        ("sd-nudity", lambda task: task.extractor),
        ("sd-nudity", lambda task: task.plan()),
        ("sd-nudity", lambda task: task.witnesses()),
        ("sd-nudity", lambda task: task.pretrained()),
        ("sd-object", lambda task: task.made_judge()),
        ("sd-style", lambda task: task.made_judge()),
        ("cifar10-class", lambda task: task.images),
        ("cifar10-class", lambda task: task.judge()),
        ("cifar10-class", lambda task: task.pretrain_judge(task.folder)),
    ],
)
def test_the_command_names_the_task_whose_file_is_missing(tmp_path, name, read):
    cls = registry.load_task(name)
    about = {"protocol": "smoke"} if name == "cifar10-class" else {}
    with pytest.raises(UserError, match=f"`unlearnbench fetch --task {name}`"):
        read(cls(cls.default_forget, data=tmp_path, **about))


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
    for head in ("file", "use", "login", "size", "revision", "SHA-256", "state", "address", "files · MIT"):
        assert head in said.out
    at = {name: site.at(name) for name in names}
    assert row(said, "fresh").split()[1:] == [*ABOUT, "no", "not", "known", "—", "—", "missing", at["fresh"]]
    assert row(said, "known").split()[1:] == [*ABOUT, "no", "3.0", "MiB", COMMIT[:12], "—", "missing", at["known"]]
    assert row(said, "gated").split()[1:] == [*ABOUT, "yes", "not", "known", "—", "—", "missing", at["gated"]]
    etag = hashlib.md5(BODY).hexdigest()[:12]
    assert row(said, "whole").split()[3:] == ["no", "10.3", "KiB", etag, HASH, "there", at["whole"]]
    assert row(said, "spoilt").split()[-2:] == ["differs", at["spoilt"]]
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


def test_without_a_task_it_says_what_there_is(cli, tmp_path):
    said = cli("fetch", "--data", tmp_path)
    assert (said.code, said.err) == (0, "")
    for line in (
        f"sd-nudity: {len(registry.load_task('sd-nudity').sources)} files",
        "by name",
        "--task TASK",
        "--list",
    ):
        assert line in said.out
    assert lying(tmp_path) == []


def test_the_list_of_all_has_size_licence_hash_and_address_of_every_published_file(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("unlearnbench.cli.console.out._width", PIPE)
    said = cli("fetch", "--list", "--data", tmp_path)
    assert (said.code, said.err) == (0, "")
    for file in published_files().values():
        size = f"{file.size / 2**10:.1f} KiB" if file.size < 2**20 else f"{file.size / 2**20:.1f} MiB"
        for fact in (file.name, size, file.sha256, file.source.url, f"files · {file.licence}"):
            assert fact in said.out


@pytest.fixture
def published(monkeypatch, site):
    """Two published files that the site has, in place of the real ones."""
    site.files |= {"org/repo/c/x/a.csv": BODY, "org/repo/c/x/b.csv": OTHER}
    files = {
        name: PublishedFile(
            name, "org/repo", "c", f"x/{name}", len(body), hashlib.sha256(body).hexdigest(), "mit", "use"
        )
        for name, body in (("a.csv", BODY), ("b.csv", OTHER))
    }
    monkeypatch.setattr("unlearnbench.data.published_files.RAW", site.url)
    monkeypatch.setattr("unlearnbench.data.published_files.published_files", lambda: files)
    return files


def test_files_are_fetched_by_name(cli, site, folder, published):
    site.headers["ETag"] = f'"{COMMIT}"'  # it looks like a commit, but it is the server's name for the content
    said = cli("fetch", "b.csv", "--data", folder)
    assert (said.code, said.out) == (0, f"files: fetched 1 of 1 file, in {folder}\n"), said.err
    assert lying(folder) == ["b.csv", LOCK]
    assert cli("fetch", "b.csv", "a.csv", "--data", folder).code == 0
    assert [ask.path for ask in site.asked] == ["org/repo/c/x/b.csv", "org/repo/c/x/a.csv"]
    said = cli("fetch", "c.csv", "--data", folder)
    assert said.code == 2 and "unknown file 'c.csv': did you mean b.csv, a.csv" in said.errors[0]


def test_files_of_a_task_are_fetched_by_name(cli, site, folder, task):
    task(source(site), source(site, name="b", path="a"))
    assert cli("fetch", "b", "--task", "fake", "--data", folder).code == 0
    assert lying(folder) == ["b", LOCK]


def test_a_published_file_that_is_another_now_is_not_kept(cli, site, folder, published):
    site.files["org/repo/c/x/a.csv"] = OTHER
    said = cli("fetch", "a.csv", "--data", folder)
    assert said.code == 2 and published["a.csv"].source.url in said.errors[0] and "SHA-256" in said.errors[0]
    assert lying(folder) == []


def test_without_network_the_line_names_file_address_and_folder_and_what_else_to_bring(cli, site, folder, task):
    site.status |= {"a": [503] * 3}
    task(source(site), source(site, name="b", path="b"), source(site, name="c", path="c"))
    said = cli("fetch", "--task", "fake", "--data", folder)
    assert said.code == 2
    (line,) = [line for line in said.errors if line.startswith("unlearnbench: ")]
    for word in (site.at("a"), str(folder / NAME), "2 more to bring: `unlearnbench fetch --task fake --list`"):
        assert word in line


def test_a_file_of_your_own_is_taken_and_a_fetched_one_must_stay(site, folder):
    told = source(site, size=len(BODY), sha256=HASH)
    (folder / NAME).parent.mkdir(parents=True)
    (folder / NAME).write_bytes(OTHER)
    assert check_given(folder, told) == folder / NAME
    assert (is_published(folder / NAME, told), is_published(folder / NAME, source(site))) == (False, None)
    (folder / NAME).unlink()
    assert is_published(fetch_source(told, folder), told)
    (folder / NAME).write_bytes(OTHER)
    with pytest.raises(Damaged, match="delete it and fetch again"):
        check_given(folder, told)


def test_the_table_of_published_files_is_sound():
    files = published_files()
    assert len({file.source.url for file in files.values()}) == len(files) == 32
    for file in files.values():
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256) and re.fullmatch(r"[0-9a-f]{40}", file.commit)
        assert file.size > 0 and file.licence and file.use and (file.rows is None) == (file.columns == ())
        assert source_path(Path("x"), file.source).name == file.name


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
