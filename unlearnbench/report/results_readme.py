"""Make the README of a results folder, the tables of every column beside it, and pictures, from the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest
from unlearnbench.leaderboard.attacks import LEGEND, attack_sheets, attacked_tables
from unlearnbench.leaderboard.formats import as_markdown, markdown_text, starry
from unlearnbench.leaderboard.rows import Board, TableKey
from unlearnbench.leaderboard.short import AFTER_NAME, MEANINGS, short_columns, short_head, short_sheets
from unlearnbench.leaderboard.tables import Derived, Sheet, columns_of, head, legend, tables
from unlearnbench.metric import Metric
from unlearnbench.names import join_names, wrong_name
from unlearnbench.plots.files import render_png
from unlearnbench.plots.pareto import pareto
from unlearnbench.records.identity import group_records, unique_labels
from unlearnbench.records.schema import Record
from unlearnbench.records.tuning import Tuning
from unlearnbench.report import tuning_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOLS = "protocols.md"
"""The page, made apart from records, that shows how far published numbers lie apart; linked where the folder has it."""
FULL = "full"
"""Folder of the tables of every column."""
MADE = "made with it by `unlearnbench leaderboard --write`"
"""What these say of themselves."""
PUBLISHED = f"""What papers print of one method under one name lies far apart, by protocol: [side by side]({PROTOCOLS}).

"""
SENDING = """## How to add a row

1. Put the method into `methods/NAME.py` (`unlearnbench new-method NAME` writes a template) and fix what
   `unlearnbench check NAME` finds. Methods of other packages, and weights with `--method checkpoint`, can be rows too.
2. Run it on whole tables: five seeds, three of them attacked. The controls of the tables below are here already:
   ```bash
   unlearnbench run --method NAME --task digits-class --forget 3,8 --seeds 0-4
   unlearnbench run --method NAME --task digits-class --forget 3,8 --seeds 0-2 --attacks standard
   unlearnbench run --method NAME --task digits-text --forget seven,red --seeds 0-4
   unlearnbench run --method NAME --task digits-text --forget seven,red --seeds 0-2 --attacks standard
   ```
3. Rebuild and check what you send: `unlearnbench leaderboard --write && unlearnbench validate results`.
4. Send a pull request with the method, its records (`seed-*.json` with their `.parquet` and `.png`), this page and
   `full/`.

A workflow then repeats step 3. It refuses records that were edited, are in the wrong place, lack per-image values, use
another protocol, or were tuned on what they report; and a page, table or picture that is older than its records.
Settings other than the defaults (`--set`, `--preset`) have rows of their own. `unlearnbench verify RECORD` repeats any
run.

"""


def files(
    board: Board, records: Sequence[Record], tuned: Sequence[Tuning] = (), beside: Path | None = None
) -> dict[Path, bytes]:
    """README.md, the tables of every column and the pictures, by their path in the results folder.

    `beside` is that folder, if it is there already: README.md links the page `PROTOCOLS` in it.
    """
    metrics = registry.load_metrics()
    short = short_sheets(board, metrics, starry)
    full = tables(board, metrics, list(columns_of(metrics)), starry)
    under_attack = {key: sheet for sheet, (key, _) in zip(attack_sheets(board), attacked_tables(board), strict=True)}
    parts, made = [], {}
    for brief, sheet, (key, table) in zip(short, full, board.tables(), strict=True):
        picture, path = picture_path(board, key, "pareto"), full_path(board, key)
        text = as_markdown([sheet])
        present = table.where(lambda row: not row.older)
        present = present if len(present) else table
        older = len(table) - len(present)
        figure = _pareto(present, f"{key[0]}, {key[1]}, forget {key[3]}")
        if figure is not None:
            made[picture] = render_png(figure, digest(text))
        made[path] = _full(sheet, under_attack.get(key)).encode()
        left_out = f"\n{older} rows of another version are left out of the figure.\n" if older else ""
        every = f"[Every column{' and attack' if key in under_attack else ''}]({link(path)})"
        drawn = f"\n![Efficacy against utility]({link(picture)})\n{left_out}" if figure is not None else ""
        parts.append(f"{as_markdown([brief])}\n{every}\n{drawn}")
    attacks, more = pictured(board, records)
    fair, best = tuning_table.page(board, tuned)
    linked = beside is not None and (beside / PROTOCOLS).is_file()
    page = _page("\n".join(parts), attacks + fair, board, metrics, PUBLISHED if linked else "")
    return {Path("README.md"): page.encode(), **made, **more, **best}


def _pareto(table: Board, title: str) -> Figure | None:
    """Efficacy against utility; None where no row has both, as after runs that diverged."""
    try:
        return pareto(table, title)
    except UserError:
        return None


def link(path: Path) -> str:
    """A path in the results folder as a link from its README."""
    return quote(path.as_posix())


def full_path(board: Board, key: TableKey) -> Path:
    """The path of a table of every column, with a hash where its name is too long or another table's too."""

    def name(key: TableKey) -> str:
        return f"{key[0]}-{key[1]}-{key[3]}"

    twins = [each for each, _ in board.tables() if name(each) == name(key)]
    plain = len(twins) == 1 and not wrong_name(f"{name(key)}.md")
    return join_names(FULL, f"{name(key)}.md" if plain else f"{name(key)[:40]}-{digest(list(key))[:8]}.md")


