"""What is there of a cell before it is run: its record, the files beside it, its weights in the store."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from unlearnbench.errors import UserError
from unlearnbench.metric import Metric
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.code_hashes import metric_code
from unlearnbench.pipeline.fingerprint import drafted, weight_parts
from unlearnbench.pipeline.scoring import metrics_for
from unlearnbench.records.identity import describe_differences, record_identity, same_run
from unlearnbench.records.schema import Record, read_record
from unlearnbench.storage.store import Store


@dataclass(frozen=True)
class CellState:
    """A cell, and what an earlier run of it left."""

    cell: Cell
    results: Path
    """The folder of records."""
    metrics: dict[str, Metric]
    draft: Record
    """The cell's record as far as it is known before the run; `key` and `revision` are its own."""
    path: Path
    """Where the record lies, or is going to."""
    old: Record | None
    """The record that lies there now, of this cell or of something else."""
    prompts_as_asked: bool
    """Whether the per-image values that lie there show an unsafe task's prompts if and only if they are asked for."""

    @classmethod
    def of(cls, cell: Cell, results: Path) -> CellState:
        """Look at the results folder. Raises `Damaged` where the record there cannot be read."""
        metrics = metrics_for(cell.task)
        draft = drafted(cell, metrics)
        path = draft.path(results)
        old = read_record(path) if path.is_file() else None
        draft = draft.model_copy(update={"revision": 1 if old is None else old.revision + 1})
        prompts_as_asked = not cell.task.unsafe or _has_prompts(path) == cell.include_unsafe
        return cls(cell, results, metrics, draft, path, old, prompts_as_asked)

    @cached_property
    def found(self) -> Record | None:
        """The record that lies there, if it is of this very cell."""
        codes = {name: metric_code(metric) for name, metric in self.metrics.items()}
        return self.old if self.old is not None and same_run(self.old, self.draft, codes) else None

    @property
    def shows_images(self) -> bool:
        """Whether images and prompts may go into results: those of unsafe tasks only where that is asked for."""
        return self.cell.include_unsafe or not self.cell.task.unsafe

    @property
    def whole(self) -> bool:
        """Whether the record is there with all files beside it; a skipped cell has no files."""
        found = self.found
        if found is None or found.status == "skipped":
            return found is not None
        has_grid = self.shows_images and found.method.name != "original" and found.status in ("ok", "unreliable")
        expected = [".parquet"] * (found.images is not None) + [".png"] * has_grid
        return self.prompts_as_asked and all(self.path.with_suffix(suffix).is_file() for suffix in expected)

    def has_weights(self, store: Store) -> bool:
        """Whether the unlearned weights are in the store."""
        return store.has("weights", weight_parts(self.cell, self.draft))

    def needs_run(self, store: Store) -> bool:
        """Whether anything is missing that a run would make."""
        skipped = self.found is not None and self.found.status == "skipped"
        return not (skipped or (self.whole and self.has_weights(store)))

    def require_replaceable(self) -> None:
        """Refuse to replace a record of something else."""
        require_replaceable_record(self.path, self.old, self.draft)


def require_replaceable_record(path: Path, old: Record | None, draft: Record) -> None:
    """Refuse to replace a record of something else, such as of other code or another original; names what differs.

    A record that diverged or was skipped holds no result, so it may be replaced. Another version of a metric is no
    difference: its score is computed again from the images.
    """
    if old is None or old.key == draft.key or old.status in ("diverged", "skipped"):
        return
    if apart := describe_differences(record_identity(old), record_identity(draft), ", now "):
        raise UserError(
            f"{path} was made otherwise, it differs in {' and '.join(apart)}: --force replaces it, "
            "--results with another folder keeps both"
        )


def _has_prompts(path: Path) -> bool:
    """Whether the per-image values beside a record show prompts."""
    import pyarrow.parquet as pq

    path = path.with_suffix(".parquet")
    return path.is_file() and "prompt" in pq.read_schema(path).names
