"""Download one file: from the Hugging Face Hub with its own client, from any other server with requests.

The hub client logs in, follows redirects without passing the token on, resumes after a dropped connection and knows
the hub's storage. It checks no hash and puts no limit on what a server sends, so both are checked here.

Other servers hold a few small files. pooch would fetch them as well, but it follows redirects to plain http, asks a
server that refused again, and counts blocks instead of bytes, so that it cannot stop at a given size.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from unlearnbench import __version__
from unlearnbench.errors import Damaged, UserError, one_line
from unlearnbench.hashing import file_hash
from unlearnbench.reporting import show_progress, track

if TYPE_CHECKING:
    from requests import Response, Session

BLOCK = 1 << 20
"""Bytes that are read at once, and the unit of the progress bar."""
ATTEMPTS, PAUSE = 3, 1.0
"""How often a server that is busy or out of reach is asked; the seconds between two attempts grow by `PAUSE`."""
TIMEOUT = (10, 60)
"""Seconds to connect, and seconds between two bytes."""
MAX_UNKNOWN = 1 << 30
"""The most bytes taken of a file whose size nobody states."""
BUSY = (408, 429, 500, 502, 503, 504)
LOCAL = ("127.0.0.1", "localhost", "::1")
HEADERS = {"User-Agent": f"unlearnbench/{__version__}", "Accept-Encoding": "identity"}
"""Sizes count the file's own bytes, so servers must not compress it."""
HUB_FILE = re.compile(
    r"https://huggingface\.co/(?P<datasets>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)"
)


class Facts(NamedTuple):
    """What is known of a file: its size in bytes, its SHA-256 and its revision; None where unknown."""

    size: int | None = None
    sha256: str | None = None
    revision: str | None = None


class Changed(Exception):
    """The server now has a different file from the one that is known."""


class _Transient(Exception):
    """The server is busy, the connection failed or the file arrived damaged: another attempt may succeed."""


class _TooLong(Exception):
    """The server sends more bytes than the file has."""


class _Wanted(NamedTuple):
    """The file to download, and what is known of it."""

    url: str
    path: Path
    login: bool
    known: Facts
    pinned: str | None

    def by_hand(self) -> str:
        return f"put the file at {self.path} by hand, or give a folder that has it with --data"


def download(
    url: str, path: Path, scratch: Path, login: bool = False, known: Facts | None = None, pinned: str | None = None
) -> tuple[Path, Facts]:
    """Download the file that belongs at `path` into the folder `scratch`.

    Args:
        url: An https address; http is accepted for a server on this machine only.
        path: Where the caller will put the file. Nothing is written there.
        scratch: An empty folder. The downloaded file may lie in a subfolder.
        login: Whether to send the user's hub token. It is sent to the hub alone.
        known: Size and SHA-256 that the file must have, as far as they are known.
        pinned: The hub commit that the file must come from. Names of branches are not checked.

    Returns:
        Where in `scratch` the file lies, and its size, SHA-256 and revision.

    Raises:
        Changed: The server has a different file from the one that is `known`, or another commit than `pinned`.
        UserError: The file cannot be fetched; the message names the remedy.
        Damaged: The server sent more bytes than it announced.
    """
    wanted = _Wanted(url, path, login, known or Facts(), pinned)
    hub_file = HUB_FILE.fullmatch(url)
    _require_https(url, wanted)
    reason = ""
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE * attempt)
        try:
            file, facts = _from_hub(wanted, scratch, hub_file) if hub_file else _from_web(wanted, scratch)
            return file, _verified(file, facts, wanted)
        except _Transient as error:
            reason = str(error)
        except _TooLong as error:
            raise Damaged(f"{url} {error}; nothing is kept: {wanted.by_hand()}") from error
    raise UserError(
        f"cannot fetch {path.name} from {url} ({reason}): check the connection and run the same command again, or "
        f"{wanted.by_hand()}"
    )


