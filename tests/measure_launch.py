"""What launching costs, measured: `python -m tests.measure_launch`; writes its part of results/launch.md.

Ten cells of `digits-class` on one thread each: in one process, by one and two local workers, by Ray and by Slurm, all
with stores of their own. Nothing else may run beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import slurm_cluster
from tests.small_world import comparable
from unlearnbench.environment import describe
from unlearnbench.ledger import latest
from unlearnbench.record import load_all
from unlearnbench.store import Store

OPEN, CLOSE = "<!-- measured -->", "<!-- /measured -->"
IMPORTS = "import torch, unlearnbench.trajectory, torch_fidelity, diffusers, pandas, scipy.stats, sklearn.datasets"


def command(folder: Path, steps: int, cells: int, *words: str) -> list[str]:
    method = ("--method", "gradient_ascent", "--set", f"steps={steps}", "--seeds", f"0-{cells - 1}")
    run = [sys.executable, "-m", "unlearnbench.cli", "run", *method, "--device", "cpu", "--threads", "1"]
    return [*run, "--out", str(folder / "here"), *words]


def timed(folder: Path, words: list[str], **env: str) -> float:
    """Seconds of a whole command, which must end well."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {**os.environ, "UNLEARNBENCH_CACHE": str(folder / "store"), "OMP_NUM_THREADS": "1", **env}
    begun = time.perf_counter()
    done = subprocess.run(words, env=about, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr}")
    return time.perf_counter() - begun


def records(folder: Path) -> list[dict[str, object]]:
    return [comparable(record) for record in load_all(folder / "here")]


def jobs_of(folder: Path) -> int:
    """How many jobs there were, all of them done."""
    ledger = latest(Store(folder / "store"), folder / "here")
    assert ledger is not None
    states = [state for _, state, _ in ledger.states()]
    assert set(states) == {"done"}
    return len(states)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/launch.md"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--cells", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        text = measured(Path(name), given.steps, given.cells)
    page = given.out.read_text() if given.out.is_file() else f"# Launching a large board\n\n{OPEN}\n{CLOSE}\n"
    if OPEN not in page:
        title, _, rest = page.partition("\n")
        page = f"{title}\n\n{OPEN}\n{CLOSE}\n{rest}"
    before, _, rest = page.partition(OPEN)
    given.out.write_text(f"{before}{OPEN}\n{text}{CLOSE}{rest.partition(CLOSE)[2]}")
    sys.stdout.write(text)


def measured(root: Path, steps: int, cells: int) -> str:
    imports = min(timed(root / "imports", [sys.executable, "-c", IMPORTS]) for _ in range(2))
    rows: list[str] = []
    walls: dict[str, float] = {}
    plain = None
    kinds: list[tuple[str, tuple[str, ...]]] = [
        ("in this process", ()),
        ("local, 1 worker", ("--jobs", "1")),
        ("local, 2 workers", ("--jobs", "2")),
        ("Ray, 1 job at a time", ("--launcher", "ray", "--jobs", "1")),
        ("Slurm, 1 job at a time", ("--launcher", "slurm", "--jobs", "1", "--time", "60")),
    ]
    for kind, words in kinds:
        folder = root / kind.replace(" ", "-").replace(",", "")
        line = command(folder, steps, cells, *words)
        if "slurm" in words:
            if why := slurm_cluster.reason():
                rows.append(f"| {kind} | not started here: {why} | | | |")
                continue
            with tempfile.TemporaryDirectory(prefix="slurm-") as short, slurm_cluster.slurm(Path(short)) as variables:
                wall = timed(folder, line, **variables)
        else:
            wall = timed(folder, line)
        walls[kind] = wall
        found = records(folder)
        plain = plain or found
        equal = "yes" if found == plain else "no"
        if not words:
            rows.append(f"| {kind} | {wall:.1f} | | | {equal} |")
            continue
        count = jobs_of(folder)
        processes = count if "slurm" in words else 2 if "2" in words else 1
        at_once = 2 if "2" in words else 1
        over = wall - walls["in this process"] / at_once - (imports if at_once == 1 else 0) * processes
        share = 100 * over / walls["in this process"]
        cost = f"{over / count:.2f} | {share:.1f} %" if at_once == 1 else "| "
        rows.append(f"| {kind} | {wall:.1f} | {cost} | {equal} |")
    ratio = walls["local, 1 worker"] / walls["local, 2 workers"]
    about = describe("cpu")
    return f"""## Measured

Made by `python -m tests.measure_launch --steps {steps} --cells {cells}` on {about["device"]}, {os.cpu_count()} cores,
torch {about["packages"]["torch"]}: {cells} cells of `digits-class` (gradient_ascent, {steps} steps) and the original's,
on one thread each, from empty stores. Importing takes a process {imports:.1f} s; it is taken off once for a worker that
stays, and once a job for Slurm, whose jobs are processes of their own. What is left beside the seconds of the one
process is the overhead.

| | seconds | overhead a job (s) | overhead of all | records equal |
|---|---:|---:|---:|---|
{chr(10).join(rows)}

Two workers of one thread are {ratio:.2f} times as fast as one.
"""


if __name__ == "__main__":
    main()
