"""Jobs: the pieces of a cell's work, as data that any process can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from unlearnbench import registry
from unlearnbench.data.sources import fetch_command
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest
from unlearnbench.names import Name
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.code_hashes import engine_hash, method_code
from unlearnbench.pipeline.request import RunRequest
from unlearnbench.pipeline.spec import Spec
from unlearnbench.records.sealed_json import FrozenPart
from unlearnbench.storage.store import Store

Step = Literal["unlearn", "sample", "record", "attack", "attach"]


class Expected(FrozenPart):
    """What a worker must have as the driver has it, or it makes another thing."""

    original: str
    """Content hash of the weights to start from."""
    code: str
    """Hash of method, engine and judge."""
    data: str | None

    @classmethod
    def of(cls, cell: Cell) -> Expected:
        """As it is here."""
        code = digest([method_code(type(cell.method)), engine_hash(type(cell.task)), cell.task.judge().hash])
        return cls(original=cell.task.model_identity().hash, code=code, data=cell.task.data_identity())

    def require(self, here: Expected, where: str, task: str) -> None:
        """Refuse a machine that has something else; `task` is named in the command that brings its files."""
        command = fetch_command(task)
        fetches = bool(getattr(registry.load_task(task), "sources", ()))
        remedies = {
            "original": f"give it the same weights (--pretrained{f', or `{command}`' if fetches else ''})",
            "code": "install the same unlearnbench and the same methods there",
            "data": f"give it the same files{f' (`{command}`, --data)' if fetches else ''}",
        }
        for what, remedy in remedies.items():
            wanted, have = getattr(self, what), getattr(here, what)
            if wanted != have:
                raise UserError(
                    f"{where} has other {what} than the job must start from "
                    f"({(have or 'none')[:12]} there, {(wanted or 'none')[:12]} wanted): {remedy}"
                )


class Work(FrozenPart):
    """What one worker does, whatever launches it."""

    id: Name
    kind: str = "unlearnbench.launch.jobs:Job"
    """Its class, as module:name, for the worker that reads it."""
    step: Name
    needs: tuple[Name, ...] = ()
    """Ids of the jobs that must be done before."""
    after: tuple[Name, ...] = ()
    """Ids of the jobs that must have ended before, well or not."""
    needed: bool = False
    """Whether a later job needs what it makes."""
    threads: int = 1
    gpus: int = 0

    @property
    def name(self) -> str:
        """For people."""
        return self.step

    @property
    def product(self) -> Path:
        """The file below the results folder that it is for."""
        return Path()

    def perform(self, store: Store, results: Path) -> None:
        """Do it in this process; jobs of cells are done by the worker itself."""
        raise NotImplementedError


class Job(Work):
    """A piece of a cell's work; what it makes lies in the store, or is the record."""

    step: Step
    spec: Spec
    expected: Expected
    attacks: tuple[Name, ...] = ()
    """Labels to try, of an attack step one; of `record` all, where they are not jobs of their own."""
    shard: int = 0
    shards: int = 1
    every: int | None = None
    """Steps from one scored point to the next."""
    force: bool = False
    replace: bool = False
    """Whether a record of something else may be replaced, without making anew what is there."""

    @property
    def product(self) -> Path:
        """The record."""
        return self.spec.place()

    @property
    def name(self) -> str:
        """For people."""
        more = {
            "unlearn": " · unlearn",
            "sample": f" · sample {self.shard + 1}/{self.shards}",
            "record": "",
            "attack": f" · {', '.join(self.attacks)}",
            "attach": " · attacks into the record",
        }
        return f"{self.spec.title}{more[self.step]}"


class Cut(FrozenPart):
    """How cells come apart."""

    attacks: tuple[str, ...] = ()
    """Their labels."""
    shards: int = 1
    every: int | None = None
    force: bool = False
    replace: bool = False
    threads: int = 1
    gpus: int = 0

    @classmethod
    def of(cls, request: RunRequest, launched: bool) -> Cut:
        """How a request's cells come apart; refuses what jobs cannot do."""
        shards, every, force = request.shards, request.eval_every, request.force
        if shards < 1:
            raise UserError(f"--shards {shards} is below 1: give the jobs that images are drawn by")
        if shards > 1 and not launched:
            raise UserError(f"--shards {shards} takes jobs: add --jobs {shards}, or --launcher ray or slurm")
        if request.tracker is not None and launched:
            raise UserError("--tracker shows what this process does: leave it, or --launcher and --jobs, out")
        for name, given in (("force", force), ("eval-every", every is not None)):
            if given and shards > 1:
                raise UserError(f"--{name} keeps a cell whole: leave --shards {shards} out, or --{name}")
        for name in request.method:
            if launched and registry.is_offered(name):
                raise UserError(
                    f"the class of {name} is known to this process alone: write it to a .py file and give its path, "
                    "or leave launcher and jobs out"
                )
        attacks = tuple(spec.label for spec in request.attack_specs())
        return cls(attacks=attacks, shards=shards, every=every, force=force)


def jobs_of(specs: Sequence[Spec], baseline: Sequence[Spec], cut: Cut) -> list[Job]:
    """Every job, each after those that it needs: the original's cell of a concept comes before all others of it.

    Forced and watched cells stay whole: their stages would be made twice.
    """
    jobs: dict[str, Job] = {}
    first: dict[str, str] = {}
    known: dict[str, Expected] = {}

    def add(spec: Spec, needs: tuple[str, ...], cut: Cut) -> str:
        """The cell's jobs that are not there yet; the id of its last one."""
        like = spec.model_copy(update={"seed": 0, "device": "cpu"})  # a driver may have no card
        key = like.model_dump_json()
        known[key] = known.get(key) or Expected.of(like.cell())
        found = list(_cell(spec, known[key], needs, cut))
        for job in found:
            jobs.setdefault(job.id, job)
        return found[-1].id

    for spec in baseline:
        plain = cut.model_copy(update={"attacks": (), "every": None, "force": False, "replace": cut.force})
        first[spec.forget] = add(spec, (), plain)
    for spec in specs:
        add(spec, (first[spec.forget],) if spec.forget in first else (), cut)
    needed = {id for job in jobs.values() for id in (*job.needs, *job.after)}
    return [job.model_copy(update={"needed": job.id in needed}) for job in jobs.values()]


def _cell(spec: Spec, expected: Expected, needs: tuple[str, ...], cut: Cut) -> Iterator[Job]:
    whole = cut.force or cut.every is not None

    def job(step: Step, needs: tuple[str, ...], **about: Any) -> Job:
        about |= {"replace": True} if cut.replace else {}
        about |= {"threads": cut.threads, "gpus": cut.gpus}
        values = {"step": step, "spec": spec, "expected": expected, "needs": needs, **about}
        id = digest([step, spec.model_dump(mode="json"), expected.model_dump(), about])[:16]
        return Job(id=id, **values)

    if cut.shards > 1 and not whole:
        yield (unlearn := job("unlearn", needs))
        pieces = [job("sample", (unlearn.id,), shard=shard, shards=cut.shards) for shard in range(cut.shards)]
        yield from pieces
        needs = (unlearn.id, *(piece.id for piece in pieces))
    about: dict[str, Any] = {"every": cut.every, "force": cut.force, "attacks": cut.attacks if whole else ()}
    yield (record := job("record", needs, **about))
    if cut.attacks and not whole:
        tried = [job("attack", (record.id,), attacks=(label,)) for label in cut.attacks]
        yield from tried
        attach = job("attach", (record.id,), attacks=cut.attacks)
        yield attach.model_copy(update={"after": tuple(one.id for one in tried)})
