"""What launching a large board would take: `python -m tests.studies.simulate_launch` simulates 10,000 cells on many
workers.

A discrete-event simulation with recorded durations: one driver hands cells to workers, workers die and come back.
Written to the part of results/launch.md between its two marks; what else the page says is kept.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np

from unlearnbench.records.folder import load_all
from unlearnbench.records.schema import Record
from unlearnbench.storage.files import replace_file

CELLS = 10_000
WORKERS = (1, 2, 8, 32, 128, 512, 1024)
FAILING = (1, 32, 128, 1024)
"""Workers of the rows with failures."""
HANDOVERS = (0.01, 0.05)
MTBF, KEPT = (24.0, 4.0), (0.0, 0.5)
"""Hours between failures of a worker; shares of a lost cell's work that are kept."""
DRAWS = 5
"""Of failures, whose mean a row shows."""
SAMPLING = {"digits-class": 4.0, "digits-text": 12.0}
"""Seconds of a cell's sampling and judging, assumed: records do not hold them."""
LARGE = 20 * 60.0
"""Mean seconds of a cell of Stable Diffusion's size, assumed."""
SEED = 0
HOUR = 3600.0
TITLE = "# Launching a large board"
UNDISTURBED = (
    *("cells", "handover (s)", "workers", "bound"),
    *("given order: makespan", "/ bound", "utilisation"),
    *("longest first: makespan", "/ bound", "utilisation"),
)
DISTURBED = (
    *("cells", "between failures", "kept", "workers"),
    *("given order: makespan", "/ bound", "failed"),
    *("longest first: makespan", "bound", "/ bound", "utilisation", "lost", "retries", "failed"),
)
OPEN, CLOSE = "<!-- simulation -->", "<!-- /simulation -->"


class Launch(NamedTuple):
    """What a launch costs beside the cells' own seconds, and how it fails."""

    handover: float = 0.01
    """Of the driver, for each cell, one after another."""
    start: float = 8.0
    """Of a worker, before its first cell and after a death."""
    overhead: float = 0.5
    """Of a worker, for each cell."""
    mtbf: float = math.inf
    """Mean time between failures of a worker."""
    respawn: float = 60.0
    """From a worker's death to its next start."""
    kept: float = 0.0
    """Share of a lost cell's work that its next try need not do again."""
    tries: int = 3
    """Of a cell, before it has failed."""


USUAL = Launch()


class Outcome(NamedTuple):
    """What became of every job, and in how many seconds."""

    workers: int
    makespan: float
    useful: float
    """Job seconds of jobs that were done, each counted once."""
    lost: float
    """Job seconds that have to be done again, or were spent on jobs that failed."""
    busy: float
    """Job seconds that workers spent: what is useful and what is lost."""
    longest: float
    """Job that was done."""
    done: tuple[int, ...]
    """Times that each job was done."""
    tries: tuple[int, ...]
    """Times that each job was begun."""

    @property
    def bound(self) -> float:
        """No launch of the jobs that were done takes less, not even without failures."""
        return max(self.useful / self.workers, self.longest)

    @property
    def ratio(self) -> float:
        return self.makespan / self.bound if self.bound else math.nan

    @property
    def utilisation(self) -> float:
        return self.useful / (self.workers * self.makespan) if self.makespan else math.nan

    @property
    def lost_share(self) -> float:
        return self.lost / self.busy if self.busy else 0.0

    @property
    def retries(self) -> int:
        return sum(tries - 1 for tries in self.tries)

    @property
    def failed(self) -> int:
        return self.done.count(0)


