"""Fetching what tasks do not ship: from a server on this machine, which misbehaves as it is told."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.small_world import ROOT
from tests.support.web import BODY, HASH, NAME, failing, lying, source, web
from unlearnbench.data import download
from unlearnbench.data.sources import LOCK, Source, check_source, fetch_source, locks, source_path, state
from unlearnbench.errors import UserError
from unlearnbench.reporting import shown_by


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def test_a_file_is_fetched_whole_and_locked(site, folder):
    assert fetch_source(source(site), folder).read_bytes() == BODY
    etag = hashlib.md5(BODY).hexdigest()
    assert json.loads((folder / LOCK).read_text()) == {NAME: {"size": len(BODY), "sha256": HASH, "revision": etag}}
    assert lying(folder) == [LOCK, NAME]
    assert [(ask.method, ask.status) for ask in site.asked] == [("GET", 200)]
    assert check_source(folder, source(site)) == folder / NAME


def test_progress_is_told_in_blocks_of_the_whole(site, folder):
    told = []
    with shown_by(lambda what, done, total: told.append((what, done, total))):
        fetch_source(source(site), folder)
    assert told == [("train-00000-of-00001.parquet, MiB", done, 11) for done in range(12)]


def test_after_a_dropped_connection_the_file_is_asked_for_again(site, folder):
    site.cuts = [4000, 3000]
    assert fetch_source(source(site), folder).read_bytes() == BODY
    assert [ask.sent for ask in site.asked] == [4000, 3000, len(BODY)]
    assert lying(folder) == [LOCK, NAME]


def test_of_three_drops_nothing_is_kept_and_the_next_fetch_begins_again(site, folder):
    line = failing(site, folder, 4000, 0, 2000)
    for word in ("train-00000-of-00001.parquet", site.at("a"), "run the same command again", "--data"):
        assert word in line
    assert lying(folder) == []
    assert len(site.asked) == 3
    assert fetch_source(source(site), folder).read_bytes() == BODY


def test_a_weak_etag_is_a_revision_too(site, folder):
    site.headers["ETag"] = 'W/"x"'
    fetch_source(source(site), folder)
    assert locks(folder)[NAME].revision == "x"


def test_a_body_in_chunks(site, folder):
    site.chunked = True
    failing(site, folder, 3000, 3000, 3000)
    assert fetch_source(source(site), folder).read_bytes() == BODY


def test_a_body_of_unknown_end_is_taken_only_where_its_size_is_known(site, folder):
    site.length = False
    assert "does not say how long" in failing(site, folder)
    site.cuts = [4000]
    assert fetch_source(source(site, size=len(BODY)), folder).read_bytes() == BODY


def test_a_packed_file_is_not_unpacked(site, folder):
    site.headers["Content-Encoding"] = "gzip"
    assert fetch_source(source(site), folder).read_bytes() == BODY
    assert site.asked[0].headers["Accept-Encoding"] == "identity"


def test_a_busy_server_is_asked_again(site, folder):
    site.status["a"] = [503, 429]
    assert fetch_source(source(site), folder).read_bytes() == BODY
    site.status["b"] = [503, 503, 503]
    assert "it answers 503" in failing(site, folder, name="b", path="b")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_fetch_leaves_no_half_file_and_the_next_clears_up(site, folder):
    site.stall.clear()
    script = (
        "import sys\nfrom pathlib import Path\nfrom unlearnbench.data import download, sources\ndownload.BLOCK = 100\n"
        "sources.fetch_source(sources.Source(sys.argv[1], sys.argv[2], 'MIT', False, ''), Path(sys.argv[3]))\n"
    )
    site.files["a"] = BODY * 10
    child = subprocess.Popen([sys.executable, "-c", script, NAME, site.at("a"), str(folder)], cwd=ROOT)
    end = time.monotonic() + 60
    while time.monotonic() < end and not any((folder / name).stat().st_size >= 8000 for name in lying(folder)):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert lying(folder), "the kill came before anything was written"
    assert NAME not in lying(folder)
    site.stall.set()
    assert fetch_source(source(site), folder).read_bytes() == BODY * 10
    assert lying(folder) == [LOCK, NAME]


def test_two_processes_do_not_write_one_part(site, folder):
    fcntl = pytest.importorskip("fcntl")
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert "another process is fetching" in failing(site, folder)
    finally:
        os.close(handle)
    fetch_source(source(site), folder)


# ---- who is asked, and what is told ----------------------------------------------------------------------------------


def test_a_token_is_not_sent_to_other_servers_than_the_hub(site, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "kept")
    fetch_source(source(site, login=True), folder)
    assert "Authorization" not in site.asked[0].headers


def test_a_password_file_is_not_read(site, folder, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fetch_source(source(site), folder)
    assert "Authorization" not in site.asked[0].headers


@pytest.mark.parametrize(("status", "says"), [(403, "answers 403"), (404, "newer unlearnbench"), (418, "answers 418")])
def test_a_refusal_names_file_and_remedy_and_is_not_asked_twice(site, folder, status, says):
    site.status["a"] = [status]
    line = failing(site, folder)
    for word in (
        says,
        "train-00000-of-00001.parquet",
        site.at("a"),
        f"put the file at {folder / NAME} by hand",
        "--data",
    ):
        assert word in line
    assert len(site.asked) == 1
    assert lying(folder) == []


def test_a_server_out_of_reach(site, folder):
    with web() as gone:
        where = source(gone)
    with pytest.raises(UserError) as caught:
        fetch_source(where, folder)
    for word in ("check the connection", where.url, f"put the file at {folder / NAME} by hand", "--data"):
        assert word in str(caught.value)
    assert lying(folder) == []


def test_a_web_page_is_not_the_file(site, folder):
    site.headers["Content-Type"] = "text/html; charset=utf-8"
    assert "shows a web page" in failing(site, folder)


def test_redirects_without_end(site, folder):
    site.moved["a"] = "/a"
    assert "redirects without end" in failing(site, folder)


@pytest.mark.parametrize("url", ["http://example.com/a", "ftp://127.0.0.1/a", "file:///etc/hosts", "a"])
def test_only_https(site, folder, url):
    with pytest.raises(UserError, match="is not https"):
        fetch_source(Source("a", url, "MIT", False, ""), folder)


def test_a_redirect_away_from_https_is_not_followed(site, folder, monkeypatch):
    site.moved["a"] = "http://example.com/a"
    assert "http://example.com/a is not https" in failing(site, folder)


def test_a_server_elsewhere_cannot_send_us_to_this_machine(site, folder):
    wanted = download._Wanted("https://example.com/a", folder / "a", False, download.Facts(), None)
    with pytest.raises(UserError, match="is not https"):
        download._require_https(site.at("a"), wanted)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a/b/c/d", "", ".", "..", "a/..", "a\\b", "c:x", LOCK])
def test_names_that_lead_out_of_the_folder(site, folder, name):
    for use in (source_path, check_source, state, lambda folder, source: fetch_source(source, folder)):
        with pytest.raises(UserError, match="cannot name a source"):
            use(folder, source(site, name=name))
    assert site.asked == []
    assert not folder.exists()


def test_a_link_that_leads_out_of_the_folder(site, folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder.mkdir()
    (folder / "plain_text").symlink_to(tmp_path / "elsewhere")
    assert "leads out of" in failing(site, folder)
    assert lying(tmp_path / "elsewhere") == []


def test_a_file_is_on_the_disk_before_it_bears_its_name(site, folder, monkeypatch):
    real, flushed = os.fsync, []

    def seen(handle):
        flushed.append((os.fstat(handle).st_ino, (folder / NAME).exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", seen)
    assert (fetch_source(source(site), folder).stat().st_ino, False) in flushed


def test_a_full_disk_is_told(site, folder, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        line = failing(site, folder)
    assert lying(folder) == []
    assert f"cannot write to {folder / NAME} (the disk is full): free it, or name another folder with --data" in line
    assert fetch_source(source(site), folder).read_bytes() == BODY


def test_a_file_that_goes_on_beyond_its_length_is_cut_off_and_not_kept(site, folder, monkeypatch):
    site.chunked = True
    with pytest.raises(UserError, match="nothing is kept"):
        fetch_source(source(site, size=len(BODY) // 2), folder)
    monkeypatch.setattr(download, "MAX_UNKNOWN", len(BODY) // 2)
    with pytest.raises(UserError, match="announces no length"):
        fetch_source(source(site), folder)
    assert len(site.asked) == 2, "one try each"
    assert lying(folder) == []
