"""Check a folder of records, for continuous integration: every problem is named, and none stops the other checks.

Everything that can be recomputed is: scores from per-image values, these from the protocol's plan, settings from
presets. What cannot be checked here is a note, not a problem.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unlearnbench import registry
from unlearnbench.errors import UserError, one_line
from unlearnbench.hashing import digest
from unlearnbench.records.folder import ResultsFolder, record_files_below
from unlearnbench.records.identity import Identity, describe_differences, record_identity
from unlearnbench.records.image_table import read_beside
from unlearnbench.records.provenance import flat
from unlearnbench.records.sample_grid import grid_concepts, picture_size
from unlearnbench.records.schema import TIMED, Record, read_record
from unlearnbench.records.tuning import read_tuning, tuning_path
from unlearnbench.reporting import track
from unlearnbench.verification import check_attachments, check_origin, check_scores
from unlearnbench.verification.finding import Finding, Issue, Note

LARGEST_PICTURE = 16 * 2**20
"""Most bytes that a picture beside a record may have."""


def record_files(results: Path) -> list[Path]:
    """Every file below a folder that is named like a record, at any depth."""
    return record_files_below(results)


def find_problems(results: Path) -> list[Finding]:
    """All problems of the records below a folder and of stray files; notes are left out."""
    return [found for found in record_findings(results, record_files(results)) if found.note is None]


def count_notes(found: Sequence[Finding]) -> list[tuple[str, int]]:
    """Number of files with each kind of note, most frequent first."""
    pairs = {(each.note.group, each.path) for each in found if each.note is not None}
    return sorted(Counter(group for group, _ in pairs).items(), key=lambda item: (-item[1], item[0]))


def record_findings(results: Path, paths: Sequence[Path]) -> Iterator[Finding]:
    """Yield problems and notes of the records at these paths, then of other files below the folder."""
    seen = _Seen()
    for path in track(paths, len(paths), "records"):
        yield from _one(path, results, seen)
    yield from seen.versions()
    for path in ResultsFolder(results).orphans():
        yield Finding(path, "has no record beside it: restore that, or delete the file")
    yield from _tunings(results)


def _one(path: Path, results: Path, seen: _Seen) -> Iterator[Finding]:
    """Yield all findings of one record, whatever its content."""
    if strange := _strange(path, results):
        yield Finding(path, strange)
        return
    try:
        record = read_record(path)
        found: list[Issue] = [*_checks(record, path, results), *seen.before(record, path)]
    except (UserError, OSError) as error:
        yield Finding(path, str(error).removeprefix(f"record {path} "))
        return
    except (Exception, RecursionError) as error:  # noqa: BLE001 - a hostile file must not keep the rest from being checked
        yield Finding(path, f"cannot be checked ({one_line(error)[:200]}): restore it, or delete it and run it again")
        return
    for issue in found:
        yield Finding(path, issue.text, issue) if isinstance(issue, Note) else Finding(path, issue)


def _strange(path: Path, results: Path) -> str | None:
    """Why a record's file, or one beside it, is not read at all."""
    for each in (path, path.with_suffix(".parquet"), path.with_suffix(".png")):
        try:
            status = each.stat()
        except FileNotFoundError:
            if each.is_symlink():
                return f"{each.name} is a link to a file that does not exist: delete it"
            continue
        except OSError as error:
            return f"{each.name} cannot be read ({(error.strerror or '').lower()}): delete it"
        if not each.resolve().is_relative_to(results.resolve()):
            return f"{each.name} is a link to a file outside the folder: put the file itself there"
        if stat.S_ISDIR(status.st_mode):
            return f"{each.name} is a directory, not a file: delete it"
        if not stat.S_ISREG(status.st_mode):
            return f"{each.name} is no regular file: delete it"
    return None


def _checks(record: Record, path: Path, results: Path) -> Iterator[Issue]:
    yield from _place(record, path, results)
    yield from _protocol(record)
    yield from check_scores.check_status(record)
    yield from check_origin.check_identity(record)
    yield from check_origin.created(record)
    yield from check_origin.check_precision(record)
    task, plan = check_scores.task_of(record), check_scores.planned(record)
    if isinstance(plan, Note):
        yield plan
        plan = None
    yield from check_scores.numbers(record, plan)
    if plan is not None:
        yield from check_scores.check_missing(record, plan)
    yield from _images(record, path, plan)
    yield from _tuned(record)
    yield from _chosen(record, results)
    yield from check_origin.division(record, results)
    yield from check_origin.hashes(record)
    yield from check_attachments.check_attacks(record, task, plan)
    yield from check_attachments.trajectory(record, task)


