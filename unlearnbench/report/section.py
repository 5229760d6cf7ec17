"""One table of the report with its plots, attacks, sample grids and records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench import plots, registry
from unlearnbench.errors import UserError
from unlearnbench.leaderboard import attacks as attack_table
from unlearnbench.leaderboard import concept_effects
from unlearnbench.leaderboard.rows import Board
from unlearnbench.leaderboard.tables import Sheet, notes_of, spans
from unlearnbench.metric import Metric
from unlearnbench.plots import attack_curves
from unlearnbench.records.identity import group_records, unique_labels
from unlearnbench.records.provenance import hardware
from unlearnbench.records.schema import Record
from unlearnbench.report.samples import Grid, build_strips
from unlearnbench.report.sources import RecordEntry, RecordSource, entry
from unlearnbench.report.table import Column, ReportRow, columns, row_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Groups = Mapping[tuple[Any, ...], list[Record]]
"""Records by table and label."""
POINTS = 72.0
"""Points per inch."""
TRADE_OFF = (
    "Efficacy against utility: better is up and to the right. Bars are 95 % intervals, the area of a point grows with "
    "unlearning time, controls are hollow, and the line joins the methods that no other beats on both axes."
)
COST = "Cost of unlearning: time and memory of each method."
MATRIX = (
    "Effect of forgetting on every concept (columns) for each method (rows): change from the original, in points, of "
    "the share of images that the judge recognises as the concept asked for. Framed: the concept to forget."
)
CURVES = (
    "Share of targets that an attack recovers against its budget per target. Black: retrain, which is the floor, and "
    "the original, which is dashed."
)
TRAJECTORIES = (
    "Efficacy and utility during unlearning, by step and by second, and the values that methods noted. These scores "
    "use fewer images and their own noise. Nothing was chosen by them: results are always from the last step."
)


class Picture(NamedTuple):
    """One plot with its caption; without a plot, the caption gives the reason."""

    kind: str
    svg: str
    caption: str
    width: float = 0.0
    """Width in points."""


class Section(NamedTuple):
    """Everything about one task, protocol and concept."""

    id: str
    task: str
    protocol: str
    hash: str
    forget: str
    facts: list[tuple[str, str]]
    untried: bool
    withheld: str
    """Why no samples are shown; empty where they are."""
    columns: list[Column]
    bodies: list[tuple[str, list[ReportRow]]]
    """Controls, then methods."""
    notes: str
    pictures: list[Picture]
    attacks: Sheet | None
    curves: Picture | None
    trajectories: Picture | None
    samples: Grid | None
    entries: list[tuple[ReportRow, list[RecordEntry]]]

    @property
    def rows(self) -> list[ReportRow]:
        """The rows of both bodies."""
        return [row for _, rows in self.bodies for row in rows]

    @property
    def further(self) -> list[str]:
        """The axes with columns that are hidden at first."""
        return list(dict.fromkeys(column.axis for column in self.columns if not column.first))


def group_by_label(records: Iterable[Record]) -> Groups:
    """Group records by table and label of the board's rows, in order of their seeds."""
    groups = group_records(sorted(records, key=lambda record: record.seeds["unlearning"]))
    names = unique_labels(groups)
    tables = {one: (r.task, r.protocol.name, r.protocol.hash, r.forget) for one, (r, *_) in groups.items()}
    return {(*tables[one], names[one]): group for one, group in groups.items()}


