"""`compare` and `diff`: two methods on the same noise, and what differs between two records."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnbench import registry
from unlearnbench.cli.arguments import RecordsIn, opened_record, record_in
from unlearnbench.cli.console import err, out, print_table
from unlearnbench.errors import UserError
from unlearnbench.reporting import told_by

if TYPE_CHECKING:
    from unlearnbench.compare.record_diff import Difference
    from unlearnbench.compare.wording import Comparison


comparing = typer.Typer()
FORMATS = ("terminal", "markdown", "csv", "json")


@comparing.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Record (seed-*.json), or folder with one method's records.")],
    b: Annotated[Path, typer.Argument(help="Another one, of the same task, protocol and concept.")],
    format: Annotated[str, typer.Option(help=f"Output format: {', '.join(FORMATS)}.")] = "terminal",
    picture: Annotated[
        Path | None,
        typer.Option("--out", help="Write a PNG of samples: the same noise through the original model, A and B."),
    ] = None,
    include_unsafe: Annotated[
        bool, typer.Option("--include-unsafe", help="Allow the picture of an unsafe task.")
    ] = False,
    results: RecordsIn = None,
) -> None:
    """Compare two methods image by image: tests, attacks, samples.

    Differences come with 95 % intervals. What was made otherwise (settings, code, device) is listed below them."""
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}: known: {', '.join(FORMATS)}")
    if picture is not None and picture.suffix.lower() != ".png":
        raise UserError(f"--out {picture} is not a PNG: give a name that ends in .png")

    from unlearnbench.compare.pairs import require_comparable, side

    with told_by(lambda line: err.print(line, highlight=False, soft_wrap=True)):
        sides = side(record_in(a, results)), side(record_in(b, results))
    require_comparable(*sides)
    task = sides[0].runs[0].record.task
    if picture and not include_unsafe and task in registry.tasks() and registry.load_task(task).unsafe:
        raise UserError(f"images of {task} may be unsafe to show: --include-unsafe writes them anyway")

    from unlearnbench.compare import formats, wording
    from unlearnbench.leaderboard.formats import as_csv

    found = wording.comparison(*sides)
    if picture:
        _draw(found, picture)
    if format == "terminal":
        _show(found)
        last = f"wrote {picture}" if picture else "--out FILE.png draws their images side by side"
        out.print(last, markup=False, highlight=False, soft_wrap=True)
    elif format == "csv":
        sys.stdout.write(as_csv(formats.comparison_frame(found)))
    else:
        sys.stdout.write(formats.markdown(found) if format == "markdown" else formats.as_json(found))


def _draw(found: Comparison, picture: Path) -> None:
    from unlearnbench.compare.sample_grid import write_pair

    try:
        write_pair(picture, *(found.pairs[0] if found.pairs else (found.a.runs[0], found.b.runs[0])))
    except OSError as error:
        raise UserError(
            f"cannot write {picture} ({(error.strerror or '').lower()}): name another with --out"
        ) from error


def _show(found: Comparison) -> None:
    from unlearnbench.compare import wording as text

    def say(line: str) -> None:
        """Print a sentence, broken between words where the terminal is too narrow."""
        out.print(line, markup=False, highlight=False)

    for line in text.describe_sides(found):  # it names a folder, which must stay whole to be copied
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if found.metrics:
        rows = [text.cells(row) for row in found.metrics]
        print_table(text.title(found), ["metric", *text.HEADS], [("", rows)])
    if words := text.summary(found):
        say(words)
    if found.attacks:
        rows = [text.cells(row) for row in found.attacks]
        out.print()
        print_table("under attack: share of targets recovered", ["attack", *text.HEADS], [("", rows)])
        say(text.worst_line(found))
    out.print()
    for line in text.notes(found):
        say(line)
    if found.little:
        say(f"made differently: {found.little}")
    elif found.apart:
        print_table(
            "made differently", ["", "what", "A", "B"], [("", text.group_differences(found.apart))], left=4, keys=2
        )


@comparing.command()
def diff(
    a: Annotated[Path, typer.Argument(help="Record (seed-*.json), or folder with exactly one.")],
    b: Annotated[Path, typer.Argument(help="Another record.")],
    results: RecordsIn = None,
) -> None:
    """Show what differs between two records, scores included."""
    (path_a, left), (path_b, right) = opened_record(a, results), opened_record(b, results)

    from unlearnbench.compare.record_diff import alike, record_differences

    rows = record_differences(left, right)
    for name, path in (("A", path_a), ("B", path_b)):
        out.print(f"{name}: {path}", highlight=False, markup=False, soft_wrap=True)
    if left.content_hash == right.content_hash:
        out.print("identical")
    elif little := alike(rows):
        out.print(f"no difference but {little}")
    else:
        print_table("", ["", "what", "A", "B", "B - A"], [("", _grouped(rows))], left=4, keys=2)


def _grouped(rows: list[Difference]) -> list[list[str]]:
    """The rows, with each group named only once."""
    before = ["", *(row.group for row in rows)]
    return [["" if row.group == last else row.group, *row.cells] for row, last in zip(rows, before, strict=False)]
