"""The runs of the stress script: each a fork of one process, compared with a run that nothing disturbed."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.support.small_world import comparable
from unlearnbench import cli
from unlearnbench.records.schema import read_record
from unlearnbench.storage.store import META

METHOD = ("--method", "erasediff", "--set", "steps=3")
LIMIT = 300
"""Seconds after which a run counts as hung."""
Ended = tuple[int | None, str]


def child(folder: Path, log: Path, words: tuple[str, ...]) -> None:
    """A run as the command line starts it; what it says goes to a file."""
    said = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(folder)
    os.environ["UNLEARNBENCH_CACHE"] = str(folder / "store")
    sys.argv = ["unlearnbench", "run", *METHOD, "--results", "here", *words]
    cli.main()


class World:
    """A folder of runs, the undisturbed run that all are compared with, and the counts."""

    def __init__(self, home: Path, seed: int):
        self.home, self.random = home, random.Random(seed)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.failures: list[str] = []
        self.whole = self.place("whole")
        if (ended := self.run(self.whole))[0]:
            raise SystemExit(f"the undisturbed run ended with {ended}")
        self.expected = left(self.whole)
        folder, started = self.place("again"), time.monotonic()
        self.survived("undisturbed", folder, self.run(folder))
        self.seconds = time.monotonic() - started

    def place(self, name: str, like: Path | None = None) -> Path:
        """A new folder for a run, empty or a copy."""
        folder = self.home / name.replace(" ", "-").replace(",", "")
        shutil.rmtree(folder, ignore_errors=True)
        if like:
            shutil.copytree(like, folder)
        else:
            folder.mkdir()
        return folder

    def start(self, folder: Path, *words: str) -> tuple[BaseProcess, Path]:
        """Fork a run in a folder."""
        handle, log = tempfile.mkstemp(dir=self.home, prefix="said-")  # not in the folder, whose disk may be full
        os.close(handle)
        process = multiprocessing.get_context("fork").Process(target=child, args=(folder, Path(log), words))
        process.start()
        return process, Path(log)

    def end(self, process: BaseProcess, log: Path) -> Ended:
        """Wait for a run: its exit code and its errors; progress and tables are left out."""
        process.join(LIMIT)
        process.kill()
        process.join()
        lines = log.read_text().splitlines()
        return process.exitcode, "\n".join(line for line in lines if line.startswith(("unlearnbench:", "Traceback")))

    def run(self, folder: Path, *words: str) -> Ended:
        """One run from start to end."""
        return self.end(*self.start(folder, *words))

    def count(self, part: str, what: str, good: bool = True, why: object = "") -> None:
        """Enter what was done or found, and whether it went as it should."""
        self.counts[part, what] += good
        if not good:
            self.failures.append(f"{part}: not {what}: {why}")

    def noticed(self, part: str, ended: Ended, *names: str) -> None:
        """A run must have been refused in one line, with exit code 2 and these words."""
        code, said = ended
        good = code == 2 and "\n" not in said and all(name in said for name in names)
        self.count(part, "noticed", good, f"exit code {code}, {said!r}, expected {names}")

    def survived(self, part: str, folder: Path, *ends: Ended) -> None:
        """Runs must have ended well, with everything equal to the undisturbed run."""
        found = left(folder)
        different = [name for name in {**found, **self.expected} if found.get(name) != self.expected.get(name)]
        good = all(code == 0 for code, _ in ends) and not different
        self.count(part, "survived", good, f"{ends}, different: {different}")


def left(folder: Path) -> dict[str, Any]:
    """What a run leaves, by file; of weights' facts, which are times, only that they are there."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or ".new-" in name or ".damaged" in name:
            continue
        if path.suffix == ".json" and path.name != META:
            found[name] = comparable(read_record(path))
        else:
            found[name] = True if "weights" in path.parts and path.name == META else path.read_bytes()
    return found
