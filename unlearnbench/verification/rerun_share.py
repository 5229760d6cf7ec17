"""Run a random share of records again, so that a forger cannot know which numbers will be checked."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from unlearnbench import registry
from unlearnbench.errors import UserError, one_line
from unlearnbench.records.image_table import read_beside
from unlearnbench.records.lineage import standing
from unlearnbench.records.schema import Record
from unlearnbench.verification.finding import Finding, Note
from unlearnbench.verification.verify import rebuilt, verify_record

GROUP = "drawn for verification, but could not be run again here"


def draw_records(records: Sequence[tuple[Path, Record]], share: float, seed: int) -> list[tuple[Path, Record]]:
    """A share of each task's records, rounded up to at least one; the same seed gives the same records.

    The choice depends on the records' names, not on their folder.
    """
    kept = []
    for task in sorted({record.task for _, record in records}):
        own = sorted(
            (pair for pair in records if pair[1].task == task), key=lambda pair: pair[1].path(Path()).as_posix()
        )
        count = math.ceil(round(share * len(own), 9))
        kept += random.Random(f"{seed} {task}").sample(own, count)
    return kept


def verified(
    records: Sequence[tuple[Path, Record]], sample: float | None, begin: Callable[[str], None]
) -> Iterator[Finding]:
    """Run these records again on the CPU. A disagreement is a problem; a record that cannot be run here is a note.

    `sample` is the share of each record's images to sample again; None samples all of them and repeats its attacks.
    """
    for path, record in records:
        begin(f"{record.label()} · forget {record.forget} · seed {record.seeds['unlearning']}")
        reason = _unfit(record)
        if reason is None:
            try:
                cell = rebuilt(record, "cpu")
                rows = verify_record(record, read_beside(record, path), cell, sample).rows
            except (UserError, OSError) as error:
                reason = str(error)
            except Exception as error:  # noqa: BLE001 - one record must not keep the others from being verified
                yield Finding(path, f"failed when it was run again: {one_line(error)[:200]}")
                continue
        if reason is not None:
            note = Note(f"could not be run again: {reason}", GROUP)
            yield Finding(path, note.text, note)
            continue
        for row in rows:
            if row.agrees is False:
                allowed = "" if row.tolerance is None else f", tolerance {row.tolerance:.2g}"
                text = f"run again, {row.metric} is {_shown(row.anew)}, recorded {_shown(row.recorded)}{allowed}"
                yield Finding(path, text + (f" ({row.note})" if row.note else ""))


def _unfit(record: Record) -> str | None:
    """Why a record is not run again: code that came with it never is, nor are files that it names."""
    method = record.method.name
    if method not in registry.methods():
        return (
            f"the method {method} is not known here; `unlearnbench verify RECORD --method {method}.py` takes its file"
        )
    if registry.load_method(method).incomplete:
        return f"{method} reads files that the record names; `unlearnbench verify RECORD` runs it"
    if (version := standing("method", method, record.method.code_hash)) != "present":
        return f"the code of {method} has changed since ({version})"
    return None


def _shown(value: float | str | None) -> str:
    return "missing" if value is None else value if isinstance(value, str) else f"{value:.5g}"