def simulate(
    durations: Sequence[float],
    workers: int,
    launch: Launch = USUAL,
    rng: np.random.Generator | None = None,
    expected: Sequence[float] | None = None,
) -> Outcome:
    """Launch jobs in their order, or with the longest expected first; a lost job goes back to its place."""
    rng = np.random.default_rng(SEED) if rng is None else rng
    jobs = len(durations)
    order = range(jobs) if expected is None else sorted(range(jobs), key=lambda job: -expected[job])
    rank = {job: place for place, job in enumerate(order)}
    ready = [(place, job) for place, job in enumerate(order)]
    left = [float(seconds) for seconds in durations]
    done, tries = [0] * jobs, [0] * jobs
    useful = lost = busy = now = 0.0
    lives = [0] * workers
    running: list[tuple[int, float] | None] = [None] * workers
    idle: deque[tuple[int, int]] = deque()
    driving = False
    events: list[tuple[float, int, str, int, int, int]] = []
    number = itertools.count()

    def after(seconds: float, what: str, worker: int, job: int = -1) -> None:
        heapq.heappush(events, (now + seconds, next(number), what, worker, lives[worker], job))

    def spawn(worker: int, delay: float) -> None:
        after(delay + launch.start, "up", worker)
        if math.isfinite(launch.mtbf):
            after(delay + rng.exponential(launch.mtbf), "died", worker)

    for worker in range(workers):
        spawn(worker, 0.0)
    undecided = jobs
    while undecided:
        now, _, what, worker, life, job = heapq.heappop(events)
        alive = life == lives[worker]
        if what == "up" and alive:
            idle.append((worker, life))
        elif what == "handed":
            driving = False
            if alive:
                tries[job] += 1
                running[worker] = (job, now + launch.overhead)
                after(launch.overhead + left[job], "done", worker, job)
            else:
                heapq.heappush(ready, (rank[job], job))
        elif what == "done" and alive:
            busy += left[job]
            useful += durations[job]
            done[job] += 1
            undecided -= 1
            running[worker] = None
            idle.append((worker, life))
        elif what == "died":
            if (run := running[worker]) is not None:
                job, begun = run
                spent = max(0.0, now - begun)
                busy += spent
                lost += (1 - launch.kept) * spent
                left[job] -= launch.kept * spent
                if tries[job] < launch.tries:
                    heapq.heappush(ready, (rank[job], job))
                else:
                    lost += durations[job] - left[job]
                    undecided -= 1
                running[worker] = None
            lives[worker] += 1
            spawn(worker, launch.respawn)
        while idle and lives[idle[0][0]] != idle[0][1]:
            idle.popleft()
        if ready and idle and not driving:
            driving = True
            after(launch.handover, "handed", idle.popleft()[0], heapq.heappop(ready)[1])
    longest = max((seconds for seconds, times in zip(durations, done, strict=True) if times), default=0.0)
    return Outcome(workers, now, useful, lost, busy, float(longest), tuple(done), tuple(tries))


def seconds_of(record: Record) -> float:
    """Preparing, unlearning, sampling (assumed) and the attacks, where there are any."""
    timed = [record.scores[name].value for name in ("prepare_time", "unlearn_time") if name in record.scores]
    attacks = [attack.seconds for attack in record.attacks.values()]
    return sum(value or 0.0 for value in (*timed, *attacks)) + SAMPLING[record.task]


