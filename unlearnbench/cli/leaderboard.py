"""`leaderboard`: tables from a folder of records."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnbench import registry
from unlearnbench.cli.arguments import Results, results_folder
from unlearnbench.cli.completion import complete_metrics, complete_tasks
from unlearnbench.cli.console import PROSE, err, in_one_table, out, print_table
from unlearnbench.errors import UserError, unknown
from unlearnbench.registry import words
from unlearnbench.reporting import bars

if TYPE_CHECKING:
    from unlearnbench.leaderboard.rows import Board
    from unlearnbench.leaderboard.tables import Sheet
    from unlearnbench.records.schema import Record

boards = typer.Typer()
FORMATS = ("terminal", "markdown", "csv", "latex", "json")
MORE = "a wider terminal, --columns or --format markdown shows them"
"""Ways to see the columns that were left out."""


@boards.command()
def leaderboard(
    place: Annotated[
        Path | None, typer.Argument(metavar="[RESULTS]", help="Folder of records. [default: results]")
    ] = None,
    folder: Results = None,
    format: Annotated[str, typer.Option(help="Output format: terminal, markdown, csv, latex or json.")] = "terminal",
    columns: Annotated[
        str | None,
        typer.Option(
            help="Metrics (with --attacks: attacks) to show, comma-separated, or all; in several tables if needed. "
            "[default: the short table; all in csv and json]",
            autocompletion=complete_metrics,
        ),
    ] = None,
    axis: Annotated[
        str | None,
        typer.Option(help="Only metrics of these axes: efficacy, utility, robustness, cost; comma-separated."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(help="Sort by this column, best first; with - before its name, worst first.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Only these methods, comma-separated: names, or labels such as esd@published.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.", autocompletion=complete_tasks)] = None,
    protocol: Annotated[str | None, typer.Option(help="Only this protocol, by name or start of its hash.")] = None,
    forget: Annotated[str | None, typer.Option(help="Only this concept.")] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Show 95 % intervals instead of the standard deviation over seeds.")
    ] = False,
    attacks: Annotated[
        bool, typer.Option("--attacks", help="Rank by the worst attack, beside the rank by UA, and show every attack.")
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Show published numbers, with source and status, beside measured ones.")
    ] = False,
    table: Annotated[
        str | None,
        typer.Option(
            help="A table as papers have it: red-team (frozen prompt sets beside adaptive attacks) or objects (ACC_e, "
            "ACC_s, ACC_g, H_o).",
        ),
    ] = None,
    write: Annotated[
        bool,
        typer.Option("--write", help="Write README.md, tables of every column and figures into RESULTS."),
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if --write would change a file; for CI.")] = False,
) -> None:
    """Print a table per task, protocol and concept, with the columns that matter most.

    Cells are mean ± standard deviation over unlearning seeds, or means where the terminal is narrow. csv and json have
    every column."""
    results = results_folder(folder, place=place)

    from unlearnbench.leaderboard import tables as lb
    from unlearnbench.leaderboard.board import board as make_board
    from unlearnbench.leaderboard.formats import formatted, no_format
    from unlearnbench.records.image_table import reader

    if format not in FORMATS:
        raise no_format(format)
    if attacks and published:
        raise UserError("--attacks and --published are separate tables: give one of them")
    if table is not None and (attacks or published or columns is not None or axis is not None or intervals):
        raise UserError(
            "--table has columns of its own: leave out --attacks, --published, --columns, --axis, --intervals"
        )
    narrow = [
        name for name, value in (("table", table), ("task", task), ("protocol", protocol), ("forget", forget)) if value
    ]
    narrow += [name for name, value in (("methods", methods), ("columns", columns), ("axis", axis)) if value]
    if write and check:
        raise UserError("--write and --check exclude each other: give one of them")
    if (write or check) and format != "terminal":
        raise UserError(f"--{'write' if write else 'check'} makes a page and its pictures: leave out --format")
    if (write or check) and narrow:
        raise UserError(f"--{'write' if write else 'check'} covers the whole folder: leave out --{narrow[0]}")
    if published:
        _published(task, forget, methods, gathered(results, task, protocol, forget, some=False), results, format)
        return
    records = gathered(results, task, protocol, forget)
    metrics = registry.load_metrics()
    if attacks:
        rows = make_board(records, metrics, reader(results), split_methods(methods, records))
        _attacks(lb.ordered(rows, sort, metrics), format, columns)
        return
    if table is not None:
        rows = make_board(records, metrics, reader(results), split_methods(methods, records))
        _field_table(table, lb.ordered(rows, sort, metrics), records, format)
        return
    names = lb.narrowed(lb.choose_columns(columns, metrics), axis, metrics)
    if not names:
        raise UserError(f"none of the --columns {columns} is of --axis {axis}: leave one of the two out")
    named = columns is not None or axis is not None
    board = lb.ordered(make_board(records, metrics, reader(results), split_methods(methods, records)), sort, metrics)
    if write:
        _write(results, board, records)
    elif check:
        _check(results, board, records)
    elif format == "terminal":
        if named:
            _show(
                [
                    lb.for_terminal(sheet)
                    for sheet in lb.tables(board, metrics, names, all_keys=False, intervals=intervals)
                ]
            )
            out.print(lb.legend(intervals), soft_wrap=True)
        else:
            _short(board, intervals, results)
    else:
        chosen = names if named else None
        sys.stdout.write(formatted(board, metrics, chosen, format, intervals, _unless_default(results)))


@contextmanager
def progress(title: str) -> Iterator[None]:
    """Show how far the work within this block is, on a terminal only: output that is piped stays as it is."""
    with bars(err, 1) as begin:
        if err.is_terminal:
            begin(title)
        yield


def gathered(
    results: Path, task: str | None = None, protocol: str | None = None, forget: str | None = None, some: bool = True
) -> list[Record]:
    """Read the records below a folder that are of this task, protocol and concept; with `some`, refuse to find none.

    `protocol` is a name or the start of a hash.
    """
    from unlearnbench.records.folder import ResultsFolder

    if results.is_file():
        raise UserError(f"{results} is a file: give the folder that `unlearnbench run --results` wrote to")
    with progress(f"records of {results}"):
        records = ResultsFolder(results).records()
    if some and not records:
        raise UserError(
            f"no records below {results}: make some with `unlearnbench run --method erasediff --results {results}`"
        )
    for name, value, of, begins in (
        ("task", task, lambda record: record.task, False),
        ("protocol", protocol, lambda record: record.protocol.name, True),
        ("concept", forget, lambda record: record.forget, False),
    ):
        if value is None:
            continue
        kept = [record for record in records if value == of(record)]
        if begins and not kept:
            kept = [record for record in records if record.protocol.hash.startswith(value)]
        if some and not kept:
            raise unknown(f"{name} among the records", value, list(dict.fromkeys(map(of, records))))
        records = kept
    return records


def split_methods(methods: str | None, records: Sequence[Record]) -> list[str] | None:
    """Split a comma-separated list into names and labels of methods, each of which must be among the records.

    Returns None, which stands for all, if there is no list.
    """
    if methods is None:
        return None
    from unlearnbench.records.identity import group_records, unique_labels

    known = [name for record in records for name in (record.method.name, record.label())]
    known += unique_labels(group_records(records)).values()
    wanted = words([methods])
    for name in wanted:
        if name not in known:
            raise unknown("method among the records", name, list(dict.fromkeys(known)))
    if not wanted:
        raise UserError("--methods is empty: name at least one")
    return wanted


def _unless_default(results: Path) -> Path | None:
    """The folder of the records, where a command must name it."""
    return None if results == Path("results") else results


def _short(board: Board, intervals: bool, results: Path) -> None:
    """Print the short tables; without deviations where these are too wide for the terminal."""
    from unlearnbench.leaderboard import short
    from unlearnbench.leaderboard.tables import legend

    metrics, place, prose = registry.load_metrics(), _unless_default(results), (short.ATTACK_HEAD,)
    sheets = short.short_sheets(board, metrics, intervals=intervals, results=place)
    fits = all(in_one_table(sheet.heads, sheet.sections, prose=prose) for sheet in sheets)
    if not fits and not intervals:
        sheets = short.short_sheets(board, metrics, spread=False, results=place)
    _show(sheets, prose=prose)
    out.print(legend(intervals, spread=fits), soft_wrap=True)
    out.print(f"{short.short_meanings(board, metrics)}; more: --columns all", soft_wrap=True, highlight=False)


def _show(
    sheets: Sequence[Sheet],
    left: int = 1,
    fit: bool = False,
    omitted: Sequence[str] = (),
    prose: Sequence[str] = PROSE,
) -> None:
    """Print tables with their notes; with `fit`, only as many columns as fit.

    Columns that do not fit are named below the table, and so are those that the caller `omitted`.
    """
    from unlearnbench.leaderboard.short import AFTER_NAME

    for sheet in sheets:
        left_out = list(omitted)
        left_out += print_table(sheet.title, sheet.heads, sheet.sections, left, keys=left, fit=fit, prose=prose)
        if left_out:
            names = ", ".join(AFTER_NAME.sub("", name) for name in left_out)
            out.print(f"left out for lack of width: {names}; {MORE}", highlight=False, markup=False)
        for line in sheet.note.splitlines():
            out.print(line, soft_wrap=True, highlight=False, markup=False)
        if left_out or sheet.note:
            out.print()


def _write(results: Path, board: Board, records: Sequence[Record]) -> None:
    from unlearnbench.names import inside
    from unlearnbench.records.folder import ResultsFolder
    from unlearnbench.report.results_readme import abandoned, files, stale
    from unlearnbench.storage.files import cannot_write, replace_file

    made = files(board, records, ResultsFolder(results).tunings(), results)
    try:
        for path in stale(results, made):
            replace_file(inside(results, path), made[path])
        for path in abandoned(results, made):
            inside(results, path).unlink()
    except OSError as error:
        raise UserError(cannot_write(results, error, "`leaderboard FOLDER`")) from error
    out.print(f"wrote {results / 'README.md'}: {len(board)} rows from {len(records)} records", soft_wrap=True)


def _check(results: Path, board: Board, records: Sequence[Record]) -> None:
    """Exit with code 1 if `_write` would change a file."""
    from unlearnbench.records.folder import ResultsFolder
    from unlearnbench.report.results_readme import abandoned, files, stale

    made = files(board, records, ResultsFolder(results).tunings(), results)
    old = [*stale(results, made), *abandoned(results, made)]
    for path in old:
        out.print(f"{results / path} is older than its records: run leaderboard {results} --write", soft_wrap=True)
    out.print(f"{len(made)} files checked, {len(old)} stale", highlight=False)
    raise typer.Exit(1 if old else 0)


def _attacks(board: Board, kind: str, chosen: str | None) -> None:
    """Print the tables of attacks; in the terminal and in LaTeX only attacks that fit, unless they are named."""
    from unlearnbench.leaderboard import attacks as attack_table
    from unlearnbench.leaderboard.formats import TEXTWIDTH, format_sheets

    if not attack_table.attack_sheets(board):
        raise UserError("no record here was attacked: run its command with --attacks standard")
    if kind == "terminal":
        if chosen is not None or all(
            in_one_table(each.heads, each.sections) for each in attack_table.attack_sheets(board, most=0)
        ):
            _show(attack_table.attack_sheets(board, chosen=chosen), fit=chosen is None)
        else:
            _show(attack_table.attack_sheets(board, brief=True), fit=True, omitted=attack_table.NOT_BRIEF)
        out.print(attack_table.LEGEND, soft_wrap=True)
        return
    fits = kind == "latex" and chosen is None
    shown = attack_table.fit_attacks(board, TEXTWIDTH) if fits else attack_table.attack_sheets(board, chosen=chosen)
    sys.stdout.write(format_sheets(shown, kind, attack_table.attack_frame(board, chosen)))


def _field_table(name: str, board: Board, records: Sequence[Record], kind: str) -> None:
    """Print a table as papers have it; in the terminal as many columns as fit."""
    from unlearnbench.leaderboard import field_tables
    from unlearnbench.leaderboard.formats import format_sheets

    blocks = field_tables.field_blocks(name, board, records, registry.load_metrics())
    sheets = field_tables.field_sheets(blocks)
    if kind == "terminal":
        _show(sheets, fit=True)
    else:
        sys.stdout.write(format_sheets(sheets, kind, field_tables.field_frame(blocks)))


def _published(
    task: str | None, forget: str | None, methods: str | None, records: list[Record], results: Path, kind: str
) -> None:
    """Print a table per task and concept: numbers that others published, beside what was measured here."""
    from unlearnbench.leaderboard import published
    from unlearnbench.leaderboard.formats import format_sheets
    from unlearnbench.records.image_table import reader

    rows = published.load()
    for name, value, of in (
        ("task with published numbers", task, lambda row: row.task),
        ("concept with published numbers", forget, lambda row: row.forget),
        ("method with published numbers", methods, lambda row: row.method.partition("[")[0]),
    ):
        wanted = words([value]) if value is not None else list(dict.fromkeys(map(of, rows)))
        for word in wanted:
            if word not in map(of, rows):
                raise unknown(name, word, list(dict.fromkeys(map(of, rows))))
        rows = [row for row in rows if of(row) in wanted]
    made = published.blocks(rows, records, registry.load_metrics(), reader(results))
    if kind == "terminal":
        _show(published.published_sheets(made), left=2)
        out.print(published.LEGEND, soft_wrap=True)
    else:
        sys.stdout.write(format_sheets(published.published_sheets(made), kind, published.published_frame(made), left=2))
