"""One file over https, resumably: a `.part` beside its place, with a note on what it is a part of."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from unlearnbench import __version__
from unlearnbench.errors import Damaged, UserError
from unlearnbench.hashing import file_hash
from unlearnbench.reporting import track

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

BLOCK = 1 << 20
TRIES, PAUSE, HOPS = 3, 1.0, 10
TIMEOUT = (10, 60)
"""Seconds: to connect, and between two bytes."""
UNKNOWN = 1 << 30
"""Bytes that are taken of a file whose length neither the server nor its source says."""
BUSY = (429, 500, 502, 503, 504)
HERE = ("127.0.0.1", "localhost", "::1")
HEADERS = {"User-Agent": f"unlearnbench/{__version__}", "Accept-Encoding": "identity"}
"""Sizes and ranges count the file's own bytes, so nothing may be packed on the way."""


class Facts(NamedTuple):
    """What is known of a file."""

    size: int | None = None
    sha256: str | None = None
    revision: str | None = None


class Another(Exception):
    """The server has another file than the one that is known."""


class Dropped(Exception):
    """The connection broke or was never made; what came is kept."""


class TooMuch(Exception):
    """The server sends more than the file is long."""


class Part(NamedTuple):
    """What came of a file so far, and the note on the whole."""

    file: Path
    note: Path

    @classmethod
    def of(cls, path: Path) -> Part:
        """The part of the file that will lie at `path`."""
        return cls(path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json"))

    def have(self) -> int:
        """Bytes that came."""
        return self.file.stat().st_size if self.file.is_file() else 0

    def whole(self) -> dict[str, Any]:
        """The whole file's ETag and size; nothing where no note can be read."""
        try:
            values = json.loads(self.note.read_bytes())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def drop(self) -> None:
        """Forget what came."""
        self.file.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


class _Ask(NamedTuple):
    """One wanted file."""

    url: str
    path: Path
    token: str | None
    login: bool
    known: Facts
    pinned: str | None

    def by_hand(self) -> str:
        return f"put the file at {self.path} by hand, or give a folder that has it with --data"


def download(url: str, path: Path, login: bool = False, known: Facts | None = None, pinned: str | None = None) -> Facts:
    """Fetch into `Part.of(path)`, going on where an earlier call stopped; it is whole and on the disk on return.

    A part is gone on with only where the server's ETag says that the file is still the same. `Another` is raised
    where the server has another file than is `known`, or another commit than is `pinned`.
    """
    import requests

    ask = _Ask(url, path, _token() if login else None, login, known or Facts(), pinned)
    reason = ""
    with requests.Session() as session:
        for tries in range(TRIES):
            time.sleep(PAUSE * tries)
            try:
                return _attempt(session, ask)
            except Dropped as error:
                reason = str(error)
    if have := Part.of(path).have():
        raise UserError(
            f"{path.name} ({url}) broke off {TRIES} times ({reason}), {have / 2**20:.1f} MiB are kept: run the same "
            f"command again to go on, or {ask.by_hand()}"
        )
    raise UserError(f"cannot fetch {path.name}, {url} is out of reach ({reason}): {ask.by_hand()}")


def _attempt(session: Session, ask: _Ask) -> Facts:
    """Fetch what is missing over one connection."""
    part, known = Part.of(ask.path), ask.known
    have, etag = part.have(), str(part.whole().get("etag") or "")
    if not etag:
        have = 0
    response, revision, linked = _answer(session, ask, {"Range": f"bytes={have}-", "If-Range": etag} if have else {})
    with response:
        if have and response.status_code != 200 and not _goes_on(response, have, etag):
            part.drop()
            return _attempt(session, ask)
        if response.status_code == 200:
            have = 0
        elif not have:
            raise _refusal(ask, response.status_code)
        total = _total(response, have)
        _require_known(ask, total, revision, linked)
        total = known.size if total is None else total
        if total is None and "chunked" not in response.headers.get("Transfer-Encoding", ""):
            raise UserError(f"{ask.url} does not say how long {ask.path.name} is: {ask.by_hand()}")
        if response.headers.get("Content-Type", "").startswith("text/html") and ask.path.suffix != ".html":
            raise UserError(f"{ask.url} shows a web page in place of {ask.path.name}: {ask.by_hand()}")
        try:
            _write(response, part, have, total)
        except TooMuch as error:
            part.drop()
            said = f"{ask.path.name} is {total:,} bytes long" if total is not None else f"no length of {ask.path.name}"
            raise Damaged(f"{ask.url} says {said}, but {error}; nothing is kept: {ask.by_hand()}") from error
        came = response.headers.get("ETag")
    size, sha256 = part.have(), file_hash(part.file)
    if total not in (None, size):
        raise Dropped(f"{size} of {total} bytes came")
    if linked not in (None, sha256) or (have and known.sha256 not in (None, sha256)):
        part.drop()
        raise Dropped("what came is damaged")
    if known.sha256 not in (None, sha256):
        part.drop()
        raise Another(f"SHA-256 {sha256[:12]}…, not {str(known.sha256)[:12]}…")
    return Facts(size, sha256, revision or (came.removeprefix("W/").strip('"') if came else None))


def _answer(session: Session, ask: _Ask, more: dict[str, str]) -> tuple[Response, str | None, str | None]:
    """The answer at the end of all redirects, with the commit and the SHA-256 that the hub names on the way.

    Redirects are followed here, since every one must be https and the token may go to the first host alone.
    """
    import requests

    at, revision, linked = ask.url, None, None
    for _ in range(HOPS):
        _require_safe(at, ask)
        token = ask.token if _origin(at) == _origin(ask.url) else None
        try:
            response = session.get(
                at,
                headers={**HEADERS, **more},
                auth=_bearer(token),
                stream=True,
                allow_redirects=False,
                timeout=TIMEOUT,
            )
            target = session.get_redirect_target(response)
        except requests.RequestException as error:
            cause = getattr(error.args[0] if error.args else None, "reason", error)
            raise Dropped(type(cause).__name__) from error
        revision = revision or response.headers.get("X-Repo-Commit")
        told = response.headers.get("X-Linked-ETag", "").strip('"')
        linked = linked or (told if re.fullmatch(r"[0-9a-f]{64}", told) else None)
        if target is None:
            break
        response.close()
        at = urljoin(at, target)
    else:
        raise UserError(f"{ask.url} redirects without end: {ask.by_hand()}")
    if response.status_code in (200, 206, 416):
        return response, revision, linked
    response.close()
    if response.status_code in BUSY:
        raise Dropped(f"it answers {response.status_code}")
    raise _refusal(ask, response.status_code)


def _goes_on(response: Response, have: int, etag: str) -> bool:
    """Whether the answer is the rest of the same file."""
    begins = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    return response.status_code == 206 and begins and response.headers.get("ETag", etag) == etag


def _total(response: Response, have: int) -> int | None:
    """Size of the whole file, where the server says it."""
    said = response.headers.get("Content-Range", "").rpartition("/")[2]
    if response.status_code == 206 and said.isdecimal():
        return int(said)
    length = response.headers.get("Content-Length", "")
    return have + int(length) if length.isdecimal() else None


def _require_known(ask: _Ask, total: int | None, revision: str | None, linked: str | None) -> None:
    """Refuse another file before it is fetched, as far as its size, commit or hash is told."""
    known, commit = ask.known, re.fullmatch(r"[0-9a-f]{40}", ask.pinned or "")
    if total is not None and known.size not in (None, total):
        raise Another(f"{total} bytes, not {known.size}")
    if commit and revision not in (None, ask.pinned):
        raise Another(f"commit {revision}, not {ask.pinned}")
    if linked and known.sha256 not in (None, linked):
        raise Another(f"SHA-256 {linked[:12]}…, not {str(known.sha256)[:12]}…")


def _write(response: Response, part: Part, have: int, total: int | None) -> None:
    """Append to the part, or begin it anew; what came before the connection broke stays.

    Raises `TooMuch` where more comes than the file is long, or than `UNKNOWN` where its length is not known.
    """
    most = UNKNOWN if total is None else total
    begun = have // BLOCK
    count = 0 if total is None else begun + -(-(total - have) // BLOCK)
    etag = response.headers.get("ETag", "")
    with part.file.open("ab" if have else "wb") as file:
        if not have:  # only now, so that no note speaks of another file's part; a weak ETag does not tell bytes
            note = {"etag": None if etag.startswith("W/") else etag or None, "size": total}
            part.note.write_text(json.dumps(note), encoding="utf-8")
        blocks = chain(repeat(b"", begun), _blocks(response))
        came = have
        for block in track(blocks, count, f"{part.file.stem}, MiB"):
            came += len(block)
            if came > most:
                raise TooMuch(f"it sends more than {most:,} bytes")
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _blocks(response: Response) -> Iterator[bytes]:
    """The body as sent: some servers name .gz files an encoding, and they must not be unpacked."""
    from urllib3.exceptions import HTTPError

    try:
        while block := response.raw.read(BLOCK, decode_content=False):
            yield block
    except HTTPError as error:
        raise Dropped(type(error).__name__) from error


def _refusal(ask: _Ask, status: int) -> UserError:
    """What an answer that will not change by asking again means."""
    name, host = ask.path.name, urlsplit(ask.url).netloc
    if status in (401, 403) and ask.login:
        page = ask.url.partition("/resolve/")[0]
        return UserError(
            f"{host} gives {name} only after a login ({status}): accept the licence on {page}, then run "
            "`hf auth login` or set HF_TOKEN"
        )
    if status in (404, 410):
        return UserError(
            f"{name} is no longer at {ask.url} ({status}): look for a newer unlearnbench, or {ask.by_hand()}"
        )
    return UserError(f"{host} does not give {name} ({ask.url} answers {status}): {ask.by_hand()}")


def _require_safe(url: str, ask: _Ask) -> None:
    """https alone; http only on this machine, and only for what is on this machine from the first."""
    at, first = urlsplit(url), urlsplit(ask.url)
    local = all((where.scheme, where.hostname in HERE) == ("http", True) for where in (at, first))
    if at.scheme != "https" and not local:
        raise UserError(f"{url} is not https, so {ask.path.name} is not fetched from there: {ask.by_hand()}")


def _origin(url: str) -> tuple[str, str]:
    return urlsplit(url).scheme, urlsplit(url).netloc.lower()


def _bearer(token: str | None) -> Any:
    """Sets this token or none; without it requests would send what a .netrc file has for the host."""

    def sign(request: PreparedRequest) -> PreparedRequest:
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    return sign


def _token() -> str | None:
    """The hub token that the user set or logged in with."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    from huggingface_hub import get_token

    return get_token()