def _verified(file: Path, told: Facts, wanted: _Wanted) -> Facts:
    """Compare the file with what the server told and with what is known."""
    size, sha256 = file.stat().st_size, file_hash(file)
    if told.size not in (None, size):
        raise _Transient(f"{size} of {told.size} bytes came")
    if told.sha256 not in (None, sha256):
        raise _Transient("the file came damaged")
    _require_known(Facts(size, sha256), wanted)
    return Facts(size, sha256, told.revision)


def _require_known(told: Facts, wanted: _Wanted) -> None:
    """Raise `Changed` if the server's file differs from the known one, as far as both are told."""
    known = wanted.known
    if told.size is not None and known.size not in (None, told.size):
        raise Changed(f"{told.size} bytes, not {known.size}")
    is_commit = re.fullmatch(r"[0-9a-f]{40}", wanted.pinned or "")
    if is_commit and told.revision not in (None, wanted.pinned):
        raise Changed(f"commit {told.revision}, not {wanted.pinned}")
    if told.sha256 is not None and known.sha256 not in (None, told.sha256):
        raise Changed(f"SHA-256 {told.sha256[:12]}…, not {str(known.sha256)[:12]}…")


# ---- the hub ---------------------------------------------------------------------------------------------------------


def _from_hub(wanted: _Wanted, scratch: Path, parts: re.Match[str]) -> tuple[Path, Facts]:
    """Download with the hub's client; size, commit and hash are compared before anything is fetched."""
    import huggingface_hub as hub
    from huggingface_hub.errors import HTTPError  # of requests or httpx, as the client's version has it

    where: dict[str, Any] = {
        "repo_id": parts["repo"],
        "filename": parts["file"],
        "repo_type": "dataset" if parts["datasets"] else "model",
        "endpoint": os.environ.get("HF_ENDPOINT") or None,
    }
    token = (hub.get_token() if wanted.login else None) or False
    try:
        told = hub.get_hf_file_metadata(hub.hf_hub_url(**where, revision=parts["revision"]), token=token)
        is_sha256 = re.fullmatch(r"[0-9a-f]{64}", told.etag or "")
        facts = Facts(told.size, told.etag if is_sha256 else None, told.commit_hash)
        _require_known(facts, wanted)
        file = hub.hf_hub_download(
            **where,
            revision=told.commit_hash or parts["revision"],
            local_dir=scratch,
            token=token,
            library_name="unlearnbench",
            library_version=__version__,
            tqdm_class=_progress_bar(wanted.path, facts.size or wanted.known.size),
        )
    except (HTTPError, OSError) as error:
        response = getattr(error, "response", None)
        if response is not None:
            raise _refusal(wanted, response.status_code) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the network
        raise _Transient(one_line(error)) from error
    return Path(file), facts


def _progress_bar(path: Path, size: int | None) -> Any:
    """The bar that the hub client reports to: it shows the progress our way, and stops a file that is too long."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **options: Any):
            options = {key: value for key, value in options.items() if key not in ("name", "disable")}
            super().__init__(*args, **options, disable=True)
            self.came = initial

        def update(self, n: float | None = 1) -> None:
            self.came += int(n or 0)
            _require_length(self.came, size)
            if size:
                show_progress(f"{path.name}, MiB", -(-self.came // BLOCK), -(-size // BLOCK))

        def update_transfer(self, n: float) -> None:
            """Bytes on the way, which the hub's storage reports besides the bytes written."""

        def set_transfer_postfix_str(self, *args: Any, **options: Any) -> None:
            """The speed of these."""

    return Bar


# ---- other servers ---------------------------------------------------------------------------------------------------


