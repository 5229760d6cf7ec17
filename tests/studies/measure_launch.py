"""What launching costs, measured: `python -m tests.studies.measure_launch`; writes its part of results/launch.md.

Ten cells of `digits-class` on one thread each: in one process, by one and two local workers, by Ray and by Slurm, each
from the original's record and a store with nothing else of theirs. Nothing else may run beside it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import slurm_cluster
from tests.support.small_world import comparable
from unlearnbench.compute.environment import describe_environment
from unlearnbench.launch.journal import latest
from unlearnbench.records.folder import load_all
from unlearnbench.storage.store import Store

OPEN, CLOSE = "<!-- measured -->", "<!-- /measured -->"
IMPORTS = "from unlearnbench.launch.worker import warm; warm()"
PLAIN = "in this process"


class Failed(Exception):
    """A command that did not end well, with the last line that it said."""


def command(folder: Path, *words: str) -> list[str]:
    run = [sys.executable, "-m", "unlearnbench.cli", "run", "--device", "cpu", "--threads", "1"]
    return [*run, "--results", str(folder / "here"), *words]


def timed(folder: Path, words: list[str], **env: str) -> float:
    """Seconds of a whole command, which must end well."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {**os.environ, "UNLEARNBENCH_CACHE": str(folder / "store"), "OMP_NUM_THREADS": "1", **env}
    begun = time.perf_counter()
    done = subprocess.run(words, env=about, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(" ".join(done.stderr.split()[-30:]))
    return time.perf_counter() - begun


def records(folder: Path) -> list[dict[str, object]]:
    return [comparable(record) for record in load_all(folder / "here")]


def jobs_of(folder: Path) -> int:
    """How many jobs were done, all of them well; none where no launcher was asked."""
    journal = latest(Store(folder / "store"), folder / "here")
    states = [(state, about["where"]) for _, state, about in journal.states()] if journal else []
    assert {state for state, _ in states} <= {"done"}
    return sum(where != "before" for _, where in states)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/launch.md"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--cells", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        text, failed = measured(Path(name), given.steps, given.cells)
    page = given.out.read_text() if given.out.is_file() else f"# Launching a large board\n\n{OPEN}\n{CLOSE}\n"
    if OPEN not in page:
        title, _, rest = page.partition("\n")
        page = f"{title}\n\n{OPEN}\n{CLOSE}\n{rest}"
    before, _, rest = page.partition(OPEN)
    given.out.write_text(f"{before}{OPEN}\n{text}{CLOSE}{rest.partition(CLOSE)[2]}")
    sys.stdout.write(text)
    raise SystemExit(int(failed))


def measured(root: Path, steps: int, cells: int) -> tuple[str, bool]:
    """The text, and whether anything failed: what was measured before it is kept."""
    imports = min(timed(root / "imports", [sys.executable, "-c", IMPORTS]) for _ in range(3))
    timed(root / "original", command(root / "original", "--method", "original"))
    ten = ("--method", "gradient_ascent", "--set", f"steps={steps}", "--seeds", f"0-{cells - 1}")
    kinds: dict[str, tuple[str, ...]] = {
        PLAIN: (),
        "local, 1 worker": ("--jobs", "1"),
        "local, 2 workers": ("--jobs", "2"),
        "Ray, 1 job at a time": ("--launcher", "ray", "--jobs", "1"),
        "Slurm, 1 job at a time": ("--launcher", "slurm", "--jobs", "1", "--time", "60"),
    }
    walls: dict[str, float] = {}
    rows, found, failed = [], {}, False
    for number, (kind, words) in enumerate(kinds.items()):
        folder = root / f"{number}"
        shutil.copytree(root / "original", folder)
        try:
            walls[kind] = launched(folder, command(folder, *ten, *words))
            found[kind] = records(folder)
            rows.append(f"| {kind} | {walls[kind]:.1f} | {cost(kind, walls, jobs_of(folder), imports)} |")
            rows[-1] += f" {'yes' if found[kind] == found[PLAIN] else 'no'} |"
        except Failed as error:
            if kind == PLAIN:  # nothing could be held against it
                raise
            rows.append(f"| {kind} | failed: {error} | | | |")
            failed = True
    one, two = walls.get("local, 1 worker"), walls.get("local, 2 workers")
    ratio = (
        f"Two workers of one thread are {one / two:.2f} times as fast as one, starts and imports included."
        if one and two
        else ""
    )
    about = describe_environment("cpu")
    return (
        f"""## Measured

Made by `python -m tests.studies.measure_launch --steps {steps} --cells {cells}`
on {about["device"]}, {os.cpu_count()} cores,
torch {about["packages"]["torch"]}: {cells} cells of `digits-class` (gradient_ascent, {steps} steps) on one thread each,
whole commands, the original's record being there. Importing takes a process {imports:.1f} s; it is taken off once for a
worker that stays, and once a job for Slurm, whose jobs are processes of their own. What is left beside the seconds of
the one process is the overhead.

| | seconds | overhead a job (s) | overhead of all | records equal |
|---|---:|---:|---:|---|
{chr(10).join(rows)}

{ratio}
""",
        failed,
    )


def launched(folder: Path, words: list[str]) -> float:
    """Seconds of a command, with a Slurm of its own where it needs one."""
    if "slurm" not in words:
        return timed(folder, words)
    if why := slurm_cluster.reason():
        raise Failed(f"no Slurm can be started here: {why}")
    with tempfile.TemporaryDirectory(prefix="slurm-") as short, slurm_cluster.slurm(Path(short)) as variables:
        return timed(folder, words, **variables)


def cost(kind: str, walls: dict[str, float], jobs: int, imports: float) -> str:
    """Overhead in seconds a job and as a share of all, of kinds that do one job at a time."""
    if kind in (PLAIN, "local, 2 workers") or PLAIN not in walls:
        return "| "
    over = walls[kind] - walls[PLAIN] - imports * (jobs if kind.startswith("Slurm") else 1)
    return f"{over / jobs:.2f} | {100 * over / walls[PLAIN]:.1f} %"


if __name__ == "__main__":
    main()