class _Seen:
    """What earlier records contained, to find duplicates, and seeds of one label that cannot be pooled."""

    def __init__(self) -> None:
        self._keys: dict[str, Path] = {}
        self._identities: dict[str, Path] = {}
        self._times: dict[tuple[Any, ...], tuple[Path, Any]] = {}
        self._versions: dict[tuple[Any, ...], dict[Identity, Path]] = {}
        """By table and label: what its seeds are of, and the first record of each."""

    def versions(self) -> Iterator[Finding]:
        """A note for each further version among the seeds of one label: their means are separate rows."""
        for found in self._versions.values():
            (first, path), *others = found.items()
            for other, its_path in others:
                apart = ", ".join(describe_differences(first, other, " and "))
                text = f"is not pooled with {path.parent.name}/{path.name}: they differ in {apart}"
                yield Finding(its_path, text, Note(text, "whose seeds are of different versions"))

    def before(self, record: Record, path: Path) -> Iterator[str]:
        """Earlier records of the same run, or of another run with the same times."""
        one = record_identity(record)
        self._versions.setdefault((*one.table, one.label), {}).setdefault(one, path)
        twins = {self._keys.setdefault(record.key, path), self._identities.setdefault(_identity(record), path)}
        yield from (f"is the same run as {other}: delete one" for other in sorted(twins) if other != path)
        times = tuple(record.scores[name].value for name in TIMED if name in record.scores)
        if twins != {path} or not any(times):
            return
        # Presets of the same settings share one unlearning; another concept or seed never does.
        own = (record.task, record.method.name, record.forget, record.seeds["unlearning"])
        other, of = self._times.setdefault((record.created, *times), (path, own))
        if of != own:
            yield f"took the same times as {other} to the last digit: it is a copy of that, not a run of its own"


def tuning_files(results: Path) -> list[Path]:
    """Every file at a tuning's place."""
    return ResultsFolder(results).tuning_files()


def _tunings(results: Path) -> Iterator[Finding]:
    """Check that tunings are complete, lie where they belong, and chose the best trial."""
    for path in tuning_files(results):
        try:
            tuning = read_tuning(path)
        except (UserError, OSError) as error:
            yield Finding(path, str(error).removeprefix(f"tuning {path} "))
            continue
        wanted = tuning_path(results, tuning.task, tuning.method)
        if path != wanted:
            yield Finding(path, f"its contents belong at {wanted}: move it there")
        values = [value for trial in tuning.trials if (value := tuning.final(trial)) is not None]
        chosen = None if tuning.chosen is None else tuning.final(tuning.trials[tuning.chosen])
        if chosen != max(values, default=None):
            yield Finding(path, f"chose a trial of {chosen}, though the best has {max(values)}")


def _identity(record: Record) -> str:
    """What makes two records the same run, whatever code and device made them."""
    return digest([record.task, record.protocol.hash, record.forget, record.label(), record.seeds])


def _place(record: Record, path: Path, results: Path) -> Iterator[str]:
    wanted = record.path(results)
    if path != wanted:
        yield f"its contents belong at {wanted}: move it there"


def _protocol(record: Record) -> Iterator[str]:
    """Check that task and protocol are known here and mean the same."""
    protocol = record.protocol
    if protocol.hash != digest(protocol.settings):
        yield f"its protocol's hash is {protocol.hash[:12]}, which is not that of the settings beside it"
    if record.task not in registry.tasks():
        yield f"unknown task {record.task!r}: known: {', '.join(registry.tasks())}"
        return
    task = registry.load_task(record.task)
    own = protocol.settings.get("concepts") or ()
    try:
        if not own:
            task.resolve_concept(record.forget)
    except UserError:
        yield f"unknown concept {record.forget!r} of {record.task}: known: {', '.join(task.concepts)}"
    try:
        known = task.resolve_protocol(protocol.name)
    except UserError:
        yield f"unknown protocol {protocol.name!r} of {record.task}: known: {', '.join(task.protocols)}"
        return
    if own and protocol.hash == digest({**asdict(known), "concepts": own}):
        return
    if protocol.hash != known.hash:
        then, now = flat(protocol.settings), flat(asdict(known))
        changed = ", ".join(
            f"{name} {then.get(name, '—')} there and {now.get(name, '—')} here"
            for name in dict.fromkeys([*then, *now])
            if then.get(name) != now.get(name)
        )
        hashes = f"({protocol.hash[:12]} there, {known.hash[:12]} here)"
        yield f"protocol {protocol.name} differs from the one here {hashes}: {changed}"


