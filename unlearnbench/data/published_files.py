"""Files that published repositories hold at one commit, such as prompt sets: address, size, hash, shape, licence."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from unlearnbench.data.sources import Source, check_source, source_path
from unlearnbench.errors import UserError, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = Path(__file__).parent / "published_files.toml"
RAW = "https://raw.githubusercontent.com"


class PublishedFile(NamedTuple):
    """One file of a GitHub repository at one commit."""

    name: str
    """Name in the data folder; the file's own unless two repositories use the same."""
    repo: str
    """Owner and name on GitHub."""
    commit: str
    path: str
    size: int
    """In bytes."""
    sha256: str
    licence: str
    """The repository's; "not stated" if it has no licence file."""
    use: str
    rows: int | None = None
    """Number of rows without the header; None if the file is no table."""
    columns: tuple[str, ...] = ()
    folder: str = "stable-diffusion"
    """Name of the data folder in the store that `fetch` puts the file into."""

    @property
    def source(self) -> Source:
        """The file as a source of a task."""
        url = f"{RAW}/{self.repo}/{self.commit}/{self.path}"
        return Source(self.name, url, self.licence, False, self.use, self.size, self.commit, self.sha256)


@cache
def published_files() -> dict[str, PublishedFile]:
    """Read the package's table of published files: name -> file."""
    entries = tomllib.loads(TABLE.read_text(encoding="utf-8"))["file"]
    return {entry["name"]: PublishedFile(**{**entry, "columns": tuple(entry.get("columns", ()))}) for entry in entries}


def published_file(name: str) -> PublishedFile:
    """Return the published file of this name. An unknown one raises `UserError` with similar names."""
    if name not in published_files():
        raise unknown("file", name, published_files())
    return published_files()[name]


def require_published(folder: Path, *names: str) -> list[Path]:
    """Return the paths of published files in a data folder, each checked against its hash.

    Raises `UserError`, with the command that brings those that are not there, and `Damaged` for one that is another.
    """
    files = [published_file(name) for name in names]
    missing = [file for file in files if not source_path(folder, file.source).is_file()]
    if missing:
        every, first = " and ".join(file.name for file in missing), missing[0]
        raise UserError(
            f"{every} of {first.repo} (licence {first.licence}) {'are' if len(missing) > 1 else 'is'} not in {folder}: "
            f"`unlearnbench fetch {' '.join(file.name for file in missing)} --data {folder}` brings what is missing"
        )
    return [check_source(folder, file.source) for file in files]
