"""`tune`: choose settings for every method with equal budgets, and show the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearnbench import registry
from unlearnbench.cli.arguments import Device, OldOut, parse_settings, results_folder
from unlearnbench.cli.completion import complete_methods, complete_tasks
from unlearnbench.cli.console import err, print_table
from unlearnbench.cli.console import out as console
from unlearnbench.cli.launch_view import Gpus, Launcher, Partition, Slurm, TimeLimit, told_failures, view
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.registry import words
from unlearnbench.reporting import bars

if TYPE_CHECKING:
    from unlearnbench.launch.options import Where
    from unlearnbench.records.tuning import Tuning
    from unlearnbench.tune.search import Budget

tuning = typer.Typer()


@tuning.command()
def tune(
    task: Annotated[str, typer.Option(help="Task; see `unlearnbench list tasks`.", autocompletion=complete_tasks)],
    trials: Annotated[
        int, typer.Option(help="Candidate settings per method, including the default and the published ones.")
    ] = 24,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Method name, comma-separated names, path of a .py file, or `all`. Repeatable. [default: all]",
            autocompletion=complete_methods,
        ),
    ] = None,
    cap: Annotated[
        int | None, typer.Option(help="Most model evaluations per run; a trial that would take more is stopped.")
    ] = None,
    forget: Annotated[list[str] | None, typer.Option(help="Concepts to tune on; never those that you report.")] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", help="Folder of records; writes tuning/TASK/METHOD.json there. [default: results]"),
    ] = None,
    out: OldOut = None,
    jobs: Annotated[int | None, typer.Option(help="Number of methods tuned at a time, each on one CPU thread.")] = None,
    device: Annotated[Device, typer.Option(help="Device to compute on.")] = Device.auto,
    show: Annotated[bool, typer.Option("--show", help="Only print the results of earlier tuning.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the best objective against trials, as .pdf, .svg or .png.")
    ] = None,
    launcher: Launcher = None,
    gpus: Gpus = None,
    partition: Partition = None,
    time: TimeLimit = None,
    slurm: Slurm = None,
) -> None:
    """Choose settings for every method with an equal budget.

    Trials use other concepts, seeds, noise and judge than reported results. Run the same command again to continue a
    stopped tuning; `unlearnbench run --preset tuned` uses the chosen settings.
    """
    folder = results_folder(results, out)
    task_class = registry.load_task(task)
    if plot is not None:
        from unlearnbench.plots.files import check_figure_path

        check_figure_path(plot)
    if not show:
        if find_spec("optuna") is None:
            raise UserError("tuning needs optuna: pip install 'unlearnbench[tune]'")
        from unlearnbench.compute.device import pick_device
        from unlearnbench.launch.options import Where
        from unlearnbench.pipeline.request import LaunchRequest
        from unlearnbench.tune.search import CAP, budget

        threads = 1 if jobs or launcher else None
        where = Where.of(
            LaunchRequest.of(
                device=device.value,
                launcher=launcher,
                jobs=jobs,
                threads=threads,
                gpus=gpus,
                partition=partition,
                time=time,
                slurm=parse_settings(slurm or [], "slurm", "account=mine"),
            )
        )
        computing = where.device if where and where.device else pick_device(device.value)
        given = budget(task_class, words(forget or []), trials, CAP if cap is None else cap, computing)
        _tune(given, _methods(given, words(method or ["all"])), folder, where)
    _show(task, folder, plot)


def _methods(given: Budget, asked: Sequence[str]) -> list[str]:
    """The methods that can be tuned on this task; refuse a named one that cannot."""
    from unlearnbench.pipeline.cell import Cell, require
    from unlearnbench.tune.space import require_space

    names = list(dict.fromkeys([*(registry.methods() if "all" in asked else []), *asked]))
    kept = []
    for name in (name for name in names if name != "all"):
        cls = registry.load_method(name)
        registry.require_fields(cls)
        if name not in asked and (not cls.space or cls.incomplete):
            continue
        require_space(cls)
        try:
            require(Cell(cls.configured(cls.preset("default", given.task.name)), replace(given, device="cpu").bare()))
        except Unsupported as reason:
            if name in asked:
                raise
            err.print(f"left out: {reason}", markup=False, highlight=False, soft_wrap=True)
            continue
        kept.append(name)
    if not kept:
        raise UserError("--method is empty: name at least one, or `all`")
    return kept


def _tune(given: Budget, names: Sequence[str], results: Path, where: Where | None) -> None:
    from unlearnbench.storage.store import Store
    from unlearnbench.tune.jobs import finished_tuning
    from unlearnbench.tune.launch import tuned_here, tunings_launched

    todo = [name for name in names if finished_tuning(given, name, results) is None]
    if not todo:
        return
    if where is None:
        with bars(err, len(todo) * given.announced + 1) as begin:
            tuned_here(given, todo, Store(), results, begin)
        return
    with view() as shown:
        jobs, left = tunings_launched(given, todo, where, Store(), results, shown)
    if told_failures(jobs, left):
        raise typer.Exit(1)


def _show(task: str, results: Path, plot: Path | None) -> None:
    from unlearnbench.records.folder import ResultsFolder
    from unlearnbench.report.tuning_table import HEADS, heads_of, row, tuning_note

    found = ResultsFolder(results).tunings(task)
    if not found:
        raise UserError(f"nothing was tuned on {task} below {results}: leave out --show")
    rows = [row(one) for one in found]
    cost = ["method", *HEADS[HEADS.index("trials") : HEADS.index("chosen")]]
    objectives = [name for name in heads_of(found) if name not in cost or name == "method"]
    for title, heads in ((f"tuning on {task}: objectives", objectives), ("what it took", cost)):
        print_table(title, heads, [("", [[each[name] for name in heads] for each in rows])])
    console.print(tuning_note(found), soft_wrap=True, highlight=False, markup=False)
    if plot is not None:
        _plot(found, plot)


def _plot(found: Sequence[Tuning], file: Path) -> None:
    from unlearnbench import plots

    try:
        plots.write_figure(plots.best_so_far(found, f"{found[0].task}, {found[0].protocol}"), file)
    except OSError as error:
        raise UserError(f"cannot write {file} ({(error.strerror or '').lower()}): name another with --plot") from error
    console.print(f"wrote {file}", highlight=False, markup=False, soft_wrap=True)
