"""`plot`: figures for papers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnbench.cli.arguments import Results, results_folder
from unlearnbench.cli.completion import complete_tasks
from unlearnbench.cli.console import out
from unlearnbench.cli.leaderboard import gathered, split_methods
from unlearnbench.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from unlearnbench.records.schema import Record

plotting = typer.Typer()
FEW = 8
"""Most tables that an error lists."""


class Kind(str, Enum):
    """Kinds of figure."""

    pareto = "pareto"
    cost = "cost"
    matrix = "matrix"
    attacks = "attacks"
    trajectory = "trajectory"


@plotting.command()
def plot(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="pareto: efficacy against utility; cost: time and memory; matrix: effect of forgetting on every "
            "concept; attacks: recovered share against budget; trajectory: runs with --eval-every, step by step."
        ),
    ],
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folder of records; for trajectory also single records or one method's folder. [default: results]"
        ),
    ] = None,
    file: Annotated[Path, typer.Option("--out", help="File to write: .pdf, .svg or .png.")] = Path("plot.pdf"),
    task: Annotated[str | None, typer.Option(help="Task to plot.", autocompletion=complete_tasks)] = None,
    protocol: Annotated[str | None, typer.Option(help="Protocol, by name or start of its hash.")] = None,
    forget: Annotated[str | None, typer.Option(help="Concept to forget.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Only these methods, comma-separated; colours stay the same.")
    ] = None,
    x: Annotated[
        str | None, typer.Option("--x", help="For pareto: metric on the x axis. [default: the main one of utility]")
    ] = None,
    y: Annotated[
        str | None, typer.Option("--y", help="For pareto: metric on the y axis. [default: the main one of efficacy]")
    ] = None,
    folder: Results = None,
) -> None:
    """Draw a figure of one table, as wide as a paper's column.

    matrix, attacks and trajectory may take two columns."""
    from unlearnbench.plots.files import check_figure_path, write_figure

    check_figure_path(file)
    if kind is not Kind.pareto and (x or y):
        raise UserError(f"--x and --y are for pareto: leave them out of {kind.value}")
    results, *others = [*([folder] if folder else []), *(places or [])] or [results_folder(None)]
    if kind is Kind.trajectory:
        records = [r for place in (results, *others) for r in _recorded(place, task, protocol, forget)]
    elif others:
        raise UserError(f"{kind.value} takes one folder of records: leave out {others[0]}")
    else:
        records = gathered(results, task, protocol, forget)
    chosen = _table(records, whole=kind is Kind.matrix)
    asked = split_methods(methods, chosen)
    figure = _drawn(kind, chosen, results, asked, x, y)
    try:
        write_figure(figure, file)
    except OSError as error:
        raise UserError(f"cannot write {file} ({(error.strerror or '').lower()}): name another with --out") from error
    width, height = figure.get_size_inches()
    out.print(
        f"wrote {file}: {width:.1f} × {height:.1f} inches, {_title(chosen, kind)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _recorded(place: Path, task: str | None, protocol: str | None, forget: str | None) -> list[Record]:
    """Read the records with a trajectory: from a file, one method's folder, or a results folder."""
    from unlearnbench.records.folder import load_all
    from unlearnbench.records.schema import read_record

    if not place.exists():
        raise UserError(f"no record at {place}: give a seed-*.json, or a folder of records")
    of_one = load_all(place, place)
    found = [read_record(place)] if place.is_file() else of_one or gathered(place, task, protocol, forget)
    if not (kept := [record for record in found if record.trajectory]):
        raise UserError(f"no record at {place} has a trajectory: run its command with --eval-every 10")
    return kept


def _table(records: list[Record], whole: bool) -> list[Record]:
    """Require that the records make one table (of one protocol, if the `whole` protocol is drawn), and return them."""
    keys = [(r.task, r.protocol.name, r.protocol.hash, "" if whole else r.forget) for r in records]
    tables = list(dict.fromkeys(keys))
    if len(tables) == 1:
        return records
    twins = len({key[:2] for key in tables}) < len({key[:3] for key in tables})
    options = {"--task": 0, "--protocol": 2 if twins else 1, "--forget": 3}
    differ = {name: at for name, at in options.items() if len({key[at] for key in tables}) > 1}
    choices = [
        " ".join(f"{name} {shlex.quote(key[at][:8] if at == 2 else key[at])}" for name, at in differ.items())
        for key in tables
    ]
    more = f" or {len(choices) - FEW} more" if len(choices) > FEW else ""
    raise UserError(f"these records make {len(tables)} tables: choose one with {' or '.join(choices[:FEW])}{more}")


def _title(records: Sequence[Record], kind: Kind) -> str:
    first = records[0]
    forget = "" if kind is Kind.matrix else f", forget {first.forget}"
    return f"{first.task}, {first.protocol.name}{forget}"


def _drawn(
    kind: Kind, records: Sequence[Record], results: Path, asked: list[str] | None, x: str | None, y: str | None
) -> Figure:
    from unlearnbench import plots
    from unlearnbench.leaderboard.board import board
    from unlearnbench.leaderboard.concept_effects import effects, named_across
    from unlearnbench.plots import attack_curves
    from unlearnbench.records.identity import group_records, unique_labels
    from unlearnbench.records.image_table import reader

    groups = named_across(records) if kind is Kind.matrix else group_records(records)
    names = unique_labels(groups)
    wanted = {
        names[one]
        for one, (first, *_) in groups.items()
        if asked is None or {names[one], one.label, first.method.name} & {*asked}
    }
    title = _title(records, kind)
    if kind is Kind.matrix:
        found = effects(records, reader(results))
        return plots.matrix(found[found["label"].isin(wanted)], title)
    if kind is Kind.attacks:
        tried = {names[one]: [r for r in group if r.attacks] for one, group in groups.items() if names[one] in wanted}
        drawn = attack_curves.attack_figure(
            title, {name: group for name, group in tried.items() if group}, names.values()
        )
        if drawn is None:
            raise UserError("no record here was attacked: run its command with --attacks standard")
        return drawn
    if kind is Kind.trajectory:
        shown = {names[one]: group for one, group in groups.items() if names[one] in wanted}
        followed = plots.trajectory(title, shown, names.values())
        assert followed is not None  # every record has one
        return followed
    table = board(records, images=reader(results))
    some, every = table.where(lambda row: row.label in wanted), [row.label for row in table]
    return plots.cost(some, title, every) if kind is Kind.cost else plots.pareto(some, title, x, y, every)
