"""The two consoles that all commands share, and the tables that they print."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from typer import Exit

from unlearnbench.cli.table_layout import GAP, TablePart, TextColumn, fit_columns, split, wrapped
from unlearnbench.printable import printable

if TYPE_CHECKING:
    from unlearnbench.records.schema import Record

PIPE: Final = 10_000
"""Width of the output to a file or another program, so that no table is split and no line wraps."""
NARROWEST: Final = 20
"""Smallest width that tables are laid out for, whatever COLUMNS says."""
PROSE = ("flags", "by", "chosen")
"""Heads of text columns that are not among the first columns."""


class Terminal(Console):
    """A console that shows text as it is: no markup, no emoji codes, no characters that steer the terminal.

    A string that is printed is one line. Width and height that the environment gives count only as whole numbers
    above 0; no table is laid out for fewer than `NARROWEST` columns. Where the output is no terminal and nothing says
    how wide it is, lines do not end: what is piped into another program can be searched line by line.
    """

    def __init__(self, stderr: bool = False, piped: int | None = None):
        sizes = {name: os.environ.get(name, "") for name in ("COLUMNS", "LINES")}
        wrong = {name for name, size in sizes.items() if not (size.isascii() and size.isdecimal() and int(size[:9]))}
        environment = {name: value for name, value in os.environ.items() if name not in wrong}
        super().__init__(stderr=stderr, markup=False, emoji=False, _environ=environment)
        if piped and "COLUMNS" in wrong and not self.is_terminal:
            self.width = piped

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and rows."""
        found = super().size
        return ConsoleDimensions(max(found.width, NARROWEST), found.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def print(self, *objects: Any, **kwargs: Any) -> None:
        """Print, each string as one line."""
        super().print(*(printable(one) if isinstance(one, str) else one for one in objects), **kwargs)

    def on_broken_pipe(self) -> None:
        """Stop silently when the reader has gone, as in `… | head`."""
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise Exit(1)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render text, tables and bars; only rich's own segments may contain control characters."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text, keep="\n")
            yield segment if text == segment.text else Segment(text, segment.style)


out, err = Terminal(piped=PIPE), Terminal(stderr=True)
Section = tuple[str, list[list[str]]]
"""A heading, which may be empty, and rows."""


def show_lines(*lines: str) -> None:
    """Print several lines, each cleaned by itself and never wrapped."""
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)


def show_runs(
    groups: Sequence[list[Record]],
    original: Record | None,
    results: Path,
    attacks: Sequence[str] = (),
    here: Mapping[Path, Record] | None = None,
) -> None:
    """Print the results of the methods of one task, protocol and concept.

    One method gets a row for each metric, beside the original and retrain; several share one table, a row for each.
    `here` holds, by place, what this machine measured where a record of the same run with other digits is kept: these
    numbers are shown first. Without the original there are no numbers, only why there are none.
    """
    from unlearnbench.leaderboard import run_summary

    if len(groups) == 1:
        show_run(groups[0], original, results, attacks, here)
        return
    controls, why = _controls(groups[0][0], results)
    mine = [_measured(group, here) for group in groups]
    shown = [group for group in mine if any(record.scores for record in group)]
    if shown and original is not None:
        first = (here or {}).get(original.place(), original)
        heads, rows = run_summary.method_rows(shown, first, controls["retrain"])
        order = ["n", "flags", *run_summary.headline_heads()]
        every = [record for group in groups for record in group]
        omitted = print_table(_title(every), heads, [("", rows)], keys=1, fit=True, first=order)
        if omitted:
            names = ", ".join(omitted)
            out.print(f"left out for lack of width: {names}; a pipe or --format json shows them", highlight=False)
        _show_lacking(groups, controls, why, results)
    for line in _kept_lines(groups, results, here):
        out.print(line, soft_wrap=True, highlight=False)
    for group in groups:
        if attacks:
            _show_attacks(group, controls["retrain"], why, attacks)
        show_prompt_sets(group)
        _show_status(group)
        _show_files(group, results)


def show_run(
    group: list[Record],
    original: Record | None,
    results: Path,
    attacks: Sequence[str] = (),
    here: Mapping[Path, Record] | None = None,
) -> None:
    """Print the result of a run: its metrics beside those of the controls, notes, attacks and the files written."""
    from unlearnbench.leaderboard import run_summary
    from unlearnbench.leaderboard.board import no_images
    from unlearnbench.records.image_table import reader

    controls, why = _controls(group[0], results)
    mine = _measured(group, here)
    kept = [] if mine == group else group
    images = no_images if kept else reader(results)  # values by image belong to the record that is kept
    if original is not None and any(r.scores for r in mine):
        first = (here or {}).get(original.place(), original)
        heads, rows = run_summary.metric_run_rows(mine, first, controls["retrain"], images, kept)
        print_table(_title(group), heads, [("", rows)])
        for line in _kept_lines([group], results, here):
            out.print(line, soft_wrap=True, highlight=False)
        for line in run_summary.run_notes(mine, controls, images, why):
            out.print(line, soft_wrap=True, highlight=False)
        _show_lacking([group], controls, why, results)
        if printed := group[0].protocol.settings.get("printed"):
            out.print(
                f"for comparison with the paper's tables: {printed}", soft_wrap=True, highlight=False, markup=False
            )
    if attacks:
        _show_attacks(group, controls["retrain"], why, attacks)
    show_prompt_sets(group)
    _show_status(group)
    _show_files(group, results)


