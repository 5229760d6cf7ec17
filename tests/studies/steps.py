"""What fewer sampling steps change: `python -m tests.studies.steps` tries the papers' network and schedule on real
digits.

`cifar10-class` draws by 250 steps in its default protocol where the papers take 1,000. Their network at width 32, its
linear betas, unclipped x0 and guidance 3 are trained on the UCI digits here, and drawn from by both, and by others.
Written to results/steps.md. On CIFAR-10 itself: `first-hour --steps`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unlearnbench import Batch, Diffusion, registry
from unlearnbench.compute.environment import describe_environment
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.judges import look
from unlearnbench.models.ddpm import ConditionalDDPM
from unlearnbench.tasks import digits_class
from unlearnbench.tasks._cifar10 import GUIDANCE
from unlearnbench.tasks.digits_class import DigitsClass, to_uint8
from unlearnbench.training import seeded

TRIED = [Sampler(steps, eta, GUIDANCE) for eta in (1.0, 0.0) for steps in (1000, 250, 100)]
RATE = 1e-3


class Digits(DigitsClass):
    """Digits of three equal channels, for the papers' network."""

    def architecture(self, seed: int) -> Diffusion:
        with seeded(seed):
            return ConditionalDDPM(10, 8, 32)

    def data(self, which: Literal["forget", "retain", "both"]) -> Batch:
        x0, y = super().data(which)
        return Batch(x0.expand(-1, 3, -1, -1), y)

    def to_uint8(self, x: Tensor) -> Tensor:
        return to_uint8(x.mean(dim=1, keepdim=True))


def rows(images: int, limit: int | None) -> Iterator[list[str]]:
    """Steps, eta, share judged as asked, FID and KID."""
    task = Digits("3", limit=limit)
    digits_class.RATE = RATE
    model = task.train(0).eval()
    y = torch.arange(10).repeat_interleave(images)
    real = look(task.judge(), torch.cat(list(task.reference()))).features
    metrics = registry.load_metrics()
    for sampler in TRIED:
        with torch.inference_mode():
            drawn = [model.sample(some, range(i, i + len(some)), sampler=sampler) for i, some in parts(y)]
        shown = task.to_uint8(torch.cat(drawn))
        seen = look(task.judge(), shown)
        right = (seen.verdict.label == y).float().mean().item()
        features = seen.features[torch.cat([(y == k).nonzero()[:50, 0] for k in range(10) if k != 3])][:]
        n = min(len(features), len(real))
        values = [metrics[name].between(features[:n], real[:n], 3) for name in ("fid", "kid")]
        yield [str(sampler.steps), f"{sampler.eta:g}", f"{right:.1%}", *(f"{value:.3f}" for value in values)]


def parts(y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Fifty conditions at a time, with the number of the first."""
    yield from ((i, y[i : i + 50]) for i in range(0, len(y), 50))


def page(found: list[list[str]], images: int, limit: int | None) -> str:
    """Markdown."""
    heads = ["steps", "eta", "judged right", "FID", "KID"]
    lines = [
        "# Sampling steps",
        "",
        "What fewer steps change, by `python -m tests.studies.steps`:",
        "the network and schedule of the papers on CIFAR-10",
        f"(linear betas, x0 not clipped, guidance {GUIDANCE:g}), at width 32 and 8x8 pixels, trained on the UCI digits",
        f"for {limit or digits_class.STEPS:,} steps. {10 * images} images a row, from the same noise; FID and KID of 9",
        f"digits, {9 * min(images, 50)} images, in the features of the digits' judge. It shows how far the sampler has",
        "converged there, not on CIFAR-10, where no weights were at hand: `first-hour --steps` does.",
        "",
        f"Made on {describe_environment('cpu')['device']}, torch {torch.__version__}.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---:|" * len(heads),
        *("| " + " | ".join(row) + " |" for row in found),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20, help="Of each digit.")
    parser.add_argument("--limit", type=int, help="Training steps, for a quick try.")
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = parser.parse_args()
    found = []
    for row in rows(given.images, given.limit):
        print(*row, flush=True)
        found.append(row)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "steps.md").write_text(page(found, given.images, given.limit))


if __name__ == "__main__":
    main()
