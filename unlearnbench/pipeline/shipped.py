"""Use the controls that a checkout ships in other folders of records: a control measures the same for everybody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unlearnbench.pipeline.cell_state import CellState
from unlearnbench.pipeline.writing import explained_write_errors
from unlearnbench.records.folder import ATTACHMENTS, load_all, shipped_results
from unlearnbench.records.identity import matching
from unlearnbench.records.schema import Record
from unlearnbench.reporting import tell
from unlearnbench.storage.files import replace_file

ANCHORS = ("retrain", "destroy")
"""Controls that scores are anchored at, besides the original."""
ENOUGH = {"retrain": 3, "destroy": 1}
"""Runs of each that a score needs: likeness to retrain compares retrain's runs with each other."""


def shipped_record(state: CellState) -> Record | None:
    """Copy the shipped record of this very run into the results folder, with its files; None where there is none.

    It must be whole and of the same run: same key, or of parts that are known to give equal numbers. A record that
    lies in the folder already is never replaced.
    """
    shipped = _elsewhere(state.results)
    if shipped is None or state.old is not None:
        return None
    found = CellState.of(state.cell, shipped)
    if not found.whole or found.found is None or found.found.status != "ok":
        return None
    _copy([found.found], shipped, state.results)
    return found.found


def copy_shipped_anchors(record: Record, results: Path) -> None:
    """Copy shipped runs of retrain and destroy that are comparable with a record, where its folder has too few.

    They are comparable as anchors of scores are: of the same task, protocol, concept, original, data, judge and engine
    version (`records.identity.matching`).
    """
    shipped = _elsewhere(results)
    if shipped is None or record.status not in ("ok", "unreliable"):
        return
    for control in ANCHORS:
        here, there = (record.path(folder).parents[1] / control for folder in (results, shipped))
        known = {one.seeds["unlearning"] for one in load_all(results, here)}
        if control == record.method.name or len(known) >= ENOUGH[control]:
            continue
        fit = [one for one in matching(load_all(shipped, there), record, control)[0] if one.status == "ok"]
        _copy([one for one in fit if one.seeds["unlearning"] not in known], shipped, results)


def shipped_mismatches(record: Record, results: Path, controls: Sequence[str] = ANCHORS) -> dict[str, str]:
    """By control: why the shipped runs of it are not comparable with a record, where there are any and none is."""
    shipped = _elsewhere(results)
    if shipped is None:
        return {}
    place = record.path(shipped).parents[1]
    found = {control: matching(load_all(shipped, place / control), record, control)[1] for control in controls}
    return {control: reason for control, reason in found.items() if reason}


def _elsewhere(results: Path) -> Path | None:
    """The shipped folder, unless it is the folder of records itself."""
    shipped = shipped_results()
    return None if shipped is None or results.resolve() == shipped.resolve() else shipped


def _copy(records: Sequence[Record], shipped: Path, results: Path) -> None:
    """Copy records with the files beside them, the record last, so that it is never there without them."""
    with explained_write_errors(results):
        for record in records:
            source, target = record.path(shipped), record.path(results)
            for suffix in (*(f".{name}" for name in ATTACHMENTS), ".json"):
                if source.with_suffix(suffix).is_file():
                    replace_file(target.with_suffix(suffix), source.with_suffix(suffix).read_bytes())
    if records:
        first, seeds = records[0], ", ".join(str(record.seeds["unlearning"]) for record in records)
        tell(f"{first.label()} · forget {first.forget} · seed {seeds}: using the record shipped with this checkout")
