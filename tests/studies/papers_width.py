"""Run the papers' protocols of cifar10-class at their real width, without anybody's weights: the network, its judge and
Inception are freshly initialised.

`python -m tests.studies.papers_width` takes minutes of a CPU for all of them, `--protocol salun-iclr24` one. Everything
is as the protocol says, but for the images, of which it draws one a class in two steps, and for what the numbers mean:
nothing. It shows that files are read, that unlearning, sampling, judging and scoring fit together, and what they take.
`--data` reads real images; without it a small set is made. `--checkpoint ckpt.pth` takes an original of the papers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.support import cifar_checkpoints, random_inception, tiny_cifar
from unlearnbench import registry
from unlearnbench.compute.environment import Meter
from unlearnbench.errors import UserError
from unlearnbench.judges.cifar import started
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.runner import run_cell
from unlearnbench.storage.store import Store
from unlearnbench.storage.weights import make_once
from unlearnbench.tasks._cifar10 import INCEPTION, ClassProtocol
from unlearnbench.tasks.cifar10_class import Cifar10Class
from unlearnbench.verification.first_hour import first_hour_findings

PAPERS = tuple(name for name in Cifar10Class.protocols if name not in (*Cifar10Class.ships, "smoke"))
STEPS = 2
"""Of the sampler, and at most of unlearning."""


class Row(NamedTuple):
    """How a protocol went."""

    protocol: str
    status: str
    scores: int
    """Number of metrics with a value."""
    seconds: float
    peak: int
    """MiB beyond what was in use before; -1 if unknown."""


def handful(protocol: ClassProtocol, width: int) -> ClassProtocol:
    """The protocol with an image of each class, drawn in few steps."""
    few = {"forget_images": 2, "retain_images": 1, "reference_images": 1, "chunk": 11, "width": width}
    return replace(protocol, sampler=replace(protocol.sampler, steps=STEPS), **few)


@contextmanager
def handfuls(names: Sequence[str], width: int) -> Iterator[None]:
    """Within this block the task's protocols are those of a handful of images."""
    before = dict(Cifar10Class.protocols)
    try:
        Cifar10Class.protocols.update({name: handful(before[name], width) for name in names})
        yield
    finally:
        Cifar10Class.protocols.update(before)


def prepared(place: Path, data: Path | None, checkpoint: Path | None, width: int) -> dict[str, Any]:
    """What the task takes: a folder of images beside an Inception, a papers' checkpoint, and a folder with a judge."""
    images, judge = place / "data", place / "judge"
    images.mkdir()
    if data is None:
        tiny_cifar.write(images)
    else:
        for path in data.rglob("*.parquet"):
            (images / path.name).symlink_to(path.resolve())
    random_inception.write(images / INCEPTION.name)
    torch.manual_seed(0)
    state = {**started(None).state_dict(), "threshold": torch.tensor(0.0)}
    make_once(judge, "judge.safetensors", lambda: state, seed=0, recipe={})
    if checkpoint is None:
        checkpoint = cifar_checkpoints.write(place, "erasediff", *cifar_checkpoints.pair(width, min(32, width)))
    return {"data": images, "weights": judge, "checkpoint": checkpoint}


def measured(names: Sequence[str], method: str, width: int, given: dict[str, Any], place: Path) -> Iterator[Row]:
    """Run the original and a method by each protocol, and `first-hour` where that is among them."""
    cls = registry.load_method(method)
    small = {"batch_size": 2} if "batch_size" in cls().settings() else {}
    settings = {**cls.preset("default", Cifar10Class.name), **small}
    store, results = Store(place / "store"), place / "results"
    with handfuls(PAPERS, width):  # first-hour draws by others too
        for name in names:
            task, begun = Cifar10Class("airplane", protocol=name, limit=STEPS, **given), time.monotonic()
            with Meter("cpu") as meter:
                record = run_cell(Cell(cls.configured(settings), task), store, results)
                if name == "first-hour":
                    list(first_hour_findings(task, store, results))
            known = sum(score.value is not None for score in record.scores.values())
            peak = -1 if meter.memory is None else meter.memory // 2**20
            yield Row(name, record.status, known, time.monotonic() - begun, peak)


def main(words: list[str] | None = None) -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", action="append", choices=PAPERS, help="Repeatable; all if left out.")
    parser.add_argument("--method", default="finetune")
    parser.add_argument("--data", type=Path, help="CIFAR-10 in the hub's layout.")
    parser.add_argument("--checkpoint", type=Path, help="An original of the papers' code.")
    parser.add_argument("--width", type=int, default=128, help="The papers' is 128.")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            task = prepared(place, given.data, given.checkpoint, given.width)
            rows = []
            print("protocol,status,scores,seconds,peak memory (MiB)")
            for row in measured(given.protocol or PAPERS, given.method, given.width, task, place):
                rows.append(row)
                print(f"{row.protocol},{row.status},{row.scores},{row.seconds:.1f},{row.peak}", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return int(any(row.status not in ("ok", "unreliable") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
