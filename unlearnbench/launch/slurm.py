"""Run jobs on Slurm, as arrays submitted through submitit. They outlive the driver; the next one picks them up.

submitit writes and submits the scripts. Waiting, resubmitting and reading results are done here, because a later driver
must be able to continue from the ledger's files alone.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import UserError
from unlearnbench.launch.driver import Backend
from unlearnbench.launch.jobs import Work
from unlearnbench.launch.journal import SILENT, Journal
from unlearnbench.launch.worker import Result, read_job, tail, work
from unlearnbench.reporting import tell
from unlearnbench.storage.store import Store

if TYPE_CHECKING:
    from unlearnbench.launch.options import Where

MINUTES = 240
"""Default time limit of a job."""
PAUSE = 0.5
"""Seconds between checks for results, which are files."""
LOOK = 2.0
"""Seconds between questions to Slurm, which has other users too."""
GRACE, SHARED = 10.0, 90.0
"""Seconds to wait for a result file after Slurm ended a job early, and after a job ended by itself: shared file systems
show new files late."""
ARRAY = 500
"""Most jobs in one array; clusters allow 1,000 by default."""
AGAIN = 30.0
"""Seconds until jobs that Slurm did not accept are submitted again."""
REQUEUES = 20
"""How often a job is requeued before its time limit; finished stages are kept each time."""
FINAL = {
    "CANCELLED": "was cancelled",
    "TIMEOUT": "ran out of time: give a longer --time, finished stages are kept",
    "DEADLINE": "ran out of time: give a longer --time, finished stages are kept",
    "OUT_OF_MEMORY": "ran out of memory: give more, such as --slurm mem=32G",
}
"""States in which another try would end the same way."""
OVER = {"COMPLETED", "FAILED", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED", *FINAL}


@dataclass
class SlurmJob:
    """What a Slurm job runs. Run twice, it reuses finished stages; requeued, it keeps its number."""

    job: str
    root: str
    results: str
    folder: str
    requeues: int = 0

    def __call__(self) -> None:
        """Do the job and write its result to the journal."""
        from submitit import JobEnvironment

        job, journal = read_job(self.job), Journal(Path(self.folder))
        place = Store(Path(self.root)), Path(self.results), journal.log(job.id)
        known = {"slurm": JobEnvironment().job_id}  # the driver may have died before it could save it
        journal.end(work(job, *place, lambda values: journal.report(job.id, {**values, **known})))

    def checkpoint(self) -> Any:
        """Called before preemption or the time limit: submit the same job again, or give up after `REQUEUES` times."""
        from submitit.helpers import DelayedSubmission

        self.requeues += 1
        if self.requeues > REQUEUES:
            raise SystemExit(f"requeued {REQUEUES} times")
        return DelayedSubmission(self)


class Slurm(Backend):
    """Submits all jobs that are ready at the same time as one array."""

    def __init__(self, journal: Journal, store: Store, results: Path, where: Where):
        import submitit

        logging.getLogger("submitit").setLevel(logging.ERROR)
        self._journal, self._store, self._results = journal, store, results
        self._most = where.jobs
        self._numbers: dict[str, str] = {}
        self._unsent: list[Work] = []
        """Jobs that Slurm has not accepted yet."""
        self._tried = 0.0
        self._over: dict[str, float] = {}
        """Job -> time at which Slurm first reported it as ended although it has no result."""
        self._asked, self._states = 0.0, dict[str, str]()
        self._noted: dict[str, float] = {}
        """Waiting job -> time at which the journal was last told that it waits."""
        executor = submitit.AutoExecutor(
            folder=journal.folder / "slurm" / "%j", cluster="slurm", slurm_max_num_timeout=2 * REQUEUES
        )
        executor.update_parameters(
            name="unlearnbench",
            timeout_min=where.minutes or MINUTES,
            cpus_per_task=where.threads,
            slurm_additional_parameters={"requeue": True, **where.slurm},
            **({"gpus_per_node": where.gpus} if where.gpus else {}),
            **({"slurm_partition": where.partition} if where.partition else {}),
            **({"slurm_array_parallelism": where.jobs} if where.jobs else {}),
        )
        self._executor = executor

    def room(self) -> int:
        """Room for all jobs, or up to the number that may be with Slurm at once."""
        return (1 << 30) if self._most is None else self._most - len(self._numbers) - len(self._unsent)

    def begin(self, jobs: Sequence[Work]) -> None:
        """Pick up jobs that an earlier driver submitted, and submit the others as arrays."""
        known = {job.id: (self._journal.live(job.id) or {}).get("slurm") for job in jobs}
        there = alive(number for number in known.values() if number)
        for id, number in known.items():
            if number in there or self._journal.ended(id) is not None:  # it may have ended just now
                self._numbers[id] = number or ""
        self._unsent += [job for job in jobs if job.id not in self._numbers]
        self._submit()

    def _submit(self) -> None:
        """Submit waiting jobs. If Slurm refuses them while other jobs of ours run, try again later."""
        self._tried = time.monotonic()
        while self._unsent:
            try:
                self._array(self._unsent[:ARRAY])
            except (RuntimeError, OSError) as error:
                reason = f"{_last(str(error))}{_partitions(str(error))}"
                if not self._numbers:
                    raise UserError(f"Slurm refused the jobs: {reason}") from error
                tell(f"Slurm takes no jobs for now ({reason}): tried again in {AGAIN:.0f} s")
                return
            del self._unsent[:ARRAY]

    def _array(self, new: Sequence[Work]) -> None:
        about = str(self._store.root), str(self._results), str(self._journal.folder)
        # submitit repeats sbatch's output, which we show if it fails
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()), self._executor.batch():
            submitted = [self._executor.submit(SlurmJob(job.model_dump_json(), *about)) for job in new]
        for job, one in zip(new, submitted, strict=True):
            self._numbers[job.id] = one.job_id
            line = {"slurm": one.job_id, "where": f"Slurm {one.job_id}", "what": "in the queue", "at": time.time()}
            self._journal.report(job.id, line)

    def ended(self, seconds: float) -> list[Result]:
        """Results that arrived, and failed or lost results for jobs that Slurm ended without one."""
        time.sleep(max(seconds, PAUSE))
        ended = self._journal.ended_ids() & self._numbers.keys()
        found = [result for id in ended if (result := self._journal.ended(id)) is not None]
        if self._unsent and time.monotonic() - self._tried >= AGAIN:
            self._submit()
        if time.monotonic() - self._asked >= LOOK:
            self._asked = time.monotonic()
            self._states = _asked(self._numbers.values())
            left = [(id, number) for id, number in self._numbers.items() if id not in ended]
            found += [result for id, number in left if (result := self._dead(id, number)) is not None]
        for result in found:
            del self._numbers[result.id]
            self._over.pop(result.id, None)
        return found

    def _dead(self, id: str, number: str) -> Result | None:
        """The result of a job that ended without writing one; jobs that Slurm no longer knows have ended too."""
        state = self._states.get(number, "gone")
        if state not in OVER and state != "gone":
            self._over.pop(id, None)
            if state == "PENDING" and time.time() - self._noted.get(id, 0) > SILENT / 3:
                self._noted[id] = time.time()
                self._journal.report(id, {"at": time.time(), "what": "in the queue"})
            return None
        patience = GRACE if state in FINAL else SHARED
        if time.monotonic() - self._over.setdefault(id, time.monotonic()) < patience:
            return None
        if (result := self._journal.ended(id)) is not None:  # by name: listings on shared file systems may be stale
            return result
        where = (self._journal.live(id) or {}).get("where", "")
        last = tail(self._journal.log(id)) or _errors(self._journal.folder / "slurm", number)
        reason = f"Slurm job {number} {FINAL.get(state, f'ended without a result ({state})')}"
        return Result(id=id, state="failed" if state in FINAL else "lost", reason=reason, tail=last, where=where)

    def close(self) -> str | None:
        """Leave jobs with Slurm, and say how to continue or cancel them."""
        if not self._numbers:
            return None
        numbers = sorted({number.partition("_")[0] for number in self._numbers.values() if number})
        return (
            f"{len(self._numbers)} jobs stay with Slurm: the same command takes them up, "
            f"`scancel {' '.join(numbers)}` ends them"
        )


def alive(numbers: Iterable[str]) -> frozenset[str]:
    """The numbers among these whose jobs Slurm has not ended."""
    numbers = list(numbers)
    states = _asked(numbers)
    return frozenset(number for number in numbers if states.get(number, "COMPLETED") not in OVER)


def _asked(numbers: Iterable[str]) -> dict[str, str]:
    """Number -> state of jobs that Slurm still knows. Needs no accounting, which not every cluster has."""
    numbers = [number for number in numbers if number]
    wanted = sorted({number.partition("_")[0] for number in numbers})
    if not wanted:
        return {}
    command = ["squeue", "--states=all", "--array", "--noheader", "--format=%i|%T", f"--jobs={','.join(wanted)}"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return dict.fromkeys(numbers, "UNKNOWN")
    if done.returncode and "Invalid job id" not in done.stderr:
        return dict.fromkeys(numbers, "UNKNOWN")  # the controller does not answer; its jobs continue
    lines = (line.strip().partition("|") for line in done.stdout.splitlines())
    return {number: state for number, _, state in lines}


def _errors(folder: Path, number: str) -> tuple[str, ...]:
    """The last lines that Slurm and Python wrote about a job."""
    files = sorted(folder.glob(f"*/{number}_*_log.err"))
    return tail(files[-1]) if files else ()


def _partitions(text: str) -> str:
    """Names of the known partitions, if an unknown one was requested."""
    if "partition" not in text:
        return ""
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%R"], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    return f"; known partitions: {', '.join(sorted(set(done.stdout.split())))}"


def _last(text: str) -> str:
    """sbatch's own message, without what submitit adds."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    messages = [line.removeprefix("sbatch: error: ") for line in lines if line.startswith("sbatch: error: ")]
    return "; ".join(messages or lines[-1:]) or "sbatch said nothing"
