"""How much memory a run takes: `python -m tests.studies.memory 1000` draws, judges and scores so many images on
stand-ins.

A network of one weight and a judge whose features are a projection of the pixels; everything between them is real.
Prints the peak of the resident set and by how much it is above what was there before the run, in MiB.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.support import tiny_cifar
from unlearnbench import Diffusion, Sampler
from unlearnbench.compute.environment import Meter
from unlearnbench.diffusion.model import Condition
from unlearnbench.judges import Judge, Verdict
from unlearnbench.methods.original import Original
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.runner import run_cell
from unlearnbench.records.schema import Record
from unlearnbench.storage.store import Store
from unlearnbench.tasks.cifar10_class import Cifar10Class

CLASSES = 10


class StandIn(Diffusion):
    """eps = a x_t, whatever the class."""

    def __init__(self) -> None:
        super().__init__(torch.linspace(0.99, 0.01, 10), (3, 32, 32))
        self.a = nn.Parameter(torch.tensor(0.5))
        self.sampler = Sampler(steps=1)

    def embed(self, y: Tensor) -> Condition:
        return Condition(y.float()[:, None], ids=y)

    def null(self, n: int) -> Condition:
        return self.embed(torch.full((n,), CLASSES))

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.a * x_t

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {"full": [self.a]}


class Projection(Judge):
    """Features (N, D) are sums of every few pixels in one of D ways, logits their first ten."""

    name, version, classes, threshold, hash = "projection", "1", CLASSES, 0.0, "0" * 64
    has_logits = True

    def __init__(self, wide: int):
        self.matrix = torch.randn(768, wide, generator=torch.Generator().manual_seed(0)) / 768**0.5

    def features(self, images: Tensor) -> Tensor:
        return (images[:, :, ::2, ::2].flatten(1).float() / 127.5 - 1) @ self.matrix

    def __call__(self, images: Tensor) -> Verdict:
        return Verdict(self.logits_from(self.features(images)).softmax(dim=1), torch.zeros(len(images)) > 0)

    def logits_from(self, features: Tensor) -> Tensor:
        return features[:, :CLASSES]


class StandInTask(Cifar10Class):
    """CIFAR-10's own plan and counts."""

    def __init__(self, images: int, wide: int, folder: Path):
        super().__init__("airplane", protocol="smoke", data=folder)
        retain = (images - images // 10) // (CLASSES - 1)
        self.protocol = replace(self.protocol, forget_images=images // 10, retain_images=retain, chunk=500)
        self.wide = wide

    def architecture(self, seed: int) -> Diffusion:
        return StandIn()

    def judge(self) -> Judge:
        return Projection(self.wide)

    def reference(self) -> Iterator[Tensor]:
        return self.real(1)

    def floor(self) -> Iterator[Tensor]:
        return self.real(2)

    def real(self, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        count = self.protocol.retain_images * (CLASSES - 1)
        for start in range(0, count, 500):
            shape = (min(500, count - start), 3, 32, 32)
            yield torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def measured(images: int, wide: int, folder: Path) -> tuple[Record, int, int]:
    """The record, the peak of the resident set in bytes, and its growth, after a small run that loads all code."""
    tiny_cifar.write(folder / "data")

    def once(count: int, name: str) -> Record:
        task = StandInTask(count, wide, folder / "data")
        return run_cell(Cell(Original(), task), Store(folder / f"store-{name}"), folder / f"results-{name}")

    once(500, "warm")
    with Meter("cpu") as meter:
        before = resident()
        record = once(images, "own")
    if meter.memory is None:
        raise SystemExit("this system does not tell the peak of the resident set")
    return record, before + meter.memory, meter.memory


def resident() -> int:
    """Bytes of the resident set."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=int)
    parser.add_argument("--features", type=int, default=2048)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        record, peak, growth = measured(given.images, given.features, Path(folder))
    lost = sorted(name for name, score in record.scores.items() if score.value is None)
    print(
        f"peak {peak / 2**20:.1f} MiB, growth {growth / 2**20:.1f} MiB, status {record.status}, without value: {lost}"
    )


if __name__ == "__main__":
    main()
