"""Make the README of a results folder and its pictures from the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from unlearnbench import registry
from unlearnbench.hashing import digest
from unlearnbench.leaderboard.attacks import LEGEND, attack_sheets, attacked_tables
from unlearnbench.leaderboard.formats import as_markdown
from unlearnbench.leaderboard.rows import Board, TableKey
from unlearnbench.leaderboard.tables import Derived, columns_of, head, legend, tables
from unlearnbench.metric import Metric
from unlearnbench.names import join_names
from unlearnbench.plots.files import render_png
from unlearnbench.plots.pareto import pareto
from unlearnbench.records.identity import group_records, unique_labels
from unlearnbench.records.schema import Record
from unlearnbench.records.tuning import Tuning
from unlearnbench.report import tuning_table

SENDING = """## How to add a row

1. Put the method into `methods/NAME.py` (`unlearnbench new-method NAME` writes a template) and fix what
   `unlearnbench check NAME` finds. Methods of other packages, and weights with `--method checkpoint`, can be rows too.
2. Run it with attacks on whole tables; the controls are here already:
   ```bash
   unlearnbench run --method NAME --task digits-class --forget 3,8 --seeds 0-2 --attacks standard
   unlearnbench run --method NAME --task digits-text --forget seven,red --seeds 0-2 --attacks standard
   ```
3. Rebuild and check what you send: `unlearnbench leaderboard --write && unlearnbench validate results`.
4. Send a pull request with the method, its records (`seed-*.json` with their `.parquet` and `.png`) and this page.

A workflow then repeats step 3. It refuses records that were edited, are in the wrong place, lack per-image values, use
another protocol, or were tuned on what they report; and a page or picture that is older than its records. Settings
other than the defaults (`--set`, `--preset`) have rows of their own, by division. `unlearnbench verify RECORD` repeats
any run.

"""


def files(board: Board, records: Sequence[Record], tuned: Sequence[Tuning] = ()) -> dict[Path, bytes]:
    """README.md and its pictures, by their path in the results folder."""
    metrics = registry.load_metrics()
    sheets = tables(board, metrics, list(columns_of(metrics)), lambda text: f"**{text}**")
    parts, made = [], {}
    for sheet, (key, table) in zip(sheets, board.tables(), strict=True):
        path = picture_path(board, key, "pareto")
        text = as_markdown([sheet])
        present = table.where(lambda row: not row.older)
        present = present if len(present) else table
        older = len(table) - len(present)
        made[path] = render_png(
            pareto(present, ", ".join(map(str, [key[0], key[1], f"forget {key[3]}"]))), digest(text)
        )
        left_out = f"\n{older} rows of another version are left out.\n" if older else ""
        parts.append(f"{text}\n![Efficacy against utility]({path.as_posix()})\n{left_out}")
    attacks, more = pictured(board, records)
    fair, drawn = tuning_table.page(board, tuned)
    page = _page("\n".join(parts), attacks + fair, metrics)
    return {Path("README.md"): page.encode(), **made, **more, **drawn}


def stale(results: Path, made: Mapping[Path, bytes]) -> list[Path]:
    """The files that differ from those in the folder; pictures are compared by the hash of what they show."""
    return [path for path, content in made.items() if not _same(results / path, content)]


def _same(path: Path, content: bytes) -> bool:
    if not path.is_file():
        return False
    return path.read_bytes() == content if path.suffix == ".md" else source(path) == source(BytesIO(content))


def source(file: Path | BytesIO) -> str | None:
    """The hash of what a picture shows, from its metadata; None for other files."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return image.info.get("Source")
    except UnidentifiedImageError:
        return None


def _page(boards: str, attacks: str, metrics: dict[str, Metric]) -> str:
    notes = "\n".join(f"- {head(column)}: {_meaning(column)}" for column in columns_of(metrics).values())
    return (
        "# Results\n\n`unlearnbench leaderboard --write` makes this page from the records in this folder; do not edit "
        f"it. {legend(best='bold:').capitalize()}. Tables of different protocols must not be compared. Rankings on "
        "small worlds are no evidence about Stable Diffusion. `unlearnbench report` makes a page with plots, samples "
        f"and every record.\n\n{SENDING}{boards}\n{attacks}## Columns\n\n{notes}\n"
    )


def _meaning(column: Metric | Derived) -> str:
    return column.meaning if isinstance(column, Derived) else (type(column).__doc__ or "").strip().partition("\n")[0]


def pictured(board: Board, records: Sequence[Record]) -> tuple[str, dict[Path, bytes]]:
    """The section about attacks, and its pictures by their path in the results folder."""
    from unlearnbench.plots.attack_curves import attack_figure
    from unlearnbench.plots.files import render_png

    parts, made = [], {}
    for sheet, (key, _) in zip(attack_sheets(board), attacked_tables(board), strict=True):
        of_table = group_records(r for r in records if (r.task, r.protocol.name, r.protocol.hash, r.forget) == key)
        names = unique_labels(of_table)
        tried = {names[one]: [record for record in group if record.attacks] for one, group in of_table.items()}
        groups = {name: group for name, group in tried.items() if group}
        curves = attack_figure(f"{key[0]}, {key[1]}, forget {key[3]}", groups)
        text = as_markdown([sheet])
        if curves is not None:
            path = picture_path(board, key, "attacks")
            found = [each.attacks.values() for group in groups.values() for each in group]
            keys = [[attack.key for attack in attacks] for attacks in found]
            made[path] = render_png(curves, digest([text, keys]))
            text += f"\n![Recovered share against budget]({path.as_posix()})\n"
        parts.append(text)
    return (f"## Under attack\n\n{LEGEND}.\n\n" + "\n".join(parts) + "\n" if parts else ""), made


def picture_path(board: Board, key: TableKey, name: str) -> Path:
    """The path of a table's picture; protocols with equal names but different settings have one each."""
    task, protocol, hash, forget = key
    twins = [each for each, _ in board.tables() if (each[0], each[1], each[3]) == (task, protocol, forget)]
    return join_names(task, protocol, forget, f"{name}.png" if len(twins) == 1 else f"{name}-{hash[:8]}.png")
