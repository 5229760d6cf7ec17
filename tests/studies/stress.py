"""Kill, race, fill, lock and damage real runs: `python -m tests.studies.stress`; prints counts, exits 1 on any failure.

One process imports once and forks every run, so that a run costs seconds. What a run leaves is compared with what an
undisturbed run leaves, bit for bit and times apart: records, per-image tables, pictures and every entry of the store.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.support.small_world import CHUNKS, debris, small_protocol
from tests.support.stress_world import World
from unlearnbench.storage.store import DATA, META
from unlearnbench.tasks.digits_class import DigitsClass

LATE = ("unets.unet_2d", "torch_fidelity", "pandas", "scipy.stats", "sklearn.datasets", "PIL.Image", "pyarrow.parquet")
"""What a run imports when it needs it; here once for all."""


def stage_of(folder: Path, whole: Path) -> str:
    """The stage that a killed run was in, by what it left; the original's cell comes first and has the same stages."""

    def have(pattern: str, where: Path = folder) -> int:
        return len(list(where.glob(pattern)))

    if have("here/*/*/*/erasediff*/seed-0.json"):
        return "after the record"
    cell = 1 + have("here/*/*/*/original/seed-0.json")
    if have(f"store/weights/*/{META}") < cell:
        return "unlearning"
    if (samples := have(f"store/samples/*/{META}")) < cell * CHUNKS:
        return f"sampling chunk {samples % CHUNKS + 1} of {CHUNKS}"
    judged = f"store/judged/*/{META}"  # the second cell adds one entry: real images are judged once
    return "judging" if have(judged) < have(judged, whole) - 2 + cell else "scoring and recording"


def kills(world: World, n: int) -> None:
    """SIGKILL at n random moments of a run, by the clock and by the files there are in turn; then go on.

    By the clock alone most would fall in the longest stage.
    """
    for i in range(n):
        code: int | None = 0
        share = (i + world.random.random()) / n
        while code != -signal.SIGKILL:
            folder = world.place(f"kill {i}")
            process, log = world.start(folder)
            if i % 2:
                while process.is_alive() and files(folder) < int(share * len(world.expected)):
                    time.sleep(0.001)
                time.sleep(world.random.random() * 0.05)
            else:
                time.sleep(world.seconds * share)
            process.kill()
            code, _ = world.end(process, log)
            share *= 0.95  # where the run was done before the kill came
        world.count("SIGKILL", "tried")
        world.count(f"  {stage_of(folder, world.whole)}", "tried")
        world.survived("SIGKILL", folder, world.run(folder))


def files(folder: Path) -> int:
    """How many finished files there are, while another process works there."""
    return sum(len(names) for where, _, names in os.walk(folder) if ".new-" not in where)


def pairs(world: World, n: int) -> None:
    """Two processes at once on one cell: both new, both forced, and one forced while the other reads."""
    kinds: dict[str, tuple[list[str], list[str]]] = {
        "two at once": ([], []),
        "two at once, forced": (["--force"], ["--force"]),
        "two at once, one forced": (["--force"], []),
    }
    for part, words in kinds.items():
        for i in range(n):
            folder = world.place(f"{part} {i}", world.whole if "forced" in part else None)
            if part.endswith("one forced"):
                shutil.rmtree(folder / "here")  # so that the other reads the entries
            world.count(part, "tried")
            first = world.start(folder, *words[0])
            time.sleep(world.random.random() * world.seconds / 2 if i % 2 else 0)
            second = world.start(folder, *words[1])
            world.survived(part, folder, world.end(*first), world.end(*second))
            if debris(folder) or list(folder.rglob("*.damaged")):
                world.failures.append(f"{part}: left behind {debris(folder)} or something set aside")


@contextmanager
def mounted(folder: Path, *words: str) -> Iterator[Callable[..., None]]:
    """Mount something at a folder; gives what mounts it again in another way."""

    def mount(*words: str) -> None:
        subprocess.run(["mount", *words, str(folder)], check=True, capture_output=True)

    mount(*words)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def cannot_mount(world: World) -> str:
    """Why nothing can be mounted here; empty where it can."""
    try:
        with mounted(world.place("mount"), "-t", "tmpfs", "tmpfs"):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return str(getattr(error, "stderr", None) or error)


