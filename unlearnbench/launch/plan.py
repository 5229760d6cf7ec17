"""Turn the cells of a run into jobs, hand them to a launcher, and collect the records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench import registry
from unlearnbench.attacks.spec import AttackSpec
from unlearnbench.errors import Damaged
from unlearnbench.launch.driver import Backend, Left, Shown, drive
from unlearnbench.launch.jobs import Cut, Job, Work, jobs_of
from unlearnbench.launch.journal import Journal, sole_driver
from unlearnbench.launch.options import Where
from unlearnbench.method import Method
from unlearnbench.pipeline.spec import Spec
from unlearnbench.records.folder import ResultsFolder
from unlearnbench.records.schema import Record, read_record
from unlearnbench.reporting import tell
from unlearnbench.storage.store import Store

if TYPE_CHECKING:
    from unlearnbench.pipeline.cell import Cell


def backend(where: Where, journal: Journal, store: Store, results: Path, count: int) -> Backend:
    """Start the launcher that was asked for; `count` is the number of jobs."""
    if where.launcher == "ray":
        from unlearnbench.launch.ray import Ray

        return Ray(journal, store, results, where.threads, where.gpus, where.jobs)
    if where.launcher == "slurm":
        from unlearnbench.launch.slurm import Slurm

        return Slurm(journal, store, results, where)
    from unlearnbench.launch.local import Local, cards

    jobs = where.jobs or 1
    gpus = cards(jobs) if where.gpus else [""] * jobs
    return Local(gpus[:count], where.threads, journal, store, results)


def launched(
    every: Sequence[Work], todo: Sequence[Work], where: Where, store: Store, results: Path, shown: Shown
) -> Left:
    """Run the jobs in `todo`; returns how each of them ended."""
    store = Store(store.root.resolve())
    with sole_driver(results):
        journal = Journal.begun(store, results, where.launcher, every, todo)
        if not todo:
            return Left({}, ())
        return drive(todo, backend(where, journal, store, results.resolve(), len(todo)), journal, shown)


def cells_launched(
    specs: Sequence[Spec], baseline: Sequence[Spec], cut: Cut, where: Where, store: Store, results: Path, shown: Shown
) -> tuple[list[Job], Left]:
    """Run every cell that is not done yet; its jobs, and how they ended."""
    from unlearnbench.pipeline.attacks import attacks_of

    cut = cut.model_copy(update={"threads": where.threads, "gpus": where.gpus})
    specs, baseline = ([spec.anywhere() for spec in some] for some in (specs, baseline))
    require_attackable(specs, attacks_of(cut.attacks))
    require_fitting_cells(specs, results, cut.force)
    if not cut.force:
        require_replaceable_cells([*baseline, *specs], results, attacks_of(cut.attacks))
    every = longest_first(jobs_of(specs, baseline, cut), results)
    todo = still_to_do(every, results)
    return todo, launched(every, todo, where, store, results, shown)


def require_attackable(specs: Sequence[Spec], attacks: Sequence[AttackSpec]) -> None:
    """Refuse attacks that lack a file, before anything is run; the cells are of one task."""
    from unlearnbench.pipeline.attacks import require_attack_files

    if attacks and specs:
        like = specs[0].model_copy(update={"device": "cpu"})  # a driver may have no card
        require_attack_files(attacks, like.cell().task)


def require_fitting_cells(specs: Sequence[Spec], results: Path, force: bool = False) -> None:
    """Refuse settings that do not fit the task, such as a file of other weights, before anything is run.

    Cells whose record is there are passed over, except with `force`.
    """
    seen = set[str]()
    for spec in specs:
        key = spec.model_copy(update={"seed": 0, "device": "cpu"}).model_dump_json()  # a driver may have no card
        if key in seen or (not force and spec.path(results).is_file()):
            continue
        seen.add(key)
        if registry.load_method(spec.method).require_fit is Method.require_fit:
            continue
        cell = Spec.model_validate_json(key).cell()
        if line := cell.method.require_fit(cell.task):
            tell(f"{spec.label}: {line}")


def require_replaceable_cells(specs: Sequence[Spec], results: Path, attacks: Sequence[AttackSpec] = ()) -> None:
    """Refuse cells whose record, or attack in it, would replace one that was made otherwise; before anything is run."""
    from unlearnbench.pipeline import attacks as attacking
    from unlearnbench.pipeline import cell_state
    from unlearnbench.pipeline.fingerprint import drafted

    drafts: dict[str, tuple[Cell, Record]] = {}
    for spec in specs:
        path = spec.path(results)
        if not path.is_file():
            continue
        like = spec.model_copy(update={"seed": 0, "device": "cpu"})  # a driver may have no card
        key = like.model_dump_json()
        if key not in drafts:
            cell = like.cell()
            drafts[key] = cell, drafted(cell, {})
        cell, draft = drafts[key]
        old = read_record(path)
        cell_state.require_replaceable_record(path, old, draft)
        if attacks and spec.label != "original":
            attacking.require_replaceable_attacks(cell, old, attacks)


def still_to_do(jobs: Sequence[Job], results: Path) -> list[Job]:
    """Without the cells whose record is there with all that was asked for; forced and watched ones stay."""
    from unlearnbench.pipeline.attacks import attacks_of, missing_attacks
    from unlearnbench.pipeline.prompt_sets import missing_prompt_sets
    from unlearnbench.pipeline.runner import finished_record

    complete: dict[str, bool] = {}
    for job in jobs:
        spec = job.spec
        key = f"{spec.model_dump_json()}"
        if job.force or job.every is not None:
            complete[key] = False
        if complete.get(key) is False or job.step not in ("record", "attach"):
            continue
        cell = spec.cell()
        record = finished_record(cell, results)
        complete[key] = (
            record is not None
            and not missing_prompt_sets(cell, record)
            and not missing_attacks(cell, record, attacks_of(job.attacks))
        )
    kept = [job for job in jobs if not complete[job.spec.model_dump_json()]]
    ids = {job.id for job in kept}

    def left(some: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(id for id in some if id in ids)

    return [job.model_copy(update={"needs": left(job.needs), "after": left(job.after)}) for job in kept]


def longest_first(jobs: Sequence[Job], results: Path) -> list[Job]:
    """In order of the seconds that the same method took there before; training anew, and what is unknown, first.

    A long job that is begun last keeps all others waiting.
    """
    seconds: dict[tuple[str, str], float] = {}
    for task in {job.spec.task for job in jobs}:
        one_of_each = {path.parent: path for path in ResultsFolder(results).record_files(task)}
        for folder, path in one_of_each.items():
            try:
                known = read_record(path).scores.get("unlearn_time")
            except Damaged:  # `validate` names it
                continue
            if known and known.value is not None:
                seconds[task, folder.name] = max(known.value, seconds.get((task, folder.name), 0.0))

    def expected(job: Job) -> float:
        spec = job.spec
        if "training recipe" in registry.load_method(spec.method).requires:
            return float("inf")
        return seconds.get((spec.task, spec.label), float("inf"))

    order = {job.spec.model_dump_json(): expected(job) for job in jobs}
    return sorted(jobs, key=lambda job: -order[job.spec.model_dump_json()])
