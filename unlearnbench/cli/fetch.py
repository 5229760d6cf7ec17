"""`fetch` downloads files that tasks need or that papers published; `purge` deletes cached images of unsafe tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from unlearnbench import registry
from unlearnbench.cli.completion import complete_tasks
from unlearnbench.cli.console import err, out, print_table
from unlearnbench.errors import UserError, unknown
from unlearnbench.reporting import bars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unlearnbench.data.sources import Source

fetching = typer.Typer()
HEADS = ["file", "use", "login", "size", "revision", "SHA-256", "state", "address"]


class FileGroup(NamedTuple):
    """Files that lie in one folder."""

    title: str
    sources: tuple[Source, ...]
    folder: Path


@fetching.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="Files by name, such as nudity-p4d.csv; see `unlearnbench fetch --list`."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Fetch all files of this task; see `unlearnbench list tasks`.", autocompletion=complete_tasks
        ),
    ] = None,
    list_: Annotated[
        bool,
        typer.Option(
            "--list",
            help="List the files with size, licence, hash and address, and whether they are present; download nothing.",
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder for the files. [default: data/TASK in the store, which --list names]"),
    ] = None,
) -> None:
    """Download the data and models that a task needs, or files by name.

    A stopped download continues where it was. Files that are already there are checked against their hashes. On a
    machine without network, put each file into the --data folder under the name that --list gives, from the address
    beside it, and run the same command: it checks them. `run --data` takes the same folder."""
    groups = _groups(task, names or [], data)
    if task is not None and not groups:
        out.print(f"{task} ships all that it needs", highlight=False)
    elif list_:
        for group in groups:
            _print_group(group)
    elif task is None and not names:
        _print_overview(groups)
    else:
        for group in groups:
            _fetch_group(group, task)


def _groups(task: str | None, names: Sequence[str], data: Path | None) -> list[FileGroup]:
    """The files that are meant, by folder: those of a task, those named, or all that are known."""
    from unlearnbench.data.published_files import published_files

    tasks = registry.tasks() if task is None else [task]
    groups: list[FileGroup] = []
    for each in tasks:
        cls = registry.load_task(each)
        if sources := tuple(getattr(cls, "sources", ())):
            groups.append(FileGroup(each, sources, data or _default(getattr(cls, "data_name", each))))
    if task is None:
        listed = {source for group in groups for source in group.sources}
        others = [file for file in published_files().values() if file.source not in listed]
        for name in dict.fromkeys(file.folder for file in others):
            sources = tuple(file.source for file in others if file.folder == name)
            groups.append(FileGroup("other published files, by name", sources, data or _default(name)))
    return _named(groups, names) if names else groups


def _named(groups: Sequence[FileGroup], names: Sequence[str]) -> list[FileGroup]:
    """The files of these names, each once, by folder."""
    places = {source.name: (source, group.folder) for group in reversed(groups) for source in group.sources}
    for name in names:
        if name not in places:
            raise unknown("file", name, places)
    chosen = [places[name] for name in dict.fromkeys(names)]
    return [
        FileGroup("files", tuple(source for source, place in chosen if place == folder), folder)
        for folder in dict.fromkeys(folder for _, folder in chosen)
    ]


def _print_group(group: FileGroup) -> None:
    sections: dict[str, list[list[str]]] = {}
    for source in group.sources:
        inside, _, name = source.name.partition("/")
        head = f"{inside if name else 'files'} · {source.licence}"
        sections.setdefault(head, []).append(_row(source, name or inside, group.folder))
    prose = ["SHA-256", "state", "address"]
    print_table(f"{group.title}: {group.folder}", HEADS, list(sections.items()), left=2, prose=prose)


def _print_overview(groups: Sequence[FileGroup]) -> None:
    """Say in a few lines what can be fetched."""
    for group in groups:
        missing = sum(not (group.folder / source.name).is_file() for source in group.sources)
        count = f"{len(group.sources)} file{'' if len(group.sources) == 1 else 's'}, {missing} missing"
        out.print(f"{group.title}: {count}, in {group.folder}", highlight=False, soft_wrap=True)
    out.print(
        "fetch those of a task with --task TASK, others by their names; --list shows names, sizes, licences, hashes "
        "and addresses",
        highlight=False,
        soft_wrap=True,
    )


def _fetch_group(group: FileGroup, task: str | None) -> None:
    from unlearnbench.data.sources import fetch_source, source_path

    sources, folder = group.sources, group.folder
    missing = [source for source in sources if not source_path(folder, source).is_file()]
    for source in sources:
        if source not in missing:
            fetch_source(source, folder)  # checks it
    with bars(err, len(missing)) as begin:
        for number, source in enumerate(missing, 1):
            begin(f"{source.name} · {source.licence}")
            try:
                fetch_source(source, folder)
            except UserError as error:
                if number == len(missing):
                    raise
                rest, options = len(missing) - number, "" if task is None else f" --task {task}"
                raise type(error)(
                    f"{error}; {rest} more to bring: `unlearnbench fetch{options} --list` names their addresses"
                ) from error
    count = f"{len(sources)} file{'' if len(sources) == 1 else 's'}"
    done = f"fetched {len(missing)} of {count}" if missing else f"{count}, all there already"
    out.print(f"{group.title}: {done}, in {folder}", highlight=False, markup=False, soft_wrap=True)


@fetching.command()
def purge(
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Delete samples and training images of unsafe tasks.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete cached images of unsafe tasks; keep records, weights."""
    if not unsafe:
        raise UserError("purge needs to know what to delete: give --unsafe")

    from unlearnbench.storage.purge import unsafe_entries
    from unlearnbench.storage.store import Store

    found = list(unsafe_entries(Store().root, {name for name in registry.tasks() if registry.load_task(name).unsafe}))
    size = sum(entry.delete(dry_run) for entry in found)
    verb = "would delete" if dry_run else "deleted"
    out.print(f"{verb} {len(found):,} entries, {size / 2**20:,.1f} MiB, in {Store().root}", soft_wrap=True)


def _default(task: str) -> Path:
    from unlearnbench.storage.store import default_root

    return default_root() / "data" / task


def _row(source: Source, name: str, folder: Path) -> list[str]:
    from unlearnbench.data.sources import known, state

    facts = known(folder, source)
    about = [_size(facts.size), (facts.revision or "—")[:12], facts.sha256 or "—"]
    return [name, source.use, "yes" if source.login else "no", *about, state(folder, source), source.url]


def _size(size: int | None) -> str:
    if size is None:
        return "not known"
    return f"{size / 2**10:.1f} KiB" if size < 2**20 else f"{size / 2**20:.1f} MiB"