def full_disks(world: World, n: int) -> None:
    """Disks that become full somewhere; then room, and the same command."""
    sizes = {path: -(-path.stat().st_size // 4096) for path in world.whole.rglob("*") if path.is_file()}
    weights = sum(pages for path, pages in sizes.items() if "weights" in path.parts)
    others = sum(sizes.values()) - weights
    for i in range(n):
        share = (i + world.random.random()) / n
        pages = 1 + int(2 * share * weights if share < 0.5 else weights + (2 * share - 1) * (others - 2))
        folder = world.place(f"full {i}")
        with mounted(folder, "-t", "tmpfs", "-o", f"size={pages * 4096}", "tmpfs") as mount:
            world.count("full disk", "tried")
            world.noticed("full disk", world.run(folder), "the disk is full")
            if debris(folder):
                world.failures.append(f"full disk: left behind {debris(folder)}")
            mount("-o", "remount,size=64m")
            world.survived("full disk", folder, world.run(folder))


def read_only_stores(world: World) -> None:
    """A store that cannot be written serves what it holds, and refuses the rest."""
    part, folder = "read-only store", world.place("locked", world.whole)
    store = folder / "store"
    with mounted(store, "--bind", str(store)) as mount:
        mount("-o", "remount,ro,bind")
        for words in ([], ["--force"], ["--seeds", "1"]):
            world.count(part, "tried")
            if words:
                world.noticed(part, world.run(folder, *words), f"cannot write to {store}", "UNLEARNBENCH_CACHE")
            world.survived(part, folder, world.run(folder))
        shutil.rmtree(folder / "here")
        world.count(part, "tried")
        world.survived(part, folder, world.run(folder))
        mount("-o", "remount,rw,bind")
        damaged = flip(world, min(store.glob(f"samples/*/{DATA}")))
        shutil.rmtree(folder / "here")
        mount("-o", "remount,ro,bind")
        world.count(part, "tried")
        world.noticed(part, world.run(folder), str(damaged), "cannot be set aside", "UNLEARNBENCH_CACHE")
    world.noticed(part, world.run(folder), str(damaged), "run the same command again")
    world.survived(part, folder, world.run(folder))


def flip(world: World, path: Path) -> Path:
    """Change one byte of a file of an entry; returns the entry."""
    raw = bytearray(path.read_bytes())
    raw[world.random.randrange(len(raw))] ^= world.random.randrange(1, 256)
    path.write_bytes(raw)
    return path.parent


def flips(world: World) -> None:
    """One byte of every file of every entry; each run names one entry, until none is left."""
    for name in (DATA, META):
        part, folder = f"flipped byte, {name}", world.place(f"flip {name}", world.whole)
        shutil.rmtree(folder / "here")
        entries = {flip(world, path) for path in folder.glob(f"store/*/*/{name}")}
        for _ in range(len(entries)):
            world.count(part, "tried")
            ended = world.run(folder)
            world.noticed(part, ended, "store entry", "is damaged", "run the same command again")
            entries = {entry for entry in entries if str(entry) not in ended[1]}
        world.survived(part, folder, world.run(folder))
        if entries:
            world.failures.append(f"{part}: never named {sorted(map(str, entries))}")


def main() -> int:
    """All parts, a table, and 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # bit for bit is promised at one number of threads
    for name in LATE:
        importlib.import_module(f"diffusers.models.{name}" if name.startswith("unets") else name)
    DigitsClass.protocols["default"] = small_protocol()
    with tempfile.TemporaryDirectory(prefix="stress-") as home:
        world = World(Path(home), asked.seed)
        kills(world, asked.kills)
        pairs(world, 4)
        if why := cannot_mount(world):
            print(f"skipped full disk and read-only store: nothing can be mounted here ({why.strip()})")
        else:
            full_disks(world, 8)
            read_only_stores(world)
        flips(world)
    columns = ("tried", "noticed", "survived")
    print(" " * 40, *(f"{what:>8}" for what in columns))
    for part in dict.fromkeys(part for part, _ in world.counts):
        print(f"{part:40}", *(f"{world.counts[part, what] or '':>8}" for what in columns))
    print(*world.failures, f"{len(world.failures)} failures", sep="\n")
    return 1 if world.failures else 0


if __name__ == "__main__":
    sys.exit(main())
