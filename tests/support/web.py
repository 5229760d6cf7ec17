"""A web server on this machine that misbehaves as told, and records its requests and answers.

Below `org/set/resolve/` it answers as the Hugging Face Hub does: with the commit, and for files in `stored` with a
redirect to the storage that names the size and SHA-256. `api/models/org/set` lists all files as those of a repository.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from unlearnbench.data.sources import Source, fetch_source
from unlearnbench.errors import UserError

BODY = random.Random(0).randbytes(10_500)
OTHER = random.Random(1).randbytes(10_500)
HASH = hashlib.sha256(BODY).hexdigest()
COMMIT = "c0" * 20
NAME = "plain_text/train-00000-of-00001.parquet"


class Asked(NamedTuple):
    """One request, and how much of a body was sent for it."""

    method: str
    path: str
    headers: dict[str, str]
    status: int
    sent: int


class Web:
    """Files by path; every other attribute is a fault."""

    def __init__(self, url: str):
        self.url = url
        self.files: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.cuts: list[int] = []
        """After how many bytes the next answers break off."""
        self.length = True
        self.chunked = False
        self.commit = COMMIT
        """What the hub says the files are of."""
        self.stored: dict[str, str] = {}
        """Files that the hub keeps in its storage, and the SHA-256 it names."""
        self.storage = url
        """The server of that storage."""
        self.status: dict[str, list[int]] = {}
        """What the next answers for a path are in place of 200."""
        self.moved: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.stall = threading.Event()
        """Where it is cleared, half a body is sent, and the rest when it is set."""
        self.stall.set()

    def at(self, path: str) -> str:
        return f"{self.url}/{path}"


def source(site: Web, name: str = NAME, path: str = "a", login: bool = False, **more: Any) -> Source:
    """A file of that server."""
    return Source(name, site.at(path), "MIT", login, "training images", **more)


def hub_source(path: str = "a", login: bool = False, **more: Any) -> Source:
    """A file of a hub repository; HF_ENDPOINT says which server plays the hub."""
    url = f"https://huggingface.co/datasets/org/set/resolve/main/{path}"
    return Source(NAME, url, "MIT", login, "training images", **more)


def lying(folder: Path) -> list[str]:
    """Names of all that lies below."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def failing(site: Web, folder: Path, *cuts: int, **more: Any) -> str:
    """The one line that a fetch is refused with; its connections break off after so many bytes each."""
    site.cuts += cuts
    return refused(source(site, **more), folder)


def refused(source: Source, folder: Path) -> str:
    """The one line that a fetch is refused with."""
    with pytest.raises(UserError) as caught:
        fetch_source(source, folder)
    assert "\n" not in str(caught.value)
    assert not (folder / source.name).exists()
    return str(caught.value)


@contextmanager
def web() -> Iterator[Web]:
    """The server, until the block is left."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Not on stderr."""

        def do_HEAD(self) -> None:
            status, headers, body = answer(site, self.path[1:], self.headers)
            site.asked.append(Asked("HEAD", self.path[1:], dict(self.headers), status, 0))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers, **site.headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            status, headers, body = answer(site, self.path[1:], self.headers)
            cut = site.cuts.pop(0) if site.cuts and status in (200, 206) else None
            self.send_response(status)
            for name, value in {**headers, **site.headers}.items():
                self.send_header(name, value)
            if site.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif site.length:
                self.send_header("Content-Length", str(len(body)))
            sent = body if cut is None else body[:cut]
            site.asked.append(
                Asked("GET", self.path[1:], dict(self.headers), status, len(sent))
            )  # before anyone can know
            self.end_headers()
            first = b"" if site.stall.is_set() else sent[: len(sent) // 2]
            if first:
                self.wfile.write(first)
                site.stall.wait(60)
            if site.chunked:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent) + (b"0\r\n\r\n" if cut is None else b""))
            else:
                self.wfile.write(sent[len(first) :])
            self.close_connection = cut is not None or not (site.length or site.chunked)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    site = Web(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.stall.set()
        server.shutdown()
        server.server_close()
        thread.join()


def answer(site: Web, path: str, asked: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    if site.status.get(path):
        return site.status[path].pop(0), {}, b"no"
    if path in site.moved:
        return 302, {"Location": site.moved[path]}, b""
    if re.fullmatch(r"api/models/org/set/revision/[^/?]+(\?.*)?", path):
        listing = {"id": "org/set", "sha": site.commit, "siblings": [{"rfilename": name} for name in site.files]}
        return 200, {"Content-Type": "application/json"}, json.dumps(listing).encode()
    in_hub = re.fullmatch(r"(?:datasets/)?org/set/resolve/[^/]+/(.+)", path)
    path = in_hub[1] if in_hub else path
    headers = {"X-Repo-Commit": site.commit} if in_hub else {}
    if path not in site.files:
        return 404, headers | ({"X-Error-Code": "EntryNotFound"} if in_hub else {}), b"not here"
    body = site.files[path]
    if in_hub and path in site.stored:
        linked = {"X-Linked-Size": str(len(body)), "X-Linked-ETag": f'"{site.stored[path]}"'}
        return 302, {**headers, **linked, "Location": f"{site.storage}/{path}"}, b""
    headers["ETag"] = f'"{hashlib.md5(body).hexdigest()}"'
    wanted = re.fullmatch(r"bytes=(\d+)-", asked.get("Range", ""))
    if not wanted:
        return 200, headers, body
    start = int(wanted[1])
    return 206, {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}, body[start:]
