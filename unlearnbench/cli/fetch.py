"""`fetch` downloads the files that a task needs; `purge` deletes cached images of unsafe tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnbench import registry
from unlearnbench.cli.console import err, out, print_table
from unlearnbench.errors import UserError
from unlearnbench.reporting import bars

if TYPE_CHECKING:
    from unlearnbench.data.sources import Source

fetching = typer.Typer()
HEADS = ["file", "use", "login", "size", "revision", "state"]


@fetching.command()
def fetch(
    task: Annotated[str, typer.Option(help="Task; see `unlearnbench list tasks`.")],
    list_: Annotated[
        bool,
        typer.Option("--list", help="List the files, their licences and whether they are present; download nothing."),
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder for the files. [default: data/TASK in the store]")
    ] = None,
) -> None:
    """Download the data and models that a task needs.

    A stopped download continues where it was. Files that are already there are checked against their hashes."""
    sources: tuple[Source, ...] = getattr(registry.load_task(task), "sources", ())
    if not sources:
        out.print(f"{task} ships all that it needs", highlight=False)
        return

    from unlearnbench.data.sources import fetch_source, source_path

    folder = data or _default(getattr(registry.load_task(task), "data_name", task))
    if list_:
        groups: dict[str, list[list[str]]] = {}
        for source in sources:
            inside, _, name = source.name.partition("/")
            head = f"{inside if name else 'files'} · {source.licence}"
            groups.setdefault(head, []).append(_row(source, name or inside, folder))
        print_table(f"{task}: {folder}", HEADS, list(groups.items()), left=2, prose=["state"])
        return
    missing = [source for source in sources if not source_path(folder, source).is_file()]
    for source in sources:
        if source not in missing:
            fetch_source(source, folder)  # checks it
    with bars(err, len(missing)) as begin:
        for source in missing:
            begin(f"{source.name} · {source.licence}")
            fetch_source(source, folder)
    count = f"{len(sources)} file{'' if len(sources) == 1 else 's'}"
    done = f"fetched {len(missing)} of {count}" if missing else f"{count}, all there already"
    out.print(f"{task}: {done}, in {folder}", highlight=False, markup=False, soft_wrap=True)


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
    size = "not known" if facts.size is None else f"{facts.size / 2**20:.1f} MiB"
    login = "yes" if source.login else "no"
    return [name, source.use, login, size, (facts.revision or "—")[:12], state(folder, source)]
