"""The runs of a tuning under the selection protocol, and the anchors that score them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench import registry
from unlearnbench.compute.evaluation_budget import OverCap, capped
from unlearnbench.errors import Failed, UserError, message
from unlearnbench.leaderboard.board import Images, board_scores
from unlearnbench.method import Method
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.fingerprint import drafted, weight_parts
from unlearnbench.pipeline.runner import run_cell
from unlearnbench.pipeline.scoring import metrics_for
from unlearnbench.pipeline.stored_weights import stored_weights
from unlearnbench.pipeline.unlearning import unlearn
from unlearnbench.records.image_table import read_content, reader
from unlearnbench.records.schema import Record
from unlearnbench.records.tuning import Anchors, RunValue
from unlearnbench.reporting import tell
from unlearnbench.storage.store import Store
from unlearnbench.tune.search import Budget

if TYPE_CHECKING:
    import pandas as pd

CONTROLS = ("original", "retrain", "destroy")
PARTS = ("erasure", "likeness", "utility")
"""The scores that an objective is the worst of."""
Anchored = dict[str, dict[str, list[Record]]]
"""Concept -> control -> its runs."""


def anchored_runs(given: Budget, folder: Path) -> Anchored:
    """Run the controls for every concept: retrain with every seed, which likeness needs, the others with the first."""
    found: Anchored = {}
    for forget in given.forget:
        found[forget] = {}
        for name in CONTROLS:
            tell(f"anchor {name} · forget {forget}")
            cells = [
                Cell(registry.load_method(name)(), given.bare(forget, seed)) for seed in control_seeds(given, name)
            ]
            found[forget][name] = [run_cell(cell, Store(folder / "store"), folder / "results") for cell in cells]
    require_gaps(given, found, reader(folder / "results"))
    return found


def control_seeds(given: Budget, name: str) -> tuple[int, ...]:
    """The unlearning seeds that a control is run with."""
    return given.seeds if name == "retrain" else given.seeds[:1]


def require_gaps(given: Budget, controls: Anchored, images: Images) -> None:
    """Refuse controls without a clear gap between them, since nothing could be scored by them."""
    for forget, found in controls.items():
        scored = board_scores(found["original"], found, images)
        if scored.value("score") is None:
            raise UserError(f"{given.task.name} cannot be tuned on with forget {forget}: {scored.unscored}")


def anchors_of(controls: Anchored) -> dict[str, Anchors]:
    """The values that anchor scores, for the tuning's file."""

    def value(forget: str, name: str, metric: str) -> float:
        found = controls[forget][name][0].scores[metric].value
        if found is None:
            raise UserError(f"{name} has no {metric} with forget {forget}: run `unlearnbench tune` again")
        return found

    return {
        forget: Anchors(
            original_ua=value(forget, "original", "ua"),
            destroy_ra=value(forget, "destroy", "ra"),
            original_ra=value(forget, "original", "ra"),
            destroy_fid=value(forget, "destroy", "fid"),
            original_fid=value(forget, "original", "fid"),
            retrains=len(controls[forget]["retrain"]),
        )
        for forget in controls
    }


def tables_of(controls: Anchored, results: Path) -> dict[str, bytes]:
    """The files of per-image values of the controls in a results folder, by the hash in their records."""

    def every() -> Iterable[Record]:
        for each in controls.values():
            for runs in each.values():
                yield from runs

    found = {record.images: record.path(results).with_suffix(".parquet") for record in every() if record.images}
    return {hash: path.read_bytes() for hash, path in found.items() if path.is_file()}


@dataclass(frozen=True)
class Runs:
    """Makes runs of one method in a folder, from which a stopped tuning continues."""

    given: Budget
    folder: Path
    controls: Anchored
    tables: Mapping[str, bytes] = field(default_factory=dict)
    """The files of per-image values of the controls, by the hash in their records."""

    def __call__(self, method: Method, name: str, forget: str, seed: int) -> RunValue:
        """The value of one run; None if it diverges, fails or exceeds the cap."""
        store, begun = Store(self.folder / "store"), time.perf_counter()
        cell = Cell(method, self.given.bare(forget, seed), preset=name)
        record, reason, state = None, None, "ok"
        with capped(self.given.cap) as spent:
            try:
                record = run_cell(cell, store, self.folder / "results")
            except OverCap as error:
                state, reason = "over the cap", message(error)
            except Failed as error:
                state, reason = "failed", message(error)
        evaluations = spent.evaluations
        if record and record.scores and not evaluations:  # answered from the store
            evaluations = _stored(cell, store)
        about = {"forget": forget, "seed": seed, "evaluations": evaluations}
        seconds = round(time.perf_counter() - begun, 2)
        values = {} if record is None else self._values(record, forget)
        if record is not None and values["objective"] is None:
            state = "diverged" if record.status == "diverged" else "failed"
            reason = record.reason or "it has no score"
        return RunValue(**about, seconds=seconds, state=state, reason=reason, **values)  # type: ignore[arg-type]

    def _values(self, record: Record, forget: str) -> dict[str, float | None]:
        """Anchored scores of one run, and the scores they are computed from."""
        own = reader(self.folder / "results")

        def images(one: Record) -> pd.DataFrame | None:
            content = self.tables.get(one.images or "")
            return own(one) if content is None else read_content(one, content)

        found = board_scores([record], self.controls[forget], images)
        plain = {name: record.scores[name].value if name in record.scores else None for name in ("ua", "ra", "fid")}
        return {"objective": found.value("score"), **{name: found.value(name) for name in PARTS}, **plain}


def _stored(cell: Cell, store: Store) -> int:
    """Number of evaluations that a finished run took."""
    parts = weight_parts(cell, drafted(cell, metrics_for(cell.task)))
    _, facts = stored_weights(cell, store, parts, partial(unlearn, cell))
    return int(facts["cost"]["evaluations"])