def show_next(results: Path, records: Sequence[Record]) -> None:
    """Print the commands that go on from here, each on a line of its own that no width breaks."""
    from unlearnbench.leaderboard.run_summary import next_steps

    if commands := next_steps(results, records):
        show_lines("next:", *(f"  {command}" for command in commands))


def _title(group: Sequence[Record]) -> str:
    record, numbers = group[0], sorted({r.seeds["unlearning"] for r in group})
    seeds = ", ".join(map(str, numbers))
    return f"{record.task} · forget {record.forget} · protocol {record.protocol.name} · seed {seeds}"


def _controls(record: Record, results: Path) -> tuple[dict[str, list[Record]], dict[str, str]]:
    """The controls' records that are comparable with a record, and why others are not."""
    from unlearnbench.records import identity
    from unlearnbench.records.folder import load_all

    place = record.path(results).parents[1]
    controls: dict[str, list[Record]] = {}
    why: dict[str, str] = {}
    for name in ("original", "retrain", "destroy"):
        controls[name], reason = identity.matching(load_all(results, place / name), record, name)
        why |= {name: reason} if reason else {}
    return controls, why


def _show_lacking(
    groups: Sequence[Sequence[Record]],
    controls: Mapping[str, Sequence[Record]],
    why: Mapping[str, str],
    results: Path,
) -> None:
    """Say which controls a table's scores lack, and why those that a checkout ships do not serve."""
    from unlearnbench.leaderboard.run_summary import lacking_controls
    from unlearnbench.pipeline.shipped import shipped_mismatches

    lacking = [name for name, runs in controls.items() if not runs and name not in why]
    shipped = shipped_mismatches(groups[0][0], results, lacking)
    for line in lacking_controls(groups, controls, why, shipped, results):
        out.print(line, soft_wrap=True, highlight=False)


def _measured(group: Sequence[Record], here: Mapping[Path, Record] | None) -> list[Record]:
    """What this machine measured of these runs; the records themselves where nothing else is kept."""
    return [(here or {}).get(record.place(), record) for record in group]


def _kept_lines(groups: Iterable[Sequence[Record]], results: Path, here: Mapping[Path, Record] | None) -> list[str]:
    from unlearnbench.leaderboard.run_summary import kept_line

    kept = [record for group in groups for record in group if record.place() in (here or {})]
    return [kept_line((here or {})[record.place()], record, record.path(results)) for record in kept]


def _show_attacks(
    group: Sequence[Record], retrain: Sequence[Record], why: Mapping[str, str], attacks: Sequence[str]
) -> None:
    """Print what was recovered under attack, and its excess over retrain's."""
    from unlearnbench import registry
    from unlearnbench.leaderboard.attacks import attack_run_rows

    if not any(r.attacks for r in group):
        return
    heads, rows, reasons = attack_run_rows(group, retrain, attacks)
    print_table("under attack: share of targets recovered, and its excess over retrain's", heads, [("", rows)])
    for line in reasons:
        out.print(line, soft_wrap=True, highlight=False, markup=False)
    if not any(label in r.attacks for r in retrain for label in attacks):
        floor = f"{group[0].task} has no retrain"
        if "retrain" in why:
            floor = why["retrain"]
        elif registry.trainable(group[0].task):
            floor = "run --method retrain with the same options"
        out.print(f"no floor: some attacks recover from any model; {floor}", soft_wrap=True)


FEW_LOST = 3
"""Scores that are missing, of which the reason is told."""


def _show_status(group: Sequence[Record]) -> None:
    """Say on stderr what came to no reliable result and why, and what was short of memory."""
    from unlearnbench.leaderboard.run_summary import fitting_tasks

    for r in group:
        if r.status != "ok":
            lost = [
                f"{name}: {score.reason}" for name, score in r.scores.items() if score.value is None and score.reason
            ]
            reason = r.reason or r.judge_error or "; ".join(lost[:FEW_LOST]) or "scores are missing"
            fit = fitting_tasks(r)
            more = f"; these tasks have it: {', '.join(fit)}" if fit else ""
            err.print(
                f"{r.label()} seed {r.seeds['unlearning']}: {r.status}: {reason}{more}", markup=False, soft_wrap=True
            )
    batches = {r.environment["sampling_batch"] for r in group if "sampling_batch" in r.environment}
    if batches:
        err.print(
            f"not enough memory for the protocol's batch: sampled {min(batches)} images at a time", soft_wrap=True
        )
    micro = {r.environment["microbatch"] for r in group if "microbatch" in r.environment}
    if micro:
        err.print(
            f"not enough memory for whole batches: unlearned in micro-batches of {min(micro)}, with the same updates",
            soft_wrap=True,
        )


