"""Do everything that is asked for one cell: run it, with or without a trajectory, and attack the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unlearnbench.attacks.spec import AttackSpec
from unlearnbench.compute.device import explained_device_errors
from unlearnbench.pipeline import runner
from unlearnbench.pipeline.attacks import attacked
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.prompt_sets import with_prompt_sets
from unlearnbench.pipeline.trackers import Tracking
from unlearnbench.pipeline.trajectory import followed
from unlearnbench.records.schema import Record
from unlearnbench.storage.store import Store


@explained_device_errors()
def record_cell(
    cell: Cell,
    store: Store,
    results: Path,
    *,
    attacks: Sequence[AttackSpec] = (),
    every: int | None = None,
    tracking: Tracking | None = None,
    force: bool = False,
    replace: bool = False,
) -> Record:
    """Run a cell, score the user's own prompts, then try the attacks; return its record.

    Only parts that were missing are made. With `every` (steps from one scored point to the next) or `tracking` the run
    is followed (see `trajectory`). `force` makes every part again. `replace` allows to replace a record of something
    else, and makes again only what is missing.
    """
    if every is not None or tracking is not None:
        record = followed(cell, every, store, results, force, tracking)
    else:
        record = runner.run_cell(cell, store, results, force, replace=replace)
    record = with_prompt_sets(cell, record, store, results, force)
    return attacked(cell, record, attacks, store, results, force)
