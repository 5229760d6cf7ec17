"""The Python interface: runs, records, their images, leaderboards and comparisons; `unlearnbench.run` is from here.

It may import everything but the command line.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unlearnbench.errors import Failed, UserError
from unlearnbench.hashing import state_hash
from unlearnbench.launch.options import Where
from unlearnbench.launch.runs import PreparedRun, RunsEnded, run_as_jobs, run_here
from unlearnbench.method import Method
from unlearnbench.pipeline.request import RunRequest
from unlearnbench.records.schema import Record
from unlearnbench.reporting import Stopped, bars, told_by
from unlearnbench.storage.store import Made, Store

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("unlearnbench")


def run(
    method: str | Path | type[Method] | Sequence[str | Path | type[Method]],
    task: str = "digits-class",
    *,
    progress: bool = False,
    **options: Any,
) -> list[Record]:
    """Unlearn, sample, judge, score and record; return one record for each method, concept and seed.

        import unlearnbench

        (record,) = unlearnbench.run(
            method="erasediff", task="digits-class", forget="3", seeds=[0], settings={"steps": 100}, results="results"
        )
        record.scores["ua"].value  # unlearning accuracy, in [0, 1]

    The options are those of the command `unlearnbench run`, by the fields of `RunRequest`: `--eval-every 10` is
    `eval_every=10`, `--set lr=1e-4` is `settings={"lr": 1e-4}`, and an option that takes several values takes a list.

    Args:
        method: A name, the path of a .py file, a `Method` class, or a list of these; `"all"` for every method that the
            task can host. A class is recorded under its own name, `MyMethod` as `my_method`, with a hash of the code
            that it uses. A class of a notebook's cell is kept in the store, with the functions, classes and plain
            values of other cells that it uses. Jobs take names, paths and classes of cells.
        task: A task's name, as `unlearnbench list tasks` has it.
        progress: Show two progress bars on stderr, for runs in this process. Notes, such as what `"all"` leaves out,
            go to the logger `unlearnbench` at the level INFO where no bars are shown.
        **options: The other fields of `RunRequest`, such as `forget`, `seeds`, `preset`, `settings`, `protocol`,
            `device`, `results`, `attacks`, `force` and `jobs`.

    Returns:
        The records, by concept, method and seed. They are written below the folder `results`, together with those of
        the original model that they are compared with. A run that is complete there is not repeated.
        `record.status` is "ok", "unreliable", "diverged" or "skipped"; `record.reason` says why. `record.samples()` are
        the images.

    Raises:
        UserError: A value cannot be used, with the value and a remedy in one line; options are named as on the command
            line. `Failed`, a kind of it, after the other runs where some of several failed.
    """
    prepared = PreparedRun.of(RunRequest.of(method=method, task=task, **options), log.info)
    ended = _here(prepared, progress) if prepared.where is None else _as_jobs(prepared, prepared.where)
    if ended.failed:
        raise Failed(
            f"{len(ended.failed)} failed ({'; '.join(ended.failed)}): the records of {len(ended.records)} of "
            f"{len(prepared.cells.asked)} runs are in {prepared.request.results}; run again to go on"
        )
    return ended.records


def load_records(
    folder: str | Path = "results", task: str | None = None, protocol: str | None = None, forget: str | None = None
) -> list[Record]:
    """Read the records below a folder, those of one task, protocol or concept where they are named, in order of path.

    Raises `UserError` for a folder that does not exist, and `Damaged`, a kind of it, for a file that is no intact
    record.
    """
    from unlearnbench.records.folder import ResultsFolder

    if not Path(folder).is_dir():
        raise UserError(f"no folder {folder}: give the one that runs wrote to, their `results`")
    wanted = (("task", task), ("forget", forget))
    return [
        record
        for record in ResultsFolder(Path(folder)).records(task)
        if all(value is None or getattr(record, name) == value for name, value in wanted)
        and protocol in (None, record.protocol.name)
    ]


def leaderboard(
    folder: str | Path = "results", task: str | None = None, protocol: str | None = None, forget: str | None = None
) -> pd.DataFrame:
    """The leaderboard of a folder of records as a table, a row for each method on a task, protocol and concept.

    For each metric there are its mean over unlearning seeds (`ua`), their standard deviation (`ua_sd`) and a 95 %
    interval (`ua_low`, `ua_high`), unscaled: shares lie in [0, 1]. The first columns say what a row is. These are the
    columns of `unlearnbench leaderboard --format csv`. Raises `UserError` as `load_records` does, and where there is no
    such record.
    """
    from unlearnbench import registry
    from unlearnbench.leaderboard.board import board
    from unlearnbench.leaderboard.tables import choose_columns
    from unlearnbench.records.image_table import reader

    records = load_records(folder, task, protocol, forget)
    if not records:
        raise UserError(f"no such records below {folder}: run a method with results={str(folder)!r} first")
    metrics = registry.load_metrics()
    return board(records, metrics, reader(Path(folder))).wide(metrics=choose_columns(None, metrics), attacks=())


def compare(a: str | Path | Record, b: str | Path | Record, results: str | Path = "results") -> pd.DataFrame:
    """Compare two methods on the same task, protocol and concept, image by image where both drew from equal noise.

    Args:
        a: A record, the path of one (seed-*.json), or of a folder with one method's records.
        b: Another one.
        results: The folder that given records lie in.

    Returns:
        A row for each metric and attack (`kind` says which), with both values, their difference B - A, its 95 %
        interval and a paired test, unscaled. These are the columns of `unlearnbench compare --format csv`.

    Raises:
        UserError: The two cannot be compared; says in what they differ.
    """
    from unlearnbench.compare.formats import comparison_frame
    from unlearnbench.compare.pairs import require_comparable, side
    from unlearnbench.compare.wording import comparison

    paths = [one.path(Path(results)) if isinstance(one, Record) else Path(one) for one in (a, b)]
    sides = side(paths[0]), side(paths[1])
    require_comparable(*sides)
    return comparison_frame(comparison(*sides))


class _Kept(Store):
    """The store, from which stages are only read."""

    def stage(self, kind: str, parts: dict[str, Any], *args: Any, **options: Any) -> Made:
        """Return an entry; raises `LookupError` where it was not made yet, or is gone."""
        if not self.has(kind, parts):
            raise LookupError(kind)
        return super().stage(kind, parts, *args, **options)


def samples(
    record: Record,
    method: str | Path | None = None,
    pretrained: str | Path | None = None,
    data: str | Path | None = None,
    checkpoint: str | Path | None = None,
) -> Tensor:
    """The images that a record was scored on, uint8 (N, 3, H, W), in the order of the task's plan; from the store.

    Row i belongs to row i of the values by image beside the record (`seed-*.parquet`).

    Args:
        record: A record that came to a result.
        method: The file of its method, unless it is built in or was run in this session.
        pretrained: What the run was given as `pretrained`.
        data: What the run was given as `data`.
        checkpoint: What the run was given as `checkpoint`.

    Raises:
        UserError: The record has no images, or the store of this machine does not have them; says what makes them.
    """
    from unlearnbench.pipeline.fingerprint import drafted, sample_parts, weight_parts
    from unlearnbench.pipeline.sampling import sample_images
    from unlearnbench.pipeline.stored_weights import stored_weights
    from unlearnbench.pipeline.unlearning import loaded
    from unlearnbench.verification.verify import rebuilt

    if record.status not in ("ok", "unreliable"):
        raise UserError(f"{record.label()} was {record.status} and has no images: {record.reason}")
    device = str(record.environment.get("device_type") or "cpu")
    given = {name: Path(value) for name, value in (("data", data), ("checkpoint", checkpoint)) if value is not None}
    cell = rebuilt(record, device, str(method) if method else None, Path(pretrained) if pretrained else None, **given)
    store = _Kept()
    try:
        state, _ = stored_weights(cell, store, weight_parts(cell, drafted(cell, {})), _nothing)
        if state_hash(state) != record.weights["unlearned"]:
            raise UserError(
                f"the weights of {record.place()} in the store of this machine ({store.root}) are not the record's, "
                "which was made elsewhere: run it with force=True to make it here"
            )
        images = sample_images(cell, loaded(cell, state), sample_parts(cell, state), cell.task.plan(), store)
        return images[:]
    except LookupError as error:
        raise UserError(
            f"the images of {record.place()} are not in the store of this machine ({store.root}): draw them with "
            f"`unlearnbench samples results/{record.place()} FOLDER`, or run it again with the same options"
        ) from error


def _nothing() -> Made:
    raise LookupError


def _signature() -> inspect.Signature:
    """With every option by name, for `help` and editors."""
    own = inspect.signature(run)
    shown = [parameter for parameter in own.parameters.values() if parameter.kind != inspect.Parameter.VAR_KEYWORD]
    shown += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
        for name, field in RunRequest.model_fields.items()
        if name not in own.parameters
    ]
    return own.replace(parameters=shown)


run.__signature__ = _signature()  # type: ignore[attr-defined]


def _here(prepared: PreparedRun, progress: bool) -> RunsEnded:
    if not progress:
        with told_by(log.info):
            return run_here(prepared)
    from rich.console import Console

    count = len(prepared.cells.baseline) + len(prepared.cells.asked)
    try:
        with bars(Console(stderr=True), count) as begin:
            return run_here(prepared, begin)
    except Stopped as stopped:
        raise KeyboardInterrupt from stopped


def _as_jobs(prepared: PreparedRun, where: Where) -> RunsEnded:
    with told_by(log.info):
        ended = run_as_jobs(prepared, where)
    unreached = [f"{job.name}: it needs what failed" for job in ended.left.unreached]
    return ended.runs._replace(failed=[*ended.runs.failed, *unreached])
