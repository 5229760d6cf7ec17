"""Store entries and records as bytes, for machines that share no file system. Incoming files are checked like files on
disk.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from unlearnbench.errors import Damaged, UserError
from unlearnbench.names import inside, require_name
from unlearnbench.records.schema import read_record
from unlearnbench.records.tuning import FOLDER, read_tuning, tuning_place
from unlearnbench.storage.files import replace_file
from unlearnbench.storage.store import META, Store

Parcel = dict[str, bytes]
"""Path with slashes, relative to the store or the results folder -> file content."""
KINDS = {"record": ("samples", "weights"), "unlearn": ("weights",), "sample": ("samples",), "attack": ("attacked",)}
"""Kinds of store entries that later jobs need, by the step that made them."""
TRAVEL = {kind for kinds in KINDS.values() for kind in kinds}
BESIDE = (".json", ".parquet", ".png")
"""Suffixes of a record and the files beside it. The record is written last, so that a stop cannot leave it without
them."""


def packed(store: Store, kinds: Iterable[str]) -> Parcel:
    """Entries of these kinds that were requested from the store."""
    parcel: Parcel = {}
    for entry in store.touched:
        if entry.parts[0] in kinds and (store.root / entry / META).is_file():
            for path in sorted((store.root / entry).iterdir()):
                parcel[f"{entry.as_posix()}/{path.name}"] = path.read_bytes()
    return parcel


def unpack(parcel: Mapping[str, bytes], root: Path) -> None:
    """Write entries to the store unless they are there; the store checks each when it is read."""
    entries: dict[PurePosixPath, dict[str, bytes]] = {}
    for name, content in parcel.items():
        path = _safe_path(name, 3)
        if path.parts[0] not in TRAVEL:
            raise UserError(f"{name!r} is no entry that travels")
        entries.setdefault(path.parent, {})[path.name] = content
    for entry, files in entries.items():
        place = inside(root, entry)
        if (place / META).is_file():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-") as temporary:
            new = Path(temporary) / "entry"
            new.mkdir()
            for name, content in files.items():
                (new / name).write_bytes(content)
            if place.exists():
                shutil.rmtree(place, ignore_errors=True)
            try:
                new.rename(place)
            except OSError:
                if not (place / META).is_file():
                    raise  # otherwise another job has just written the same entry


def siblings(product: Path) -> list[Path]:
    """Paths of a record or tuning and of the files that may lie beside it."""
    return [product.with_suffix(suffix) for suffix in BESIDE]


def files_of(record: Path, results: Path) -> Parcel:
    """Contents of a record and of the files beside it, if they exist."""
    found = siblings(record)
    return {path.relative_to(results).as_posix(): path.read_bytes() for path in found if path.is_file()}


def put(parcel: Mapping[str, bytes], results: Path) -> None:
    """Write a record or tuning and the files beside it. If one is damaged, it is refused and nothing is replaced."""
    depths = {name: 3 if name.startswith(f"{FOLDER}/") else 5 for name in parcel}
    paths = {name: inside(results, _safe_path(name, depth)) for name, depth in depths.items()}
    for name, path in paths.items():
        if path.suffix not in BESIDE:
            raise UserError(f"{name} is no file of a record")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in paths.items():
            if path.suffix == ".json":
                copy = Path(folder) / path.name
                copy.write_bytes(parcel[name])
                if _place(copy, name.startswith(f"{FOLDER}/")) != Path(name):
                    raise Damaged(f"the record that came as {name} is another's")
    for name, path in sorted(paths.items(), key=lambda item: item[1].suffix == ".json"):
        replace_file(path, parcel[name])


def _place(copy: Path, tuning: bool) -> Path:
    """Path of a record or tuning relative to the results folder."""
    if not tuning:
        return read_record(copy).place()
    found = read_tuning(copy)
    return tuning_place(found.task, found.method)


def _safe_path(name: str, depth: int) -> PurePosixPath:
    """A path from another machine, which must have `depth` parts that are valid names."""
    parts = name.split("/")
    if len(parts) != depth:
        raise UserError(f"{name!r} is no place in a folder of records or of the store")
    return PurePosixPath(*(require_name("the folder or file", part) for part in parts))
