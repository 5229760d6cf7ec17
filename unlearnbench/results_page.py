"""The README of a results folder and its pictures, made from the records below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench import attack_table, registry, tuning_table
from unlearnbench.board import TABLE
from unlearnbench.formats import as_markdown
from unlearnbench.hashing import digest
from unlearnbench.leaderboard import Derived, columns_of, head, legend, tables
from unlearnbench.metric import Metric
from unlearnbench.plots import pareto, picture
from unlearnbench.record import Record
from unlearnbench.tuning_record import Tuning

if TYPE_CHECKING:
    import pandas as pd

SENDING = """## How a row is made and sent

1. Put the method into `methods/NAME.py` (`unlearnbench new-method NAME` writes a start) and mend what
   `unlearnbench check NAME` finds. A method of another package, or weights by `--method checkpoint`, are rows too.
2. Run it, with attacks, on whole tables; the controls lie here already:
   ```bash
   unlearnbench run --method NAME --task digits-class --forget 3,8 --seeds 0-2 --attacks standard
   unlearnbench run --method NAME --task digits-text --forget seven,red --seeds 0-2 --attacks standard
   ```
3. Rebuild and check what you send: `unlearnbench leaderboard --write && unlearnbench validate results`.
4. Send a pull request with the method, its records (`seed-*.json`, `.parquet` and `.png` beside them) and this page.

A workflow then does step 3 anew: it refuses records that were edited, are in another's place, miss their per-image
values, were made by another protocol or tuned on what they report, and a page or picture that is older than its
records. Settings other than the defaults are rows of their own (`--set`, `--preset`), by division.
`unlearnbench verify RECORD` makes any of them anew.

"""


def files(board: pd.DataFrame, records: Sequence[Record], tuned: Sequence[Tuning] = ()) -> dict[Path, bytes]:
    """README.md and the pictures that it shows, by their place below the results folder."""
    metrics = registry.load_metrics()
    sheets = tables(board, metrics, list(columns_of(metrics)), lambda text: f"**{text}**")
    parts, made = [], {}
    for sheet, (key, rows) in zip(sheets, board.groupby(TABLE, sort=False), strict=True):
        path = attack_table.picture(board, key, "pareto")
        text = as_markdown([sheet])
        made[path] = picture(pareto(rows, ", ".join(map(str, [key[0], key[1], f"forget {key[3]}"]))), digest(text))
        parts.append(f"{text}\n![Efficacy against utility]({path.as_posix()})\n")
    attacks, more = attack_table.pictured(board, records)
    fair, drawn = tuning_table.page(board, tuned)
    page = _page("\n".join(parts), attacks + fair, metrics)
    return {Path("README.md"): page.encode(), **made, **more, **drawn}


def stale(results: Path, made: Mapping[Path, bytes]) -> list[Path]:
    """Those of the files that lie in the folder in another state; pictures count by what they were drawn from."""
    return [path for path, content in made.items() if not _same(results / path, content)]


def _same(path: Path, content: bytes) -> bool:
    if not path.is_file():
        return False
    return path.read_bytes() == content if path.suffix == ".md" else source(path) == source(BytesIO(content))


def source(file: Path | BytesIO) -> str | None:
    """Hash of what a picture was drawn from, as it says; None for one of another kind."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return image.info.get("Source")
    except UnidentifiedImageError:
        return None


def _page(boards: str, attacks: str, metrics: dict[str, Metric]) -> str:
    notes = "\n".join(f"- {head(column)}: {_meaning(column)}" for column in columns_of(metrics).values())
    return (
        "# Results\n\nMade by `unlearnbench leaderboard --write` from the records below this folder; edits are lost. "
        f"{legend(best='bold:').capitalize()}. Tables of different protocols must not be compared. Rankings on small "
        "worlds are no evidence about Stable Diffusion. The same with plots, samples and every record: `unlearnbench "
        f"report`.\n\n{SENDING}{boards}\n{attacks}## Columns\n\n{notes}\n"
    )


def _meaning(column: Metric | Derived) -> str:
    return column.meaning if isinstance(column, Derived) else (type(column).__doc__ or "").strip().partition("\n")[0]