def abandoned(results: Path, made: Mapping[Path, bytes]) -> list[Path]:
    """Tables of every column that were made from records which are no longer in the folder."""
    found = sorted(path.relative_to(results) for path in (results / FULL).glob("*.md"))
    return [path for path in found if path not in made and MADE in (results / path).read_text(errors="replace")]


def _full(sheet: Sheet, attacks: Sheet | None) -> str:
    """A page with a table of every column, and that of every attack."""
    text = (
        f"# {markdown_text(sheet.title)}\n\nEvery column of a table in [README.md](../README.md), {MADE}; do "
        f"not edit. {legend(best='bold:').capitalize()}. "
        "[What the columns mean](../README.md#columns).\n\n"
        f"{as_markdown([sheet._replace(title='Every column')])}"
    )
    return text if attacks is None else f"{text}\n{as_markdown([attacks._replace(title='Under attack')])}\n{LEGEND}.\n"


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


def _page(boards: str, attacks: str, board: Board, metrics: dict[str, Metric], published: str) -> str:
    return (
        "# Results\n\n`unlearnbench leaderboard --write` makes this page, the files in `full/` and the figures from "
        "the records in this folder; do not edit them. Tables on this page have the columns that matter most; the link "
        "below each leads to all columns.\n\n"
        f"{legend(best='bold:').capitalize()}. Tables of different protocols must not be compared. Rankings on "
        "small worlds are no evidence about Stable Diffusion. `unlearnbench report` makes a page with plots, samples "
        f"and every record.\n\n{published}{SENDING}{boards}\n{attacks}## Columns\n\n{_glossary(board, metrics)}\n"
    )


def _glossary(board: Board, metrics: dict[str, Metric]) -> str:
    """What each column means, those of the short tables first."""
    short: dict[str, str] = {}
    for _, table in board.tables():
        for name in short_columns(table, metrics):
            short.setdefault(short_head(name, table, metrics), name)
    columns, first = columns_of(metrics), {}
    for title, name in short.items():
        told = MEANINGS.get(AFTER_NAME.sub("", title))
        first[title] = f"{told}." if told else _meaning(columns[name])
    every = {head(column): _meaning(column) for column in columns.values() if head(column) not in first}
    parts = (("In the tables on this page", first), ("Besides, in the files in `full/`", every))
    return "\n\n".join(
        f"{place}:\n\n" + "\n".join(f"- {title}: {meaning}" for title, meaning in found.items())
        for place, found in parts
    )


def _meaning(column: Metric | Derived) -> str:
    return column.meaning if isinstance(column, Derived) else (type(column).__doc__ or "").strip().partition("\n")[0]


def pictured(board: Board, records: Sequence[Record]) -> tuple[str, dict[Path, bytes]]:
    """The section about attacks, and its pictures by their path in the results folder."""
    from unlearnbench.plots.attack_curves import attack_figure
    from unlearnbench.plots.files import render_png

    parts, made = [], {}
    brief = attack_sheets(board, 0, brief=True)
    for shown, sheet, (key, _) in zip(brief, attack_sheets(board), attacked_tables(board), strict=True):
        of_table = group_records(r for r in records if (r.task, r.protocol.name, r.protocol.hash, r.forget) == key)
        names = unique_labels(of_table)
        tried = {names[one]: [record for record in group if record.attacks] for one, group in of_table.items()}
        groups = {name: group for name, group in tried.items() if group}
        curves = attack_figure(f"{key[0]}, {key[1]}, forget {key[3]}", groups)
        text = f"{as_markdown([shown])}\n[Every attack]({link(full_path(board, key))})\n"
        if curves is not None:
            path = picture_path(board, key, "attacks")
            found = [each.attacks.values() for group in groups.values() for each in group]
            keys = [[attack.key for attack in attacks] for attacks in found]
            made[path] = render_png(curves, digest([as_markdown([sheet]), keys]))
            text += f"\n![Recovered share against budget]({link(path)})\n"
        parts.append(text)
    return (f"## Under attack\n\n{LEGEND}.\n\n" + "\n".join(parts) + "\n" if parts else ""), made


def picture_path(board: Board, key: TableKey, name: str) -> Path:
    """The path of a table's picture; protocols with equal names but different settings have one each."""
    task, protocol, hash, forget = key
    twins = [each for each, _ in board.tables() if (each[0], each[1], each[3]) == (task, protocol, forget)]
    return join_names(task, protocol, forget, f"{name}.png" if len(twins) == 1 else f"{name}-{hash[:8]}.png")