def _show_files(group: Sequence[Record], results: Path) -> None:
    """Name the records, and what lies beside them."""
    record = group[0]
    place = record.path(results).parent
    files = ", ".join(f"seed-{r.seeds['unlearning']}.json" for r in group)
    beside = [suffix for suffix in (".parquet", ".png") if record.path(results).with_suffix(suffix).is_file()]
    also = {".parquet": "per-image values (.parquet)", ".png": "the sample grid (.png)"}
    more = f", with {' and '.join(also[suffix] for suffix in beside)}" if beside else ""
    made = max(r.created for r in group).replace("T", " ").removesuffix("+00:00")
    out.print(f"records: {place}/{files}, of {made} UTC{more}", highlight=False, soft_wrap=True)


def show_prompt_sets(group: Sequence[Record]) -> None:
    """Print scores on the user's own prompts, a section for each file and group of prompts, and what was left out."""
    from unlearnbench.leaderboard.run_summary import prompt_set_rows

    heads, sections, reasons = prompt_set_rows(group)
    if sections:
        print_table("your own prompts, beside the protocol's numbers", heads, sections)
    for line in reasons:
        out.print(line, soft_wrap=True, highlight=False)


def print_table(
    title: str,
    heads: Sequence[str],
    sections: Sequence[Section],
    left: int = 1,
    *,
    keys: int = 1,
    prose: Collection[str] = PROSE,
    fit: bool = False,
    first: Sequence[str] = (),
) -> list[str]:
    """Print a table section by section, split into several where the terminal is too narrow for one.

    Args:
        title: Printed above each of the tables, as it is: markup has no effect in it.
        heads: The columns' names; where all are empty there is no header.
        sections: Rows under headings. No cell is ever cut: text wraps, and numbers stay on one line.
        left: How many of the first columns hold text; the others hold numbers and are aligned to the right.
        keys: How many of the first columns identify a row; every table repeats them.
        prose: Heads of further columns of text.
        fit: Print one table of as many columns as fit, in place of several.
        first: With `fit`, heads of the columns that have priority, the most important first.

    Returns:
        The heads of the columns that `fit` left out.
    """
    columns = _columns(heads, sections, max(left, keys), prose)
    shown = fit_columns(columns, out.width, keys, first) if fit else list(range(len(columns)))
    parts = split([columns[i] for i in shown], out.width, keys)
    for number, part in enumerate(parts, 1):
        if title:
            more = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
            out.print(Text(printable(f"{title}{more}"), style="bold"), soft_wrap=True, highlight=False)
        positions = [shown[i] for i in part.columns]
        _print_part([columns[i] for i in positions], positions, part, sections)
    return [column.head for i, column in enumerate(columns) if i not in shown]


def in_one_table(
    heads: Sequence[str], sections: Sequence[Section], left: int = 1, prose: Collection[str] = PROSE
) -> bool:
    """Whether `print_table` prints these columns as one table."""
    return len(split(_columns(heads, sections, left, prose), out.width)) == 1


def _columns(heads: Sequence[str], sections: Sequence[Section], left: int, prose: Collection[str]) -> list[TextColumn]:
    """Columns of a table; headings of sections are in the first."""
    cells = [row for heading, rows in sections for row in ([[heading], *rows] if heading else rows)]
    return [
        TextColumn(printable(head), [printable(row[i]) for row in cells if i < len(row)], i < left or head in prose)
        for i, head in enumerate(heads)
    ]


def _print_part(
    columns: Sequence[TextColumn], positions: Sequence[int], part: TablePart, sections: Sequence[Section]
) -> None:
    """Print the columns at these positions. Cells are wrapped beforehand, so that rich cuts none."""
    headed = any(column.head for column in columns)
    table = Table(
        box=SIMPLE_HEAD if headed else None,
        show_header=headed,
        width=part.width,
        pad_edge=not headed,
        padding=(0, 1) if headed else (0, GAP, 0, 0),
        collapse_padding=headed,
    )

    def fitted(texts: Sequence[str]) -> list[Text]:
        return [
            Text("\n".join(wrapped(printable(text), width))) for text, width in zip(texts, part.widths, strict=True)
        ]

    for column, head, width in zip(columns, fitted([column.head for column in columns]), part.widths, strict=True):
        justify: Literal["left", "right"] = "left" if column.prose else "right"
        style = None if headed or len(table.columns) else "bold"
        table.add_column(head, justify=justify, width=width, no_wrap=True, style=style)
    for name, rows in sections:
        if name:
            table.add_section()
            (heading,) = fitted([name, *[""] * (len(columns) - 1)])[:1]
            heading.stylize("dim")
            table.add_row(heading)
        for row in rows:
            table.add_row(*fitted([row[i] for i in positions]))
    out.print(table, crop=False, no_wrap=True, overflow="ignore")
