"""Find and read the files of a results folder. Every command that looks for records or tunings does it through here.

A record lies at `<task>/<protocol>/<forget>/<method>/seed-<n>.json`. Its per-image values (`.parquet`) and sample grid
(`.png`) have the same name. Tunings lie at `tuning/<task>/<method>.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from unlearnbench.records.schema import Record, read_record
from unlearnbench.records.tuning import FOLDER, Tuning, read_tuning
from unlearnbench.reporting import track

RECORD = "seed-*.json"
"""Names of record files."""
ATTACHMENTS = ("parquet", "png")
"""Suffixes of the files that belong to a record."""


def shipped_results() -> Path | None:
    """The folder of records beside this package in a checkout, which its table of results is made of; else None.

    An installed package has none: records are not part of the wheel.
    """
    folder = Path(__file__).parents[2] / "results"
    return folder if (folder / "README.md").is_file() and (folder.parent / "pyproject.toml").is_file() else None


class ResultsFolder:
    """A folder that `unlearnbench run --results` writes to. It need not exist: then it holds nothing."""

    def __init__(self, path: Path):
        self.path = path

    def record_files(
        self, task: str | None = None, protocol: str | None = None, forget: str | None = None, label: str | None = None
    ) -> list[Path]:
        """Record files at the places where records belong, sorted; each argument limits one level of folders.

        Files at other places are left out; `record_files_below` finds these too.
        """
        levels = (task, protocol, forget, label)
        found = (path for path in self.path.glob(f"*/*/*/*/{RECORD}"))
        return sorted(path for path in found if _matches(path.relative_to(self.path).parts[:4], levels))

    def records(self, task: str | None = None) -> list[Record]:
        """Read every record at its place, or those of one task, in order of path; reports progress.

        Raises `Damaged` for a file that is no intact record.
        """
        return read_all(self.record_files(task))

    def tuning_files(self, task: str | None = None) -> list[Path]:
        """Files of tunings, sorted by task and method."""
        return sorted((self.path / FOLDER).glob("*/*.json" if task is None else f"{task}/*.json"))

    def tunings(self, task: str | None = None) -> list[Tuning]:
        """Read every tuning, or those of one task, by task and method; raises `Damaged` for one that is not intact."""
        return [read_tuning(path) for path in self.tuning_files(task)]

    def orphans(self) -> list[Path]:
        """Per-image values and sample grids, at any depth, that have no record with the same name, sorted."""
        found = (path for suffix in ATTACHMENTS for path in self.path.rglob(RECORD.replace("json", suffix)))
        return sorted(path for path in found if not _exists(path.with_suffix(".json")))


def _matches(parts: Sequence[str], wanted: Sequence[str | None]) -> bool:
    return all(want in (None, part) for part, want in zip(parts, wanted, strict=True))


def _exists(path: Path) -> bool:
    """Whether there is a file, or a link, even one that leads nowhere."""
    return path.exists() or path.is_symlink()


def record_files_below(folder: Path) -> list[Path]:
    """Every file with a record's name below a folder, at any depth and in any place, sorted."""
    return sorted(folder.rglob(RECORD))


def record_files_in(folder: Path) -> list[Path]:
    """The record files of one method's folder, sorted."""
    return sorted(folder.glob(RECORD))


def methods_beside(folder: Path) -> list[Path]:
    """Folders of methods in the same table as this method's folder, itself included, that hold records; sorted."""
    return sorted(path for path in folder.parent.glob("*") if record_files_in(path))


def read_all(paths: Sequence[Path]) -> list[Record]:
    """Read these records in order; reports progress. Raises `Damaged` for a file that is no intact record."""
    return list(_read_each(paths))


def _read_each(paths: Sequence[Path]) -> Iterator[Record]:
    for path in track(paths, len(paths), "reading records"):
        yield read_record(path)


def load_all(results: Path, folder: Path | None = None) -> list[Record]:
    """Read every record below a results folder, or those in one method's folder, in order of path."""
    return ResultsFolder(results).records() if folder is None else read_all(record_files_in(folder))
