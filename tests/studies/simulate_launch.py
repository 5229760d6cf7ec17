"""How long would a large board take? `python -m tests.studies.simulate_launch` prints a table for results/launch.md.

Cells are drawn from the recorded ones. One driver hands them to workers one at a time; workers die at a constant rate,
and a cell whose worker dies is tried again from the start.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unlearnbench.records.schema import Record, load_all

CELLS, WORKERS, MTBF = 10_000, (1, 32, 128, 1024), (math.inf, 24.0, 4.0)
"""Cells of the board; numbers of workers; mean hours between failures of a worker."""
SAMPLING = {"digits-class": 4.0, "digits-text": 12.0}
"""Seconds for sampling and judging a cell. Assumed: records do not hold them."""
DRAWS = 5
"""Draws of the failures, whose mean is shown."""
LARGE = 20 * 60.0
"""Mean seconds of a cell of Stable Diffusion's size. Assumed."""
HANDOVER, START, OVERHEAD, RESPAWN, TRIES = 0.01, 8.0, 0.5, 60.0, 3
"""Seconds that the driver needs for a cell, a worker to start, a worker for a cell, and a dead worker to be replaced;
how often a cell is begun before it counts as failed."""


class Outcome(NamedTuple):
    """How a simulated launch ended."""

    seconds: float
    failed: int


def simulate(durations: Sequence[float], workers: int, mtbf: float = math.inf, seed: int = 0) -> Outcome:
    """Run jobs in the given order; each goes to the worker that is free first, a lost one before those not yet begun.

    Args:
        durations: Seconds of each job.
        workers: How many jobs run at a time.
        mtbf: Mean seconds between failures of a worker.
        seed: Of the failures.
    """
    rng = np.random.default_rng([1, seed])  # apart from the draw of cells
    waiting, tries = deque(range(len(durations))), [0] * len(durations)
    lost: list[tuple[float, int]] = []
    free = [START] * workers
    driver_free = end = 0.0
    failed = 0
    while waiting or lost:
        now = heapq.heappop(free)
        if lost and (lost[0][0] <= now or not waiting):
            died, job = heapq.heappop(lost)
            now = max(now, died)
        else:
            job = waiting.popleft()
        driver_free = max(now, driver_free) + HANDOVER
        begun, life = driver_free + OVERHEAD, rng.exponential(mtbf) if math.isfinite(mtbf) else math.inf
        tries[job] += 1
        ended = begun + min(life, durations[job])
        if life >= durations[job]:
            heapq.heappush(free, ended)
        else:
            heapq.heappush(free, ended + RESPAWN + START)
            if tries[job] < TRIES:
                heapq.heappush(lost, (ended, job))
            else:
                failed += 1
        end = max(end, ended)
    return Outcome(end, failed)


def seconds_of(record: Record) -> float:
    """Seconds of a cell: preparing, unlearning and attacks as recorded, sampling as assumed."""
    timed = [record.scores[name].value for name in ("prepare_time", "unlearn_time") if name in record.scores]
    timed += [attack.seconds for attack in record.attacks.values()]
    return SAMPLING[record.task] + sum(seconds or 0.0 for seconds in timed)


def board(records: Sequence[Record], cells: int = CELLS) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of cells drawn with replacement, ordered by method; and the mean seconds of each one's method."""
    ordered = sorted(records, key=lambda one: (one.task, one.label(), one.forget, one.seeds["unlearning"]))
    seconds = np.array([seconds_of(one) for one in ordered])
    _, method = np.unique([f"{one.task} {one.label()}" for one in ordered], return_inverse=True)
    means = (np.bincount(method, seconds) / np.bincount(method))[method]
    drawn = np.sort(np.random.default_rng(0).integers(len(ordered), size=cells))
    return seconds[drawn], means[drawn]


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:#.3g}"


def main() -> None:
    """Print the table, in hours."""
    records = [one for one in load_all(Path("results")) if one.task in SAMPLING and one.method.division == "default"]
    recorded, means = board(records)
    print(f"{len(records)} records; seconds: mean {recorded.mean():.0f}, longest {recorded.max():,.0f}\n")
    print("| cells | hours between failures | workers | bound | given order | longest first | failed |")
    print("|---|" + "---:|" * 6)
    scales = {"recorded": 1.0, "20 min": LARGE / recorded.mean()}
    for (name, scale), mtbf, workers in itertools.product(scales.items(), MTBF, WORKERS):
        seconds = scale * recorded
        orders = seconds, seconds[np.argsort(-means, kind="stable")]
        draws = DRAWS if math.isfinite(mtbf) else 1
        ended = np.array([[simulate(order, workers, 3600 * mtbf, seed) for seed in range(draws)] for order in orders])
        (given, _), (longest, failed) = ended.mean(axis=1)
        bound = max(seconds.sum() / workers, seconds.max())
        hours = " | ".join(_hours(value) for value in (bound, given, longest))
        between = "—" if math.isinf(mtbf) else f"{mtbf:g}"
        print(f"| {name} | {between} | {workers:,} | {hours} | {failed:.1f} |")


if __name__ == "__main__":
    main()
