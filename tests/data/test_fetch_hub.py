"""Fetching from the Hugging Face Hub, played by a server on this machine that answers as the hub does."""

from __future__ import annotations

import time

import pytest

from tests.support.web import BODY, COMMIT, HASH, NAME, OTHER, hub_source, lying, refused, web
from unlearnbench.data.sources import LOCK, fetch_source, locks
from unlearnbench.errors import Damaged
from unlearnbench.reporting import shown_by

FILE = "datasets/org/set/resolve/main/a"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def storage(site):
    """The server that the hub redirects to for what it keeps in its storage."""
    with web() as storage:
        site.storage, storage.files = storage.url, site.files
        yield storage


@pytest.fixture(params=["in the repository", "in the storage"])
def stored(request, site):
    """Where the hub keeps the file."""
    if request.param == "in the storage":
        site.stored["a"] = HASH
    return request.param


def test_a_file_is_fetched_and_locked_with_its_commit(site, folder, stored):
    assert fetch_source(hub_source(), folder).read_bytes() == BODY
    assert locks(folder) == {NAME: (len(BODY), HASH, COMMIT)}
    assert lying(folder) == [LOCK, NAME], "nothing of the hub client's stays"
    assert site.asked[0].path == FILE


def test_a_model_of_the_hub(site, folder):
    source = hub_source()._replace(url="https://huggingface.co/org/set/resolve/main/a")
    assert fetch_source(source, folder).read_bytes() == BODY
    assert site.asked[0].path == "org/set/resolve/main/a"


def test_the_file_is_taken_from_the_commit_that_was_checked(site, folder):
    fetch_source(hub_source(), folder)
    assert site.asked[-1].path == f"datasets/org/set/resolve/{COMMIT}/a"


def test_progress_is_told(site, folder):
    told = []
    with shown_by(lambda what, done, total: told.append((what, done, total))):
        fetch_source(hub_source(), folder)
    assert told[-1] == ("train-00000-of-00001.parquet, MiB", 11, 11)


def test_a_dropped_connection_goes_on_where_it_broke_off(site, storage, folder, stored, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    server = storage if site.stored else site
    server.cuts = [4000, 3000]
    assert fetch_source(hub_source(), folder).read_bytes() == BODY
    assert [ask.sent for ask in server.asked if ask.method == "GET"] == [4000, 3000, 3500], "no byte twice"


def test_many_drops_are_told_and_nothing_is_kept(site, folder, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    site.cuts = [0] * 100
    line = refused(hub_source(), folder)
    for word in (hub_source().url, "run the same command again", f"put the file at {folder / NAME} by hand", "--data"):
        assert word in line
    assert lying(folder) == []
    site.cuts = []
    assert fetch_source(hub_source(), folder).read_bytes() == BODY


def test_a_busy_hub_is_asked_again(site, folder):
    site.status[FILE] = [503, 429]
    assert fetch_source(hub_source(), folder).read_bytes() == BODY
    site.status[FILE] = [503] * 3
    (folder / NAME).unlink()
    assert "answers 503" in refused(hub_source(), folder)


def test_a_hub_out_of_reach(folder, site, monkeypatch):
    with web() as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    line = refused(hub_source(), folder)
    for word in ("check the connection", hub_source().url, f"put the file at {folder / NAME} by hand", "--data"):
        assert word in line


@pytest.mark.parametrize("status", [401, 403])
def test_without_the_login_it_is_said_how(site, folder, status):
    site.status[FILE] = [status]
    line = refused(hub_source(login=True), folder)
    for word in (f"({status})", "`hf auth login`", "HF_TOKEN", "https://huggingface.co/datasets/org/set,"):
        assert word in line
    assert len(site.asked) == 1


@pytest.mark.parametrize(("status", "says"), [(403, "answers 403"), (404, "newer unlearnbench"), (418, "answers 418")])
def test_a_refusal_names_file_and_remedy_and_is_not_asked_twice(site, folder, status, says):
    site.status[FILE] = [status]
    line = refused(hub_source(), folder)
    for word in (says, hub_source().url, f"put the file at {folder / NAME} by hand", "--data"):
        assert word in line
    assert len(site.asked) == 1
    assert lying(folder) == []


@pytest.mark.parametrize(("login", "sent"), [(True, "Bearer kept"), (False, None)])
def test_a_token_is_sent_only_where_a_login_is_needed(site, folder, monkeypatch, login, sent):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "kept")
    fetch_source(hub_source(login=login), folder)
    assert {ask.headers.get("authorization") for ask in site.asked} == {sent}


def test_a_token_is_not_passed_on_to_the_storage(site, storage, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "kept")
    site.stored["a"] = HASH
    assert fetch_source(hub_source(login=True), folder).read_bytes() == BODY
    assert [ask.headers.get("authorization") for ask in storage.asked] == [None]
    assert {ask.headers.get("authorization") for ask in site.asked} == {"Bearer kept"}


def test_what_the_hub_says_the_file_is_must_come(site, folder):
    site.stored["a"] = "0" * 64
    assert "came damaged" in refused(hub_source(), folder)
    assert lying(folder) == []


@pytest.mark.parametrize(
    ("told", "says"),
    [({"sha256": "0" * 64}, "not 000000000000"), ({"size": 9}, "not 9"), ({"revision": "d1" * 20}, f"commit {COMMIT}")],
    ids=["hash", "size", "commit"],
)
def test_another_file_is_refused_before_it_is_fetched(site, storage, folder, told, says):
    site.stored["a"] = HASH
    line = refused(hub_source(**told), folder)
    assert says in line
    assert "newer one" in line
    assert {ask.method for ask in site.asked} == {"HEAD"}
    assert storage.asked == []
    assert lying(folder) == []


def test_a_branch_is_no_commit(site, folder):
    assert fetch_source(hub_source(revision="main"), folder).is_file()


def test_the_same_bytes_of_a_later_commit_keep_the_lock(site, folder):
    fetch_source(hub_source(), folder).unlink()
    site.commit = "d1" * 20
    fetch_source(hub_source(), folder)
    assert locks(folder)[NAME].revision == COMMIT


def test_what_was_locked_first_is_not_replaced_by_another(site, folder):
    fetch_source(hub_source(), folder).unlink()
    site.files["a"] = OTHER
    with pytest.raises(Damaged, match="delete its entry"):
        fetch_source(hub_source(), folder)
    assert lying(folder) == [LOCK]


def test_a_file_that_goes_on_beyond_its_length_is_cut_off_and_not_kept(site, storage, folder):
    site.stored["a"], storage.files, storage.chunked = HASH, {"a": BODY * 100}, True
    with pytest.raises(Damaged, match=r"announces 10,500 bytes, but sends more.*nothing is kept"):
        fetch_source(hub_source(), folder)
    assert lying(folder) == []
