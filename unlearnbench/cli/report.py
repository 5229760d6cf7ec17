"""`report`: one page from a folder of records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unlearnbench.cli.arguments import Results, results_folder
from unlearnbench.cli.completion import complete_tasks
from unlearnbench.cli.console import err, out
from unlearnbench.errors import UserError
from unlearnbench.reporting import bars

reporting = typer.Typer()


@reporting.command()
def report(
    place: Annotated[
        Path | None, typer.Argument(metavar="[RESULTS]", help="Folder of records. [default: results]")
    ] = None,
    folder: Results = None,
    file: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    task: Annotated[str | None, typer.Option(help="Only this task.", autocompletion=complete_tasks)] = None,
    include_unsafe: Annotated[
        bool, typer.Option("--include-unsafe", help="Also embed samples of unsafe tasks, if records have them.")
    ] = False,
) -> None:
    """Write one HTML page with tables, plots, samples and records.

    The page needs no other files. Every record is listed with the command that repeats it."""
    results = results_folder(folder, place=place)
    if file.is_dir():
        raise UserError(f"--out {file} is a folder: give a file, such as {file / 'report.html'}")
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {file} is not a page: its name must end in .html")

    from unlearnbench.report.page import build_page
    from unlearnbench.storage.files import replace_file

    with bars(err, 1) as begin:
        begin(f"report of {results}")
        page = build_page(results, task, include_unsafe)
    for gap in page.gaps:
        err.print(f"left out: {gap.path}: {gap.reason}", markup=False, highlight=False, soft_wrap=True)
    content = page.html.encode()
    try:
        replace_file(file, content)
    except OSError as error:
        raise UserError(f"cannot write {file} ({(error.strerror or '').lower()}): name another with --out") from error
    about = f"{_number(page.tables, 'table')} from {_number(page.records, 'record')}, {len(content) / 1e6:.1f} MB"
    out.print(f"wrote {file}: {about}", markup=False, highlight=False, soft_wrap=True)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