def _from_web(wanted: _Wanted, scratch: Path) -> tuple[Path, Facts]:
    """Download from a server that is not the hub; a broken download starts over."""
    import requests
    from urllib3.exceptions import HTTPError

    file = scratch / wanted.path.name
    try:
        with requests.Session() as session:
            session.hooks["response"] = [lambda response, **_: _require_safe_redirect(session, response, wanted)]
            # an `auth` that adds nothing keeps requests from sending a password of ~/.netrc
            answer = session.get(wanted.url, headers=HEADERS, stream=True, timeout=TIMEOUT, auth=lambda sent: sent)
            with answer as response:
                if response.status_code != 200:
                    raise _refusal(wanted, response.status_code)
                etag = response.headers.get("ETag", "").removeprefix("W/").strip('"')
                facts = Facts(_announced_size(response, wanted), revision=etag or None)
                _require_known(
                    facts._replace(revision=None), wanted
                )  # an ETag is no commit, though it may look like one
                blocks = response.raw.stream(BLOCK, decode_content=False)  # some servers call .gz files an encoding
                _write(file, blocks, facts.size or wanted.known.size)
    except requests.TooManyRedirects as error:
        raise UserError(f"{wanted.url} redirects without end: {wanted.by_hand()}") from error
    except (requests.RequestException, HTTPError) as error:
        cause = getattr(error.args[0] if error.args else None, "reason", error)
        raise _Transient(type(cause).__name__) from error
    return file, facts


def _announced_size(response: Response, wanted: _Wanted) -> int | None:
    """The file's size in bytes; None if the server sends it in chunks, whose end is marked."""
    if response.headers.get("Content-Type", "").startswith("text/html") and wanted.path.suffix != ".html":
        raise UserError(f"{wanted.url} shows a web page instead of {wanted.path.name}: {wanted.by_hand()}")
    length = response.headers.get("Content-Length", "")
    if length.isdecimal():
        return int(length)
    if "chunked" not in response.headers.get("Transfer-Encoding", "") and wanted.known.size is None:
        raise UserError(f"{wanted.url} does not say how long {wanted.path.name} is: {wanted.by_hand()}")
    return wanted.known.size


def _write(file: Path, blocks: Iterable[bytes], size: int | None) -> None:
    """Write the blocks as they come; `_TooLong` is raised before more than `size` bytes are written."""
    came = 0
    with file.open("wb") as opened:
        for block in track(blocks, -(-(size or 0) // BLOCK), f"{file.name}, MiB"):
            came += len(block)
            _require_length(came, size)
            opened.write(block)


def _require_safe_redirect(session: Session, response: Response, wanted: _Wanted) -> None:
    if target := session.get_redirect_target(response):
        _require_https(urljoin(response.url, target), wanted)


# ---- both ------------------------------------------------------------------------------------------------------------


def _require_length(came: int, size: int | None) -> None:
    if came > (MAX_UNKNOWN if size is None else size):
        announced = "announces no length" if size is None else f"announces {size:,} bytes"
        raise _TooLong(f"{announced}, but sends more than {MAX_UNKNOWN if size is None else size:,}")


def _require_https(url: str, wanted: _Wanted) -> None:
    """Allow https, and plain http if both this address and the first one are of this machine."""
    addresses = urlsplit(url), urlsplit(wanted.url)
    local = all(address.scheme == "http" and address.hostname in LOCAL for address in addresses)
    if addresses[0].scheme != "https" and not local:
        raise UserError(f"{url} is not https, so {wanted.path.name} is not fetched from there: {wanted.by_hand()}")


def _refusal(wanted: _Wanted, status: int) -> Exception:
    """The error for an HTTP status: to try again if the server is busy, else what the user can do."""
    name, host = wanted.path.name, urlsplit(wanted.url).netloc
    if status in BUSY:
        return _Transient(f"it answers {status}")
    if status in (401, 403) and wanted.login:
        page = wanted.url.partition("/resolve/")[0]
        return UserError(
            f"{host} gives {name} only after a login ({status}): accept the licence on {page}, then run "
            "`hf auth login` or set HF_TOKEN"
        )
    if status in (404, 410):
        return UserError(
            f"{name} is no longer at {wanted.url} ({status}): look for a newer unlearnbench, or {wanted.by_hand()}"
        )
    return UserError(f"{host} does not give {name} ({wanted.url} answers {status}): {wanted.by_hand()}")
