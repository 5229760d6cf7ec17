"""What tests of launches share: cells of the smoke protocol, methods that go wrong, and a launch by any launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.small_world import write_method
from unlearnbench.launch.driver import Backend
from unlearnbench.launch.jobs import Cut, Job, Work, jobs_of
from unlearnbench.launch.journal import Journal
from unlearnbench.launch.options import Where
from unlearnbench.launch.worker import Result, read_job, work
from unlearnbench.records.folder import load_all
from unlearnbench.storage.store import Store

PATIENCE = 600.0
"""Seconds until something that is waited for is given up: a slow machine with other work takes minutes."""
WHERE = Where("local", jobs=2)
SMOKE = ("--task", "digits-text", "--protocol", "smoke", "--device", "cpu")
ONCE = """import os, pathlib, signal
flag = pathlib.Path({flag!r})
if not flag.exists():
    flag.touch()
    os.kill(os.getpid(), signal.SIGKILL)
return model"""
ALWAYS = """import os, signal
os.kill(os.getpid(), signal.SIGKILL)"""
SLOW = """import pathlib, time
pathlib.Path({flag!r}).touch()
for _ in range({tenths}):
    time.sleep(0.1)
return model"""
GREEDY = """import torch
torch.empty(1 << 50)"""
RAISES = """print("about to fail")
raise ValueError("no such luck")"""


def dies_once(folder: Path) -> Path:
    """A method that kills its process the first time."""
    return write_method(folder, ONCE.format(flag=str(folder / "died")), name="dies_once")


def dies_always(folder: Path) -> Path:
    """One that kills every process that it runs in."""
    return write_method(folder, ALWAYS, name="dies_always")


def slow(folder: Path, seconds: float) -> Path:
    """One that takes its time, and leaves `begun` in its folder."""
    return write_method(folder, SLOW.format(flag=str(folder / "begun"), tenths=int(seconds * 10)), name="slow")


def greedy(folder: Path) -> Path:
    """One that asks for more memory than there is."""
    return write_method(folder, GREEDY, name="greedy")


def raises(folder: Path) -> Path:
    """One with a fault of its own."""
    return write_method(folder, RAISES, name="raises")


class Here(Backend):
    """Does each job at once in this process, from what would be sent to another."""

    def __init__(self, journal: Journal, store: Store, results: Path, count: int):
        self.journal, self.store, self.results = journal, store, results
        self.done: list[Result] = []

    def room(self) -> int:
        return 1 - len(self.done)

    def begin(self, jobs: Sequence[Work]) -> None:
        for job in jobs:
            again = read_job(job.model_dump_json())
            self.done.append(work(again, Store(self.store.root), self.results, self.journal.log(job.id)))

    def ended(self, seconds: float) -> list[Result]:
        found, self.done = self.done, []
        return found

    def close(self) -> str | None:
        return None


def specs(
    *methods: str, task: str = "digits-text", protocol: str = "smoke", forget: str = "seven", **about: Any
) -> tuple[list[Any], list[Any]]:
    """The original's cell and those of these methods."""
    from unlearnbench import registry
    from unlearnbench.pipeline.request import SpecBuilder, methods_of

    builder = SpecBuilder(registry.load_task(task), Path("results"), "cpu", protocol, **about)
    return builder.cells(methods_of(methods, about.get("overrides", {})), methods, [forget], [0], lambda line: None)


def jobs(*methods: str, **cut: Any) -> list[Job]:
    """Their cells as jobs, the original's first."""
    baseline, asked = specs(*methods)
    return jobs_of(asked, baseline, Cut(**cut))


def names(found: Sequence[Work]) -> list[str]:
    """Names of jobs without what all of them share."""
    return [job.name.replace(" · forget seven · seed 0", "") for job in found]


def run(folder: Path, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
    """`unlearnbench run` in a process of its own, on one thread a job."""
    done = start(folder, *words, **env)
    out, err = done.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def start(folder: Path, *words: object, **env: str) -> subprocess.Popen[str]:
    """The same, still running; it stores in the folder's `store` and records in its `here`."""
    about = {"UNLEARNBENCH_CACHE": str(folder / "store"), "COLUMNS": "200", **env}
    command = [sys.executable, "-m", "unlearnbench.cli", "run", *SMOKE, "--threads", "1", "--results", "here"]
    return subprocess.Popen(
        [*command, *map(str, words)],
        cwd=folder,
        env={**os.environ, **about},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # where tests run in the background, a shell has made Ctrl-C ignored for all of theirs
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def records(folder: Path) -> dict[str, Any]:
    """What a launch left in its folder, by label."""
    return {record.label(): record for record in load_all(folder / "here")}


def until(holds: Callable[[], Any], driver: subprocess.Popen[str] | None = None, seconds: float = PATIENCE) -> None:
    """Look at other processes again and again until something holds; while a driver runs, if one is given."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end and (driver is None or driver.poll() is None), driver and driver.communicate()
        time.sleep(0.05)
