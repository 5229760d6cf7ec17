"""One table of the report with its plots, attacks, sample grids and records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench import plots, registry
from unlearnbench.errors import UserError
from unlearnbench.leaderboard import attacks as attack_table
from unlearnbench.leaderboard import concept_effects
from unlearnbench.leaderboard.rows import Board, BoardRow
from unlearnbench.leaderboard.tables import notes_of, spans
from unlearnbench.metric import Metric
from unlearnbench.plots import attack_curves
from unlearnbench.plots.style import styles
from unlearnbench.records.identity import group_records, unique_labels
from unlearnbench.records.provenance import hardware
from unlearnbench.records.schema import Record
from unlearnbench.report.attack_sheet import AttackTable
from unlearnbench.report.attack_sheet import attack_table as make_attack_table
from unlearnbench.report.first_view import looks_of, rows_at_first
from unlearnbench.report.samples import Grid, build_strips
from unlearnbench.report.sources import RecordEntry, RecordSource, entry
from unlearnbench.report.table import Column, ReportRow, columns, first_screen_columns, row_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Groups = Mapping[tuple[Any, ...], list[Record]]
"""Records by table and label."""
POINTS = 72.0
"""Points per inch."""
REFERENCES = ("retrain", "original")
"""Controls that every plot of attacks shows."""
TRADE_OFF = (
    "Efficacy against utility: better is up and to the right. Bars are 95 % intervals, the area of a point grows with "
    "unlearning time, controls are hollow, and the line joins the methods that no other beats on both axes."
)
FIRST = "Better is up and to the right. Bars are 95 % intervals; points grow with unlearning time."
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
    other: bool = False
    """Whether it is about published and tuned settings, and shown when a reader asks for them."""


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
    short: list[int]
    """Places of the columns of the short board."""
    bodies: list[tuple[str, list[ReportRow]]]
    """Controls, then methods."""
    notes: str
    first: Picture
    """Beside the short board: efficacy against utility with default settings."""
    pictures: list[Picture]
    attacks: AttackTable | None
    curves: list[Picture]
    trajectories: list[Picture]
    samples: Grid | None
    entries: list[tuple[ReportRow, list[RecordEntry]]]

    @property
    def rows(self) -> list[ReportRow]:
        """The rows of both bodies."""
        return [row for _, rows in self.bodies for row in rows]

    @property
    def others(self) -> int:
        """The number of rows with published and tuned settings."""
        return sum(row.other for row in self.rows)

    @property
    def became(self) -> bool:
        """Whether it is known of any row what became of its forget images."""
        return any(row.became for row in self.rows)

    @property
    def common_flags(self) -> list[str]:
        """What is to be said of every row that is shown at first, such as that another version made it."""
        flags = [row.flags for row in self.rows if not row.other]
        return [flag for flag in flags[0] if len(flags) > 1 and all(flag in own for own in flags)]

    @property
    def ranking(self) -> list[tuple[str, list[ReportRow]]]:
        """The bodies of the short board: the best methods first (see `ReportRow.merit`), then controls."""
        methods, controls = ([row for row in self.rows if row.control == kind] for kind in (False, True))
        methods.sort(key=lambda row: row.merit, reverse=True)
        return [(name, rows) for name, rows in (("methods", methods), ("controls", controls)) if rows]

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
    id: str,
    table: Board,
    groups: Groups,
    source: RecordSource,
    metrics: Mapping[str, Metric],
    unsafe: bool,
    names: Sequence[str],
) -> Section:
    """Make the section for one table of the board; samples of unsafe tasks only if `unsafe`.

    `names` are all labels of the page, on which the colours of methods depend.
    """
    task, protocol, hash, forget = table.rows[0].table
    shown, first = columns(table, task, metrics), rows_at_first(table)
    looks = looks_of(table, first, styles(names))
    made = []
    for number, row in enumerate(table):
        key = (*row.table, row.label)
        records, look = groups[key], looks[row.index]
        point = f"{id}-{'first' if look.at_first else 'every'}-row-{row.index}"
        made.append(row_of(row, f"{id}-m{number}", point, shown, metrics, records, look))
    records = [record for row in made for record in row.records]
    withheld = "" if unsafe else _withheld(task)
    bodies = [("controls", [row for row in made if row.control]), ("methods", [row for row in made if not row.control])]
    drawings = Drawings(id, f"{task}, forget {forget}", table, first, made, names)
    sheet = next(iter(attack_table.attack_sheets(drawings.every)), None)
    return Section(
        id=id,
        task=task,
        protocol=protocol,
        hash=hash[:8],
        forget=forget,
        facts=_facts(records),
        untried=registry.untried(task, protocol),
        withheld=withheld,
        columns=shown,
        short=first_screen_columns(shown),
        bodies=[(name, own) for name, own in bodies if own],
        notes=notes_of(table, metrics),
        first=drawings.first_picture(),
        pictures=drawings.pictures(records, source),
        attacks=None if sheet is None else make_attack_table(sheet, {row.look.label: row for row in made}),
        curves=drawings.curves(),
        trajectories=drawings.trajectories(),
        samples=None if withheld else _samples(made, source),
        entries=[
            (row, _entries(_with_twins(row, of, groups), source, metrics)) for row, of in zip(made, table, strict=True)
        ],
    )


def _with_twins(made: ReportRow, row: BoardRow, groups: Groups) -> ReportRow:
    """The row with the records of the equal settings that it stands for."""
    keys = [(*row.table, twin.label) for twin in row.twins]
    equal = [record for key in keys for record in groups[key]]
    return made._replace(records=[*made.records, *equal])


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


class Drawings(NamedTuple):
    """The plots of a table, apart for the rows that are shown at first and for the others."""

    id: str
    title: str
    table: Board
    first: Board
    rows: Sequence[ReportRow]
    names: Sequence[str]
    """All labels of the page: a method has one colour in all plots."""

    @property
    def every(self) -> Board:
        """All rows, with labels as they are shown."""
        short = {row.label: row.look.label for row in self.rows}
        return self.table.of(replace(row, label=short[row.label], twins=()) for row in self.table)

    def first_picture(self) -> Picture:
        """Efficacy against utility of the rows that are shown at first."""
        draw = partial(plots.pareto, self.first, self.title, names=self.names)
        return _picture(f"{self.id}-first", "pareto", FIRST, draw)

    def pictures(self, records: list[Record], source: RecordSource) -> list[Picture]:
        """Effects on concepts and costs, then efficacy against utility of all rows."""
        found = concept_effects.effects(records, source.images)
        short, every = {row.label: row.look.label for row in self.rows}, self.every
        effects = found.assign(label=[short.get(label, label) for label in found["label"]])
        shown = {row.label for row in self.first}
        made = []
        for other, title in self._parts():
            some = every.of(row for row in every if (row.label not in shown) == other)
            part = effects[effects["label"].isin(shown) != other]
            if len(part):
                draw = partial(plots.matrix, part, title, names=self.names)
                made.append(_picture(self._name("matrix", other), "matrix", MATRIX, draw, other))
            draw = partial(plots.cost, some, title, names=self.names)
            made.append(_picture(self._name("cost", other), "cost", COST, draw, other))
        if len(self.table) > len(self.first):
            draw = partial(plots.pareto, every, f"{self.title}, all settings", names=self.names)
            made.append(_picture(f"{self.id}-every", "pareto", TRADE_OFF, draw, other=True))
        return made

    def curves(self) -> list[Picture]:
        """Attacks as recovered share against budget."""
        made = []
        for other, title in self._parts():
            groups = {row.look.label: row.records for row in self.rows if self._belongs(row, other)}
            attacked = {name: [record for record in some if record.attacks] for name, some in groups.items()}
            attacked = {name: some for name, some in attacked.items() if some}
            figure = attack_curves.attack_figure(title, attacked, names=self.names)
            if figure is not None and set(attacked) - set(REFERENCES):
                made.append(_picture(self._name("curves", other), "curves", CURVES, partial(_same, figure), other))
        return made

    def trajectories(self) -> list[Picture]:
        """Scores during unlearning."""
        made = []
        for other, title in self._parts():
            groups = {row.look.label: row.records for row in self.rows if row.other == other}
            figure = plots.trajectory(title, groups, names=self.names)
            if figure is not None:
                name = self._name("trajectories", other)
                made.append(_picture(name, "trajectories", TRAJECTORIES, partial(_same, figure), other))
        return made

    def _parts(self) -> list[tuple[bool, str]]:
        """Whether a plot is about the other rows, and its title."""
        rest = len(self.table) > len(self.first)
        return [(False, self.title), *([(True, f"{self.title}, other settings")] if rest else [])]

    def _belongs(self, row: ReportRow, other: bool) -> bool:
        """Whether a row is in a plot of attacks: those of other rows have the references too."""
        return row.other == other or row.look.label in REFERENCES

    def _name(self, kind: str, other: bool) -> str:
        return f"{self.id}-{kind}{'-other' if other else ''}"


def _same(figure: Figure) -> Figure:
    """The figure, for `_picture`, where it was drawn before."""
    return figure


def _picture(name: str, kind: str, caption: str, draw: Callable[[], Figure], other: bool = False) -> Picture:
    try:
        figure = draw()
    except UserError as error:
        return Picture(kind, "", f"no picture: {error}", other=other)
    return Picture(kind, plots.svg(figure, name), caption, POINTS * figure.get_figwidth(), other)


def _samples(rows: Sequence[ReportRow], source: RecordSource) -> Grid | None:
    """The strips of all rows, those that are shown at first before the others."""
    ordered = sorted(rows, key=lambda row: row.other)
    runs = [(row.look.label, next(filter(_sampled, row.records), row.records[0])) for row in ordered]
    return build_strips(runs, source.results, source.images, {row.look.label for row in rows if row.other})


def _entries(row: ReportRow, source: RecordSource, metrics: Mapping[str, Metric]) -> list[RecordEntry]:
    paths = [source.shown(source.paths[record.content_hash]) for record in row.records]
    pairs = enumerate(zip(row.records, paths, strict=True))
    return [entry(record, f"{row.id}-r{number}", path, metrics) for number, (record, path) in pairs]
