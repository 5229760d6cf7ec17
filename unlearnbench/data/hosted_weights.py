"""Unlearned weights that others host: `hub:OWNER/NAME[@REVISION][/FILE]`, and `released:NAME` of the shipped table.

Both are downloaded once into `checkpoints/` in the store. What was downloaded first is locked: other bytes under the
same address are refused.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from unlearnbench.data.download import list_repository
from unlearnbench.data.sources import LOCK, Source, check_source, fetch_source, locks, source_path
from unlearnbench.data.weight_names import WEIGHT_SUFFIXES, choose_weights
from unlearnbench.errors import Damaged, UserError, unknown
from unlearnbench.storage.files import cannot_write, replace_file
from unlearnbench.storage.store import default_root

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HUB, RELEASED = "hub:", "released:"
ADDRESS = re.compile(
    r"hub:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>\w[\w.-]*))?(?:/(?P<inside>[^\x00-\x1f]+))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
WEIGHT_PARTS = ("unet", "text_encoder", "text_encoder_2")
CONFIGURATION = "adapter_config.json"


class ReleasedWeights(NamedTuple):
    """One entry of released.toml: weights that a paper's authors released."""

    name: str
    method: str
    erases: str
    base: str
    """The original that they were made from, on the hub."""
    format: str
    licence: str
    paper: str
    address: str
    """`hub:…`, the file's https address, or the page with the download."""
    fetchable: bool
    """Whether the address gives the file itself; otherwise it is downloaded by hand."""
    note: str = ""


class HostedWeights(NamedTuple):
    """Where downloaded weights lie, and the address that gives these very weights again."""

    place: Path
    address: str


def is_address(path: str) -> bool:
    """Whether a path names weights that are downloaded."""
    return path.startswith((HUB, RELEASED))


@cache
def released_weights() -> dict[str, ReleasedWeights]:
    """Read released.toml."""
    path = Path(__file__).parent / "released.toml"
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: ReleasedWeights(name, **entry) for name, entry in sorted(table.items())}


def fetch_weights(address: str) -> HostedWeights:
    """Download weights by their address unless they are in the store.

    A hub revision is resolved to a commit, which the returned address names. Raises `UserError` for an address that is
    not known or not reachable; the message says which file to bring where.
    """
    if address.startswith(RELEASED):
        return _released(address.removeprefix(RELEASED))
    found = ADDRESS.fullmatch(address)
    inside = PurePosixPath((found["inside"] or "").strip("/")) if found else PurePosixPath()
    if not found or any(part.startswith(".") or "\\" in part for part in inside.parts):
        raise UserError(f"{address} is no address: write hub:OWNER/NAME, with @REVISION and /FILE if you like")
    return _from_hub(found["repo"], found["revision"] or "main", "" if inside == PurePosixPath() else str(inside))


def released_folder(name: str) -> Path:
    """Folder of released weights in the store, for those that are put there by hand too."""
    return default_root() / "checkpoints" / "released" / name


# ---- the hub ---------------------------------------------------------------------------------------------------------


def _from_hub(repo: str, revision: str, inside: str) -> HostedWeights:
    top = default_root() / "checkpoints" / Path(repo)
    end = f"/{inside}" if inside else ""
    by_hand = top / revision / _local(inside)
    listing = _known_listing(top, revision)
    if listing is None and by_hand.exists():
        return HostedWeights(by_hand, f"{HUB}{repo}@{revision}{end}")
    commit, files = listing or _new_listing(top, repo, revision, f"put its weights at {by_hand} by hand")
    for name in _wanted(f"{HUB}{repo}@{revision}", inside, files):
        url = f"https://huggingface.co/{repo}/resolve/{commit}/{name}"
        _fetched(
            Source(_local(name), url, "", True, "unlearned weights", revision=commit, instead=INSTEAD), top / commit
        )
    return HostedWeights(top / commit / _local(inside), f"{HUB}{repo}@{commit}{end}")


def _fetched(source: Source, folder: Path) -> Path:
    """The file, downloaded unless it is there. Jobs that start together may read it at the same time."""
    if source_path(folder, source).is_file() and source.name in locks(folder):
        return check_source(folder, source)
    return fetch_source(source, folder)


