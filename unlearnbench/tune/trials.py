"""The runs of a tuning under the selection protocol, and the anchors that score them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unlearnbench import registry
from unlearnbench.compute.evaluation_budget import OverCap, capped
from unlearnbench.errors import Failed, UserError, message
from unlearnbench.leaderboard.board import board_scores
from unlearnbench.method import Method
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.fingerprint import drafted, weight_parts
from unlearnbench.pipeline.runner import run_cell
from unlearnbench.pipeline.scoring import metrics_for
from unlearnbench.pipeline.unlearning import unlearn
from unlearnbench.records.schema import Record
from unlearnbench.records.tuning import Anchors, RunValue
from unlearnbench.reporting import tell
from unlearnbench.storage.store import Store
from unlearnbench.tune.search import Budget

CONTROLS = ("original", "retrain", "destroy")
Anchored = dict[str, dict[str, list[Record]]]
"""Concept -> control -> its run."""


def anchored_runs(given: Budget, folder: Path) -> Anchored:
    """Run the controls for every concept, with the first seed."""
    found: Anchored = {}
    for forget in given.forget:
        found[forget] = {}
        for name in CONTROLS:
            tell(f"anchor {name} · forget {forget}")
            cell = Cell(registry.load_method(name)(), given.bare(forget))
            found[forget][name] = [run_cell(cell, Store(folder / "store"), folder / "results")]
    require_gaps(given, found)
    return found


def require_gaps(given: Budget, controls: Anchored) -> None:
    """Refuse controls without a clear gap between them, since nothing could be scored by them."""
    for forget, found in controls.items():
        scored = board_scores(found["original"], found)
        if scored["score"] is None:
            raise UserError(f"{given.task.name} cannot be tuned on with forget {forget}: {scored['unscored']}")


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
            retrain_ua=value(forget, "retrain", "ua"),
            destroy_ra=value(forget, "destroy", "ra"),
            original_ra=value(forget, "original", "ra"),
        )
        for forget in controls
    }


@dataclass(frozen=True)
class Runs:
    """Makes runs of one method in a folder, from which a stopped tuning continues."""

    given: Budget
    folder: Path
    controls: Anchored

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
        values = {} if record is None else _values(record, self.controls[forget])
        if record is not None and values["objective"] is None:
            state = "diverged" if record.status == "diverged" else "failed"
            reason = record.reason or "it has no UA or no RA"
        return RunValue(**about, seconds=seconds, state=state, reason=reason, **values)  # type: ignore[arg-type]


def _values(record: Record, controls: dict[str, list[Record]]) -> dict[str, float | None]:
    """Anchored scores of one run, and the scores they are computed from."""
    found = board_scores([record], controls)
    plain = {name: record.scores[name].value if name in record.scores else None for name in ("ua", "ra")}
    return {"objective": found["score"], "efficacy": found["efficacy"], "utility": found["utility"], **plain}


def _stored(cell: Cell, store: Store) -> int:
    """Number of evaluations that a finished run took."""
    parts = weight_parts(cell, drafted(cell, metrics_for(cell.task)))
    _, facts = store.stage("weights", parts, partial(unlearn, cell, cell.task.pretrained()))
    return int(facts["cost"]["evaluations"])