def board(records: Iterable[Record], cells: int = CELLS) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and expected seconds of cells drawn with replacement: methods, then concepts, then seeds."""
    found = sorted(records, key=lambda one: (one.task, one.label(), one.forget, one.seeds["unlearning"]))
    by_method: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in found:
        by_method[one.task, one.label()].append(seconds_of(one))
    seconds = np.array([seconds_of(one) for one in found])
    means = np.array([np.mean(by_method[one.task, one.label()]) for one in found])
    drawn = np.sort(np.random.default_rng(SEED).integers(len(found), size=cells))
    return seconds[drawn], means[drawn]


def known(results: Path) -> list[Record]:
    """Records of the tasks whose sampling is assumed."""
    return [one for one in load_all(results) if one.task in SAMPLING and one.method.division == "default"]


def attacks_apart(records: Iterable[Record]) -> float:
    """Longest seconds of a record where its attacks are jobs of their own, side by side after the run."""
    paths = []
    for one in records:
        attacks = [attack.seconds or 0.0 for attack in one.attacks.values()]
        paths.append(seconds_of(one) - sum(attacks) + max(attacks, default=0.0))
    return max(paths)


class Cells(NamedTuple):
    """A board to launch."""

    name: str
    seconds: list[float]
    expected: list[float]

    def launched(self, workers: int, launch: Launch, longest_first: bool, draws: int = 1) -> list[Outcome]:
        """By draw of failures."""
        expected = self.expected if longest_first else None
        rngs = [np.random.default_rng([SEED, draw]) for draw in range(draws)]
        return [simulate(self.seconds, workers, launch, rng, expected) for rng in rngs]


def mean(outcomes: Sequence[Outcome], name: str) -> float:
    return float(np.mean([getattr(one, name) for one in outcomes]))


def hours(seconds: float) -> str:
    """Three digits, or all before the point."""
    value = seconds / HOUR
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    marked = ["| " + " | ".join(row) + " |" for row in (heads, *rows)]
    return "\n".join([marked[0], "|" + "---:|" * len(heads), *marked[1:]])


def undisturbed(launches: Iterable[tuple[Cells, float]]) -> Iterator[tuple[list[str], tuple[Outcome, Outcome]]]:
    """Rows without failures by cells and handover, with their outcomes: in the given order, and longest first."""
    for cells, handover in launches:
        for workers in WORKERS:
            given, longest = (cells.launched(workers, Launch(handover), first)[0] for first in (False, True))
            shown = [(hours(one.makespan), f"{one.ratio:.3f}", f"{one.utilisation:.1%}") for one in (given, longest)]
            row = [cells.name, f"{handover:g}", f"{workers:,}", hours(given.bound), *shown[0], *shown[1]]
            yield row, (given, longest)


def disturbed(sets: Iterable[Cells], draws: int) -> Iterator[list[str]]:
    """Rows with failures, means over draws of them."""
    for cells, mtbf, kept, workers in itertools.product(sets, MTBF, KEPT, FAILING):
        launch = Launch(mtbf=mtbf * HOUR, kept=kept)
        given, longest = (cells.launched(workers, launch, first, draws) for first in (False, True))
        yield [
            cells.name,
            f"{mtbf:g}",
            f"{kept:.0%}",
            f"{workers:,}",
            hours(mean(given, "makespan")),
            f"{mean(given, 'ratio'):.2f}",
            f"{mean(given, 'failed'):.1f}",
            hours(mean(longest, "makespan")),
            hours(mean(longest, "bound")),
            f"{mean(longest, 'ratio'):.2f}",
            f"{mean(longest, 'utilisation'):.1%}",
            f"{mean(longest, 'lost_share'):.1%}",
            f"{mean(longest, 'retries'):.1f}",
            f"{mean(longest, 'failed'):.1f}",
        ]


def section(records: Sequence[Record], cells: int = CELLS, draws: int = DRAWS) -> str:
    """Markdown of the simulation."""
    seconds, expected = board(records, cells)
    factor = LARGE / seconds.mean()
    recorded = Cells("recorded", seconds.tolist(), expected.tolist())
    large = Cells("20 min", (factor * seconds).tolist(), (factor * expected).tolist())
    launches = [*((recorded, handover) for handover in HANDOVERS), (large, HANDOVERS[0])]
    rows, outcomes = zip(*undisturbed(launches), strict=True)
    parts = [
        "## Simulation",
        f"Made by `python -m tests.studies.simulate_launch`: {cells:,} cells, up to {max(WORKERS):,} workers. "
        "Times are hours.",
        "\n".join(map(bullet, assumptions(seconds, factor, records))),
        "### Without failures",
        table(UNDISTURBED, rows),
        "### With failures",
        f"Means over {draws} draws of failures, handovers of {USUAL.handover:g} s.",
        table(DISTURBED, disturbed((recorded, large), draws)),
        "### What follows",
        "\n".join(map(bullet, conclusions(seconds, attacks_apart(records), outcomes, large, draws))),
    ]
    return "\n\n".join(parts) + "\n"


def assumptions(seconds: np.ndarray, factor: float, records: Sequence[Record]) -> list[str]:
    sampling = ", ".join(f"{value:g} s on `{task}`" for task, value in SAMPLING.items())
    attacked = sum(bool(one.attacks) for one in records) / len(records)
    handovers = " or ".join(f"{value:g}" for value in HANDOVERS)
    return [
        f"""*Cells* are drawn with replacement from the {len(records)} records here: preparing, unlearning and, where
        there are any ({100 * attacked:.0f} %), attacks as recorded; sampling is assumed ({sampling}). `recorded`: mean
        {seconds.mean():.0f} s, median {np.median(seconds):.0f} s, longest {seconds.max():,.0f} s. `20 min`: the same
        times {factor:.1f}, for the mean that is assumed of Stable Diffusion. No cell takes longer because of others
        beside it.""",
        f"""*Launcher*: one driver hands over one cell at a time, {handovers} s each, to any free worker. A worker needs
        {USUAL.start:g} s to start, and {USUAL.overhead:g} s a cell beside the cell's own seconds (assumed).""",
        """*Order*: as given (tasks, methods, concepts, seeds), or longest expected first, by the mean of the method's
        records in the task.""",
        f"""*Failures*: workers die independently, at a constant rate, idle or not; preemption counts as the same. A
        worker is back after {USUAL.respawn:g} s, and starts anew. Its cell goes back to its place in the order and is
        begun {USUAL.tries} times at most, from nothing or with half of the work done kept; then it has failed.""",
        """*Bound*: max(total seconds / workers, longest cell), of the cells that were done. *Utilisation*: seconds of
        cells that were done / (workers x makespan). *Lost*: share of the seconds spent on cells that was in vain.""",
    ]