INSTEAD = "give a file that you have with --set path=FILE"


def _known_listing(top: Path, revision: str) -> tuple[str, list[str]] | None:
    """The commit and files that this revision had when it was first fetched; None if it never was."""
    path = top / f"{revision}.json"
    try:
        listing = json.loads(path.read_bytes())
        commit, files = str(listing["commit"]), [str(name) for name in listing["files"]]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} is damaged: delete it, and the hub is asked again") from error
    if COMMIT.fullmatch(commit):
        return commit, files
    raise Damaged(f"{path} is damaged ({commit[:50]!r} is no commit): delete it, and the hub is asked again")


def _new_listing(top: Path, repo: str, revision: str, otherwise: str) -> tuple[str, list[str]]:
    """Ask the hub, and keep the answer under the revision's name and under the commit's."""
    commit, files = list_repository(repo, revision, otherwise)
    if not COMMIT.fullmatch(commit):
        raise UserError(f"the hub names no commit for {repo} at revision {revision}: {otherwise}")
    text = json.dumps({"commit": commit, "files": sorted(files)}, indent=1)
    for name in {revision, commit}:
        path = top / f"{name}.json"
        try:
            replace_file(path, f"{text}\n".encode())
        except OSError as error:
            raise UserError(cannot_write(path, error, "UNLEARNBENCH_CACHE")) from error
    return commit, files


def _wanted(address: str, inside: str, files: Sequence[str]) -> list[str]:
    """The files to fetch: the named one, or the weights of a folder; with an adapter's configuration beside them."""
    if inside in files:
        chosen = [inside]
    else:
        start = f"{inside}/" if inside else ""
        parts = [f"{start}{part}/" for part in WEIGHT_PARTS if any(f.startswith(f"{start}{part}/") for f in files)]
        chosen = [name for part in parts or [start] for name in choose_weights(_directly_in(part, files))]
    if not chosen:
        have = [name for name in files if name.endswith(WEIGHT_SUFFIXES)]
        raise UserError(
            f"{address} has no weights at {inside or 'its top'}: add one of its files to the address, such as "
            f"{', '.join(f'{address}/{name}' for name in have[:3]) or 'none: it holds no weights'}"
        )
    folders = dict.fromkeys(name.rpartition("/")[0] for name in chosen)
    beside = [f"{folder}/{CONFIGURATION}".lstrip("/") for folder in folders]
    return [*chosen, *(name for name in beside if name in files)]


def _directly_in(start: str, files: Sequence[str]) -> list[str]:
    return [name for name in files if name.startswith(start) and "/" not in name[len(start) :]]


def _local(name: str) -> str:
    """A file's name in the store: other characters than those of sources are written as their numbers."""
    return re.sub(r"[^A-Za-z0-9._+/-]", lambda found: f"={ord(found[0]):x}", name)


# ---- the table -------------------------------------------------------------------------------------------------------


def _released(name: str) -> HostedWeights:
    if name not in released_weights():
        raise unknown("released weights", name, released_weights())
    entry, folder = released_weights()[name], released_folder(name)
    if entry.address.startswith(HUB):
        return fetch_weights(entry.address)
    if not entry.fetchable:
        return HostedWeights(_brought(entry, folder), f"{RELEASED}{name}")
    file = _local(entry.address.rpartition("/")[2])
    place = _fetched(Source(file, entry.address, entry.licence, False, entry.erases, instead=INSTEAD), folder)
    return HostedWeights(place, f"{RELEASED}{name}")


def _brought(entry: ReleasedWeights, folder: Path) -> Path:
    """Where weights lie that the user downloaded by hand; their bytes are locked when they are first seen."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    if not files:
        raise UserError(
            f"{entry.name} is not downloaded by this program: get it from {entry.address}, put its file or folder into "
            f"{folder}, and run the same command again"
        )
    for path in files:
        name = path.relative_to(folder).as_posix()
        _fetched(Source(name, entry.address, entry.licence, False, entry.erases, instead=INSTEAD), folder)
    inside = [path for path in folder.iterdir() if path.name != LOCK]
    return inside[0] if len(inside) == 1 else folder
