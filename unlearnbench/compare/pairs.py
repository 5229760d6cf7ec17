"""Find the runs of two methods that can be compared, and pair them by seed and noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unlearnbench.errors import UserError
from unlearnbench.leaderboard.board import same_images
from unlearnbench.leaderboard.robustness import distinct
from unlearnbench.records.folder import ResultsFolder, methods_beside, record_files_below
from unlearnbench.records.identity import (
    CONDITIONS,
    describe_differences,
    group_records,
    older_flag,
    record_identity,
)
from unlearnbench.records.image_table import read_beside
from unlearnbench.records.schema import Record, read_record
from unlearnbench.reporting import tell

if TYPE_CHECKING:
    import pandas as pd

FEW = 6


class Run(NamedTuple):
    """One record, its path, and its per-image values."""

    path: Path
    record: Record
    images: pd.DataFrame | None

    @property
    def seed(self) -> int:
        """The unlearning seed."""
        return self.record.seeds["unlearning"]


class MethodRuns(NamedTuple):
    """The runs of one method."""

    given: Path
    runs: list[Run]

    @property
    def label(self) -> str:
        """The method's label, with preset and overrides."""
        return self.runs[0].record.label()

    @property
    def records(self) -> list[Record]:
        """The records of all runs."""
        return [run.record for run in self.runs]

    @property
    def counted(self) -> list[Run]:
        """The runs with scores."""
        return [run for run in self.runs if run.record.status in ("ok", "unreliable")]

    @property
    def fixed(self) -> bool:
        """Whether it is the same for every seed: the original, or runs that are bit for bit equal."""
        records = [run.record for run in self.counted]
        return bool(records) and (records[0].method.name == "original" or len(distinct(records)) == 1 < len(records))


Pair = tuple[Run, Run]


def side(given: Path) -> MethodRuns:
    """Read a record (seed-*.json), or a folder with one method's records; raises `UserError` for anything else."""
    files = _files(given)
    if not files:
        near = ResultsFolder(Path("results")).record_files(label=given.name)
        which = f", such as {near[0].parent}" if near else ""
        raise UserError(f"no record at {given}: give a seed-*.json, or the folder of one method{which}")
    folders = list(dict.fromkeys(file.parent for file in files))
    if len(folders) > 1:
        raise UserError(f"{given} holds records of {len(folders)} methods: name one, such as {folders[0]}")
    try:
        runs = [Run(file, record, read_beside(record, file)) for file in files for record in [read_record(file)]]
    except OSError as error:
        raise UserError(f"cannot read {given} ({(error.strerror or '').lower()}): make it readable") from error
    for run in runs[1:]:
        if what := _apart(runs[0].record, run.record, method=True):
            raise UserError(f"{runs[0].path} and {run.path} differ in {what}: name one of them")
    runs = _without_older_versions(runs)
    _require_one(given, runs)
    return MethodRuns(given, sorted(runs, key=lambda run: run.seed))


def _without_older_versions(runs: list[Run]) -> list[Run]:
    """Leave out, and name, what older versions of the code made, where there are runs of the present ones."""
    older = {run.path: flag for run in runs if (flag := older_flag([run.record]))}
    if not older or len(older) == len(runs):
        return runs
    names = ", ".join(path.name for path in older)
    tell(f"left out of {runs[0].record.label()}: {names}, of {'; '.join(dict.fromkeys(older.values()))}")
    return [run for run in runs if run.path not in older]


def _require_one(given: Path, runs: Sequence[Run]) -> None:
    """Refuse runs of one label with different identities, which have no mean over seeds."""
    groups = group_records(run.record for run in runs if run.record.status in ("ok", "unreliable"))
    if len(groups) < 2:
        return
    (first, mine), (second, others) = list(groups.items())[:2]
    paths = {id(run.record): run.path for run in runs}
    what = " and ".join(describe_differences(first, second, " and "))
    raise UserError(
        f"the runs in {given} are of {len(groups)} versions of {first.label}: {paths[id(mine[0])].name} and "
        f"{paths[id(others[0])].name} differ in {what}: name one record, such as {paths[id(others[-1])]}"
    )


def otherwise(a: MethodRuns, b: MethodRuns) -> list[str]:
    """Describe the conditions in which two sides differ although neither method sets them."""
    return describe_differences(
        record_identity(a.runs[0].record), record_identity(b.runs[0].record), " and ", CONDITIONS
    )


def _files(given: Path) -> list[Path]:
    """The records below a folder; or a file itself, or the record with the same name."""
    if given.is_dir():
        return record_files_below(given)
    file = given.parent / f"{given.stem}.json"
    return [file] if file.is_file() else []


def _apart(a: Record, b: Record, method: bool = False) -> str | None:
    """Name the first thing in which two records are of different tables, or methods, with both values."""
    things = {
        "task": (a.task, b.task),
        "protocol": tuple(f"{one.protocol.name} ({one.protocol.hash[:8]})" for one in (a, b)),
        "concept": (a.forget, b.forget),
        "method": (a.label(), b.label() if method else a.label()),
    }
    return next((f"{what} ({one} and {other})" for what, (one, other) in things.items() if one != other), None)


def require_comparable(a: MethodRuns, b: MethodRuns) -> None:
    """Refuse sides of different tables, and sides that share a record."""
    if shared := {run.path.resolve() for run in a.runs} & {run.path.resolve() for run in b.runs}:
        raise UserError(f"A and B both have {min(shared).name} of {a.label}: name two different ones")
    if what := _apart(a.runs[0].record, b.runs[0].record):
        own = a.runs[0].path.parent
        names = [folder.name for folder in methods_beside(own) if folder != own]
        beside = f": {', '.join(names[:FEW])}{', …' if len(names) > FEW else ''}" if names else ""
        place = f"; with A those in {a.runs[0].path.parent.parent}{beside}"
        raise UserError(f"A and B differ in {what}: compare records of one task, protocol and concept{place}")


def paired(a: MethodRuns, b: MethodRuns) -> list[Pair]:
    """Pair runs by unlearning seed; a side that is the same for every seed is paired with each run of the other.

    If both have one run, these make a pair whatever the seeds, since their images share the noise.
    """
    one, other = a.counted, b.counted
    if not one or not other or (a.fixed and b.fixed) or len(one) == len(other) == 1:
        return list(zip(one[:1], other[:1], strict=False))
    if a.fixed:
        return [(one[0], run) for run in other]
    if b.fixed:
        return [(run, other[0]) for run in one]
    return [(run, match) for run in one for match in other if run.seed == match.seed]


def same_plan(pair: Pair) -> bool:
    """Whether both runs have per-image values, and their images had the same prompts and noise."""
    return same_images(pair[0].images, pair[1].images)
