"""What the command line's modules share: two consoles and the tables that they print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from unlearnbench.record import Record

out, err = Console(), Console(stderr=True)
Section = tuple[str, list[list[str]]]
"""A heading, which may be empty, and rows."""


def show_run(group: list[Record], original: Record, results: Path, attacks: Sequence[str] = ()) -> None:
    """Metric, original, this method, retrain if there, change, interval; and what these attacks found."""
    from unlearnbench import identity, registry, run_table
    from unlearnbench.perimage import reader
    from unlearnbench.record import load_all

    record, images = group[0], reader(results)
    place = results / record.task / record.protocol.name / record.forget
    controls, why = {}, {}
    for name in ("original", "retrain", "destroy"):
        controls[name], reason = identity.matching(load_all(results, place / name), record, name)
        why |= {name: reason} if reason else {}
    heads, rows = run_table.run_rows(group, original, controls["retrain"], images)
    seeds = ", ".join(str(r.seeds["unlearning"]) for r in group)
    if any(r.scores for r in group):
        print_table(
            f"{record.task} · forget {record.forget} · protocol {record.protocol.name} · seed {seeds}",
            heads,
            [("", rows)],
        )
        for line in run_table.run_notes(group, controls, images, why):
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
            if "retrain" in why:
                floor = why["retrain"]
            elif registry.trainable(record.task):
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
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
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
            table.add_row(f"[dim]{escape(name)}[/dim]")
        for row in rows:
            table.add_row(*map(escape, row))
    out.print(table)
