"""Is a folder of records what it says? For continuous integration: every problem is named, none stops the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from unlearnbench import registry
from unlearnbench.errors import UserError, one_line
from unlearnbench.hashing import digest
from unlearnbench.perimage import read_beside, unreproduced
from unlearnbench.provenance import flat
from unlearnbench.record import Record, read
from unlearnbench.tuning_record import FOLDER, read_tuning, tuning_path


class Problem(NamedTuple):
    """A file, and what is wrong with it."""

    path: Path
    text: str


def record_files(results: Path) -> list[Path]:
    """Every file below a folder that has a record's name, in whatever place."""
    return sorted(results.rglob("seed-*.json"))


def validate(results: Path) -> list[Problem]:
    """All problems of the records below a folder, and of files that belong to none."""
    problems: list[Problem] = []
    keys: dict[str, Path] = {}
    identities: dict[str, Path] = {}
    for path in record_files(results):
        try:
            record = read(path)
        except (UserError, OSError) as error:
            problems.append(Problem(path, str(error).removeprefix(f"record {path} ")))
            continue
        found = [
            *_place(record, path, results),
            *_protocol(record),
            *_images(record, path),
            *_picture(record, path),
            *_tuned(record),
            *_chosen(record, results),
            *_attacks(record),
        ]
        twin = keys.setdefault(record.key, path), identities.setdefault(_identity(record), path)
        found += [f"is the same run as {other}: delete one" for other in sorted(set(twin)) if other != path]
        problems += [Problem(path, text) for text in found]
    for path in sorted(path for suffix in ("parquet", "png") for path in results.rglob(f"seed-*.{suffix}")):
        if not path.with_suffix(".json").is_file():
            problems.append(Problem(path, "has no record beside it: restore that, or delete the file"))
    return [*problems, *_tunings(results)]


def tuning_files(results: Path) -> list[Path]:
    """Every file that has a tuning's place."""
    return sorted((results / FOLDER).glob("*/*.json"))


def _tunings(results: Path) -> Iterator[Problem]:
    """Tunings are whole, lie where they belong, and chose the best."""
    for path in tuning_files(results):
        try:
            tuning = read_tuning(path)
        except (UserError, OSError) as error:
            yield Problem(path, str(error).removeprefix(f"tuning {path} "))
            continue
        wanted = tuning_path(results, tuning.task, tuning.method)
        if path != wanted:
            yield Problem(path, f"belongs at {wanted} by what it says")
        values = [value for trial in tuning.trials if (value := tuning.final(trial)) is not None]
        chosen = None if tuning.chosen is None else tuning.final(tuning.trials[tuning.chosen])
        if chosen != max(values, default=None):
            yield Problem(path, f"chose a trial of {chosen}, though the best has {max(values)}")


def _identity(record: Record) -> str:
    """What makes two records the same run, whatever code and device they were made with."""
    return digest([record.task, record.protocol.hash, record.forget, record.label(), record.seeds])


def _place(record: Record, path: Path, results: Path) -> Iterator[str]:
    wanted = record.path(results)
    if path != wanted:
        yield f"belongs at {wanted} by what it says"


def _protocol(record: Record) -> Iterator[str]:
    """The task and its protocol are known here, and mean the same."""
    said = record.protocol
    if said.hash != digest(said.settings):
        yield f"its protocol's settings do not have the hash {said.hash[:12]} that it gives"
    if record.task not in registry.tasks():
        yield f"unknown task {record.task!r}: known: {', '.join(registry.tasks())}"
        return
    task = registry.load_task(record.task)
    own = said.settings.get("concepts") or ()
    try:
        if not own:
            task.resolve_concept(record.forget)
    except UserError:
        yield f"unknown concept {record.forget!r} of {record.task}: known: {', '.join(task.concepts)}"
    if said.name not in task.protocols:
        yield f"unknown protocol {said.name!r} of {record.task}: known: {', '.join(task.protocols)}"
        return
    known = task.protocols[said.name]
    if own and said.hash == digest({**asdict(known), "concepts": own}):
        return
    if said.hash != known.hash:
        then, now = flat(said.settings), flat(asdict(known))
        changed = ", ".join(
            f"{name} {then.get(name, '—')} there and {now.get(name, '—')} here"
            for name in dict.fromkeys([*then, *now])
            if then.get(name) != now.get(name)
        )
        yield f"protocol {said.name} is another there ({said.hash[:12]}) than here ({known.hash[:12]}): {changed}"


def _images(record: Record, path: Path) -> Iterator[str]:
    """The per-image values are there, unchanged, and give the scores."""
    if record.images is None:
        return
    try:
        images = read_beside(record, path)
        wrong = {} if images is None else unreproduced(record, images)
    except (UserError, OSError) as error:
        yield str(error)
        return
    except (ValueError, TypeError) as error:
        yield f"its per-image values cannot be read ({one_line(error)}): run it again"
        return
    for name, score in record.scores.items():
        whole = None if score.value is None else score.value * (score.n - score.missing)
        if score.parts is not None and whole is not None and abs(sum(score.parts.values()) - whole) > 1e-6 * score.n:
            yield f"the parts of {name} make {sum(score.parts.values()):g}, its value {whole:g}"
    if images is None:
        yield f"its per-image values {path.with_suffix('.parquet').name} are missing: restore them, or run it again"
    for name, mean in wrong.items():
        yield f"{name} is {record.scores[name].value}, but its per-image values give {mean}"


def _picture(record: Record, path: Path) -> Iterator[str]:
    """The sample grid beside a run of a task whose images may be shown."""
    from PIL import Image, UnidentifiedImageError

    safe = record.task in registry.tasks() and not registry.load_task(record.task).unsafe
    if not safe or record.images is None or record.method.name == "original":
        return
    path = path.with_suffix(".png")
    try:
        with Image.open(path) as image:
            image.verify()
    except FileNotFoundError:
        yield f"its sample grid {path.name} is missing: run it again"
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        yield f"its sample grid {path.name} is no picture ({one_line(error)}): delete it and run it again"


def _attacks(record: Record) -> Iterator[str]:
    """Areas are those of their own targets; shares and counts are checked on reading."""
    for label, attack in record.attacks.items():
        pairs = [(hit, cost) for hit, cost in zip(attack.recovered, attack.spent, strict=True) if hit is not None]
        if pairs and attack.area is not None:
            area = sum(hit * (1 - cost / (attack.limit or 1)) for hit, cost in pairs) / len(pairs)
            if abs(area - attack.area) > 1e-6:
                yield f"the area of {label} is {attack.area:g}, its targets give {area:g}"


def _tuned(record: Record) -> Iterator[str]:
    """Tuned settings were not chosen on what is reported."""
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
    """Tuned settings are those that the tuning beside the record chose, where it is there."""
    path = tuning_path(results, record.task, record.method.name)
    if record.method.division != "tuned" or not path.is_file():
        return
    try:
        tuning = read_tuning(path)
    except (UserError, OSError):
        return  # named with the tunings
    said, chose = record.method.settings, tuning.settings or {}
    if record.method.name in registry.methods():  # a field dropped since is no difference between an old and a new file
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
