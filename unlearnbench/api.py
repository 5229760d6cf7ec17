"""The Python interface to runs; `unlearnbench.run` is imported from here.

It may import everything but the command line.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearnbench.errors import Failed
from unlearnbench.launch.options import Where
from unlearnbench.launch.runs import PreparedRun, RunsEnded, run_as_jobs, run_here
from unlearnbench.method import Method
from unlearnbench.pipeline.request import RunRequest
from unlearnbench.records.schema import Record
from unlearnbench.reporting import Stopped, bars, told_by

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
            task can host. A class is recorded under its own name, `MyMethod` as `my_method`. Define it in a module of
            its own: its record holds a hash of the code that it uses there, and classes of a notebook have no source
            file. Jobs need a name or a path.
        task: A task's name, as `unlearnbench list tasks` has it.
        progress: Show two progress bars on stderr, for runs in this process. Notes, such as what `"all"` leaves out,
            go to the logger `unlearnbench` at the level INFO where no bars are shown.
        **options: The other fields of `RunRequest`, such as `forget`, `seeds`, `preset`, `settings`, `protocol`,
            `device`, `results`, `attacks`, `force` and `jobs`.

    Returns:
        The records, by concept, method and seed. They are written below the folder `results`, together with those of the original
        model that they are compared with. A run that is complete there is not repeated. `record.status` is "ok",
        "unreliable", "diverged" or "skipped"; `record.reason` says why.

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