def conclusions(
    seconds: np.ndarray, apart: float, outcomes: Iterable[tuple[Outcome, Outcome]], large: Cells, draws: int
) -> list[str]:
    """What the tables come to, in their own numbers."""
    given, first = (max(ones, key=lambda one: one.ratio) for ones in zip(*outcomes, strict=True))
    limit, other = (math.ceil(seconds.sum() / value) for value in (seconds.max(), apart))
    driven = " and ".join(f"{round(seconds.mean() / value, -2):,.0f} workers at {value:g} s" for value in HANDOVERS)
    frail = Launch(mtbf=min(MTBF) * HOUR)
    failed, makespan = [], []
    for kept in KEPT:
        tried = large.launched(128, frail._replace(kept=kept), True, draws)
        failed.append(f"{mean(tried, 'failed'):.0f}")
        endless = large.launched(128, frail._replace(kept=kept, tries=10**9), True, draws)
        makespan.append(hours(mean(endless, "makespan")))
    return [
        f"""The longest cell is the limit from {limit} workers on, whatever the scale: more of them only wait. With
        attacks as jobs of their own, side by side after their run, it would be from {other} on: one attack,
        `sequential`, which unlearns again and again, takes most of the longest cell.""",
        f"""Longest first, by no more than means of methods, stays within {above(first)} of the bound without failures;
        the given order is up to {above(given)} above it ({given.workers} workers), as long cells come late.""",
        f"""The driver is not the limit here: it keeps about {driven} busy on average, and below
        {seconds.max() / len(seconds):.2f} s each all handovers together take less than the longest cell.""",
        f"""Up to {FAILING[1]} workers failures cost about what they lose. Where the longest cell is close to the limit,
        each death within it is paid in full, and in the given order long before.""",
        f"""Where the longest takes {hours(max(large.seconds))} h and workers live {min(MTBF):g} h, three tries are too
        few: of {len(seconds):,} cells on 128 workers, longest first, {failed[0]} fail from nothing and {failed[1]} if
        half is kept. If deaths of the worker did not count as tries, all would be done in {makespan[0]} and
        {makespan[1]} h. Hence count only a cell's own errors, keep finished stages, and let long ones save themselves.
        """,
    ]


def above(one: Outcome) -> str:
    return f"{100 * (one.ratio - 1):.2g} %"


def bullet(text: str) -> str:
    """Of a list, wrapped."""
    return fill(" ".join(text.split()), 118, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def replaced(page: str, part: str) -> str:
    """A page with this part between its marks, at its end if it has none; the rest is kept."""
    if (page.count(OPEN), page.count(CLOSE)) not in ((0, 0), (1, 1)) or page.find(OPEN) > page.find(CLOSE):
        raise ValueError(f"the page needs {OPEN} and {CLOSE} once each, in this order, or neither")
    if OPEN not in page:
        page = f"{page.rstrip() or TITLE}\n\n{OPEN}\n{CLOSE}\n"
    before, rest = page.split(OPEN)
    return f"{before}{OPEN}\n{part}{CLOSE}{rest.split(CLOSE)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=CELLS)
    parser.add_argument("--draws", type=int, default=DRAWS, help="Of failures, for each row.")
    parser.add_argument("--records", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("results/launch.md"))
    given = parser.parse_args()
    page = given.out.read_text() if given.out.exists() else ""
    part = section(known(given.records), given.cells, given.draws)
    replace_file(given.out, replaced(page, part).encode())


if __name__ == "__main__":
    main()
