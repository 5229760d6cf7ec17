"""Read the records for a report; list those that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench import registry
from unlearnbench.errors import UserError, unknown
from unlearnbench.leaderboard.tables import head, shown
from unlearnbench.metric import Metric
from unlearnbench.records.folder import ResultsFolder
from unlearnbench.records.image_table import reader
from unlearnbench.records.provenance import details, repeat_command, verification
from unlearnbench.records.schema import Record, read_record
from unlearnbench.reporting import track

if TYPE_CHECKING:
    import pandas as pd


class Gap(NamedTuple):
    """A file that could not be read, and why."""

    path: str
    reason: str


class RecordSource:
    """A results folder: records that can be read, their per-image values, and gaps."""

    def __init__(self, results: Path, task: str | None = None):
        if task is not None and task not in registry.tasks():
            raise unknown("task", task, registry.tasks())
        self.results, self.gaps = results, []  # type: Path, list[Gap]
        self.paths: dict[str, Path] = {}
        """By content hash."""
        self.records: list[Record] = []
        paths = ResultsFolder(results).record_files(task)
        for path in track(paths, len(paths), "reading records"):
            self._add(path)
        if not paths:
            whose = "" if task is None else f" of {task}"
            raise UserError(
                f"no records{whose} below {results}: give the folder that `unlearnbench run --results` wrote to, or "
                f"make some with `unlearnbench run --method erasediff --results {results}`"
            )
        if not self.records:
            raise UserError(f"no record below {results} can be read: {self.gaps[0].path}: {self.gaps[0].reason}")
        self._read = reader(results)
        self._tables: dict[Path, pd.DataFrame | None] = {}

    def _add(self, path: Path) -> None:
        try:
            record = read_record(path)
        except (UserError, OSError) as error:
            self.gaps.append(Gap(self.shown(path), _reason(error, path)))
            return
        self.records.append(record)
        self.paths[record.content_hash] = path

    def images(self, record: Record) -> pd.DataFrame | None:
        """A record's per-image values; adds a gap where the file is missing or damaged."""
        path = record.path(self.results).with_suffix(".parquet")
        if path not in self._tables:
            try:
                self._tables[path] = self._read(record)
            except (UserError, OSError) as error:
                self._tables[path] = None
                self.gaps.append(Gap(self.shown(path), _reason(error, path)))
            else:
                if record.images is not None and self._tables[path] is None:
                    self.gaps.append(Gap(self.shown(path), "the per-image values are missing: restore them"))
        return self._tables[path]

    def shown(self, path: Path) -> str:
        """A path as the page shows it, from the results folder on, without this machine's folders."""
        folder = Path(self.results.name) if self.results.is_absolute() else self.results
        return (folder / path.relative_to(self.results)).as_posix()


def _reason(error: UserError | OSError, path: Path) -> str:
    text = (error.strerror or "").lower() if isinstance(error, OSError) else str(error)
    return text.removeprefix("record ").removeprefix(f"{path} ")


class RecordEntry(NamedTuple):
    """One record as the page shows it."""

    id: str
    title: str
    facts: list[tuple[str, str]]
    scores: list[tuple[str, str, str]]
    """Title, value and interval."""
    missing: list[tuple[str, str]]
    """Scores without a value, and the reason that they share."""
    command: str
    verification: str


def entry(record: Record, id: str, path: str, metrics: Mapping[str, Metric]) -> RecordEntry:
    """Collect a record's scores, provenance and commands."""
    made = record.created.partition("T")[0]
    missing: dict[str, list[str]] = {}
    for name, score in record.scores.items():
        if score.value is None:
            missing.setdefault(score.reason or "no reason is given", []).append(_title(name, metrics))
    return RecordEntry(
        id,
        f"seed {record.seeds['unlearning']}, {record.status}, made {made}",
        details(record),
        [(_title(name, metrics), *_value(record, name, metrics)) for name in record.scores],
        [(", ".join(names), reason) for reason, names in missing.items()],
        repeat_command(record),
        verification(Path(path)),
    )


def _title(name: str, metrics: Mapping[str, Metric]) -> str:
    return head(metrics[name]) if name in metrics else name


def _value(record: Record, name: str, metrics: Mapping[str, Any]) -> tuple[str, str]:
    """Format a score and its interval in the metric's unit; unformatted for an unknown metric."""
    score = record.scores[name]

    def text(value: float) -> str:
        return shown(metrics[name], value) if name in metrics else f"{value:.6g} {score.unit}".strip()

    if score.value is None:
        return "—", ""
    return text(score.value), f"[{text(score.interval[0])}, {text(score.interval[1])}]" if score.interval else ""