def section(
    id: str, table: Board, groups: Groups, source: RecordSource, metrics: Mapping[str, Metric], unsafe: bool
) -> Section:
    """Make the section for one table of the board; samples of unsafe tasks only if `unsafe`."""
    task, protocol, hash, forget = table.rows[0].table
    shown = columns(table, task, metrics)
    made = []
    for number, row in enumerate(table):
        key = (*row.table, row.label)
        records = groups[key]
        made.append(row_of(row, f"{id}-m{number}", f"{id}-pareto-row-{row.index}", shown, metrics, records))
    records = [record for row in made for record in row.records]
    withheld = "" if unsafe else _withheld(task)
    title = f"{task}, forget {forget}"
    bodies = [("controls", [row for row in made if row.control]), ("methods", [row for row in made if not row.control])]
    firsts = [(row.label, next(filter(_sampled, row.records), row.records[0])) for row in made]
    return Section(
        id=id,
        task=task,
        protocol=protocol,
        hash=hash[:8],
        forget=forget,
        facts=_facts(records),
        untried=registry.untried(task),
        withheld=withheld,
        columns=shown,
        bodies=[(name, own) for name, own in bodies if own],
        notes=notes_of(table, metrics),
        pictures=_pictures(id, title, table, records, source),
        attacks=next(iter(attack_table.attack_sheets(table)), None),
        curves=_curves(id, title, made),
        trajectories=_trajectories(id, title, made),
        samples=None if withheld else build_strips(firsts, source.results, source.images),
        entries=[(row, _entries(row, source, metrics)) for row in made],
    )


def _sampled(record: Record) -> bool:
    return record.status in ("ok", "unreliable")


def _withheld(task: str) -> str:
    """The reason why a task's samples are not shown; empty where they are."""
    if task not in registry.tasks():
        return f"{task} is not known to this version, and its samples may be unsafe to show"
    return f"samples and prompts of {task} may be unsafe to show" if registry.load_task(task).unsafe else ""


def _facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Label and text of what the records of a table share, or of each value."""
    seeds = sorted({record.seeds["unlearning"] for record in records})
    judges = [
        f"{r.judge.name} {r.judge.version} ({r.judge.hash[:8]}), threshold {r.judge.threshold:.4g}" for r in records
    ]
    return [
        ("records", str(len(records))),
        ("unlearning seeds", spans(seeds)),
        ("judge", "; ".join(dict.fromkeys(judges))),
        ("hardware", "; ".join(dict.fromkeys(map(hardware, records)))),
    ]


def _pictures(id: str, title: str, table: Board, records: list[Record], source: RecordSource) -> list[Picture]:
    found = concept_effects.effects(records, source.images)
    pictures = [
        _picture(f"{id}-pareto", "pareto", TRADE_OFF, lambda: plots.pareto(table, title)),
        _picture(f"{id}-cost", "cost", COST, lambda: plots.cost(table, title)),
    ]
    if len(found):
        pictures.append(_picture(f"{id}-matrix", "matrix", MATRIX, lambda: plots.matrix(found, title)))
    return pictures


def _picture(name: str, kind: str, caption: str, draw: Callable[[], Figure]) -> Picture:
    try:
        figure = draw()
    except UserError as error:
        return Picture(kind, "", f"no picture: {error}")
    return Picture(kind, plots.svg(figure, name), caption, POINTS * figure.get_figwidth())


def _curves(id: str, title: str, rows: Sequence[ReportRow]) -> Picture | None:
    attacked = {row.label: [record for record in row.records if record.attacks] for row in rows}
    groups = {label: records for label, records in attacked.items() if records}
    figure = attack_curves.attack_figure(title, groups, names=list(attacked))
    return None if figure is None else _picture(f"{id}-curves", "curves", CURVES, lambda: figure)


def _trajectories(id: str, title: str, rows: Sequence[ReportRow]) -> Picture | None:
    figure = plots.trajectory(title, {row.label: row.records for row in rows})
    return None if figure is None else _picture(f"{id}-trajectories", "trajectories", TRAJECTORIES, lambda: figure)


def _entries(row: ReportRow, source: RecordSource, metrics: Mapping[str, Metric]) -> list[RecordEntry]:
    paths = [source.shown(source.paths[record.content_hash]) for record in row.records]
    pairs = enumerate(zip(row.records, paths, strict=True))
    return [entry(record, f"{row.id}-r{number}", path, metrics) for number, (record, path) in pairs]
