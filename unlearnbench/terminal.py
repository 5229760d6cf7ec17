"""What the command line's modules share: two consoles and the tables that they print."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from typer import Exit

from unlearnbench.printable import printable

if TYPE_CHECKING:
    from unlearnbench.record import Record

NARROWEST: Final = 20
"""Columns that tables are laid out for at least, however few COLUMNS says there are."""


class Terminal(Console):
    """A console that shows text as it is: no markup, no emoji codes, no characters that steer the terminal.

    A string that is printed is one line. Width and height that the environment gives count only as whole numbers
    above 0; no table is laid out for fewer than `NARROWEST` columns.
    """

    def __init__(self, stderr: bool = False):
        sizes = {name: os.environ.get(name, "") for name in ("COLUMNS", "LINES")}
        wrong = {name for name, size in sizes.items() if not (size.isascii() and size.isdecimal() and int(size[:9]))}
        environment = {name: value for name, value in os.environ.items() if name not in wrong}
        super().__init__(stderr=stderr, markup=False, emoji=False, _environ=environment)

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
        """Stop without a word where nobody reads any more, as in `… | head`."""
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise Exit(1)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is written, of tables and bars too: only rich's own segments may steer the terminal."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text, keep="\n")
            yield segment if text == segment.text else Segment(text, segment.style)


out, err = Terminal(), Terminal(stderr=True)
Section = tuple[str, list[list[str]]]
"""A heading, which may be empty, and rows."""


def lenient() -> None:
    """Let no character stop a command: what a stream's encoding lacks is written as a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def show_lines(*lines: str) -> None:
    """Text of several lines, each cleaned by itself and as long as it is."""
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)


def show_run(group: list[Record], original: Record, results: Path, attacks: Sequence[str] = ()) -> None:
    """Metric, original, this method, retrain if there, change, interval; and what these attacks found."""
    from unlearnbench import registry, run_table
    from unlearnbench.perimage import reader
    from unlearnbench.record import load_all

    record, images = group[0], reader(results)
    place = record.path(results).parents[1]
    controls = {
        name: run_table.gold(load_all(results, place / name), record, name)
        for name in ("original", "retrain", "destroy")
    }
    heads, rows = run_table.run_rows(group, original, controls["retrain"], images)
    seeds = ", ".join(str(r.seeds["unlearning"]) for r in group)
    if any(r.scores for r in group):
        print_table(
            f"{record.task} · forget {record.forget} · protocol {record.protocol.name} · seed {seeds}",
            heads,
            [("", rows)],
        )
        for line in run_table.run_notes(group, controls, images):
            out.print(line, soft_wrap=True, highlight=False)
        if printed := record.protocol.settings.get("printed"):
            out.print(f"beside the paper's tables: {printed}", soft_wrap=True, highlight=False, markup=False)
    if attacks and any(r.attacks for r in group):
        from unlearnbench.attack_table import run_rows

        heads, rows, why = run_rows(group, controls["retrain"], attacks)
        print_table("under attack: share of targets recovered, and its excess over retrain's", heads, [("", rows)])
        for line in why:
            out.print(line, soft_wrap=True, highlight=False, markup=False)
        if not any(label in r.attacks for r in controls["retrain"] for label in attacks):
            floor = f"{record.task} has no retrain"
            if registry.trainable(record.task):
                floor = "with the same options: --method retrain"
            out.print(f"no floor: some attacks recover from any model; {floor}", soft_wrap=True)
    for r in group:
        if r.status != "ok":
            reason = r.reason or r.judge_error or "scores are missing"
            err.print(f"{r.label()} seed {r.seeds['unlearning']}: {r.status}: {reason}", markup=False, soft_wrap=True)
    batches = {r.environment["sampling_batch"] for r in group if "sampling_batch" in r.environment}
    if batches:
        err.print(f"too little memory for the protocol's chunk: drawn {min(batches)} images at once", soft_wrap=True)
    files = ", ".join(f"seed-{r.seeds['unlearning']}.json" for r in group)
    beside = [suffix for suffix in (".parquet", ".png") if record.path(results).with_suffix(suffix).is_file()]
    also = {".parquet": "per-image values (.parquet)", ".png": "the sample grid (.png)"}
    more = f", with {' and '.join(also[suffix] for suffix in beside)}" if beside else ""
    made = max(r.created for r in group).replace("T", " ").removesuffix("+00:00")
    out.print(f"records: {place / record.label()}/{files}, of {made} UTC{more}", highlight=False, soft_wrap=True)


def print_table(title: str, heads: list[str], sections: list[Section], left: int = 1) -> None:
    """Section by section; the first `left` columns and the `WRAPPED` are words, the others numbers."""
    from unlearnbench.leaderboard import LABEL, WRAPPED

    table = Table(
        title=printable(title),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, name in enumerate(heads):
        words = number < left or name in WRAPPED
        least = (
            min(LABEL, max((len(row[0]) for _, rows in sections for row in rows), default=0)) if number == 0 else None
        )
        justify: Literal["left", "right"] = "left" if words else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=number > 0 and not words, min_width=least)
    for name, rows in sections:
        if name:
            table.add_section()
            table.add_row(Text(printable(name), style="dim"))
        for row in rows:
            table.add_row(*map(printable, row))
    out.print(table)