def _images(record: Record, path: Path, plan: list[Any] | None) -> Iterator[Issue]:
    """Check the per-image values, their hash, plan and scores, and the picture."""
    if record.status in ("diverged", "skipped"):
        for suffix in (".parquet", ".png"):
            if path.with_suffix(suffix).is_file():
                yield f"its status is {record.status}, but {path.with_suffix(suffix).name} lies beside it: delete that"
        return
    if record.images is None:
        yield f"its status is {record.status}, but it vouches for no per-image values (images is null): run it again"
        return
    for name, score in record.scores.items():
        whole = None if score.value is None else score.value * (score.n - score.missing)
        if score.parts is not None and whole is not None and abs(sum(score.parts.values()) - whole) > 1e-6 * score.n:
            yield f"the parts of {name} make {sum(score.parts.values()):g}, its value {whole:g}"
    try:
        images = read_beside(record, path)
        if images is None:
            yield f"its per-image values {path.with_suffix('.parquet').name} are missing: restore them, or run it again"
        else:
            yield from check_scores.check_image_table(record, images, plan)
            yield from _picture(record, path, grid_concepts(record, images))
    except (UserError, OSError) as error:
        yield str(error)
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        yield f"its per-image values cannot be read ({one_line(error)[:200]}): run it again"


def _picture(record: Record, path: Path, concepts: list[str]) -> Iterator[str]:
    """Check the sample grid. Of tasks whose images may be shown a run has one, or another seed beside it."""
    import warnings

    from PIL import Image

    path = path.with_suffix(".png")
    safe = record.task in registry.tasks() and not registry.load_task(record.task).unsafe
    wanted = safe and record.method.name != "original"
    if not path.is_file():
        if wanted and not any(path.parent.glob("seed-*.png")):
            yield f"its sample grid {path.name} is missing: run it again"
        return
    if path.stat().st_size > LARGEST_PICTURE:
        size = path.stat().st_size
        yield f"its sample grid {path.name} has {size:,} bytes, at most {LARGEST_PICTURE:,} are read: run it again"
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:
                size, meant = image.size, picture_size(len(concepts), 2)
                if size != meant:
                    shown = f"{size[0]} x {size[1]} pixels, its {len(concepts)} concepts give {meant[0]} x {meant[1]}"
                    yield f"its sample grid {path.name} has {shown}: run it again"
                    return
                image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        yield f"its sample grid {path.name} is no picture ({one_line(error)[:200]}): delete it and run it again"


def _tuned(record: Record) -> Iterator[str]:
    """Check that tuned settings were not chosen on what is reported."""
    if record.method.division != "tuned":
        return
    chosen = record.method.selection
    if chosen is None:
        yield "is tuned, but does not say on what (method.selection is missing)"
        return
    overlaps: list[tuple[str, Any, bool]] = [
        ("concept", record.forget, record.forget in chosen.forget),
        ("unlearning seed", record.seeds["unlearning"], record.seeds["unlearning"] in chosen.seeds),
        ("sampling seed", record.seeds.get("sampling"), record.seeds.get("sampling") == chosen.sampling_seed),
        ("judge", record.judge.hash[:12], record.judge.hash == chosen.judge),
    ]
    for what, value, same in overlaps:
        if same:
            yield f"is tuned on what it reports: {what} {value} was selected on"


def _chosen(record: Record, results: Path) -> Iterator[str]:
    """Check that tuned settings are those that the tuning beside the record chose, if it is there."""
    path = tuning_path(results, record.task, record.method.name)
    if record.method.division != "tuned" or not path.is_file():
        return
    try:
        tuning = read_tuning(path)
    except (UserError, OSError):
        return  # named with the tunings
    said, chose = record.method.settings, tuning.settings or {}
    if record.method.name in registry.methods():  # a field that was dropped since is no difference
        cls = registry.load_method(record.method.name)
        said, chose = cls.current(said), cls.current(chose)
    said, chose = flat(said), flat(chose)
    changed = ", ".join(
        f"{name} {said.get(name, '—')} there and {chose.get(name, '—')} in {path.name}"
        for name in dict.fromkeys([*said, *chose])
        if said.get(name) != chose.get(name)
    )
    if changed:
        yield f"is tuned with other settings than those chosen: {changed}"
    if record.method.selection is not None and record.method.selection != tuning.selection:
        yield f"says that it was selected on other runs than {path}"
