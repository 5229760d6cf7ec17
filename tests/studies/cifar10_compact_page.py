"""Write results/cifar10-compact.md: `python -m tests.studies.cifar10_compact_page --data FOLDER` reads CIFAR-10 there.

What the package ships, how the images are split, and the judges' cards; with `--training DIR` also the evaluations that
`train_cifar10_compact` wrote there. The card of the judge of tuning needs its file in FOLDER. About five minutes.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.studies.judge_cards import lines, table
from unlearnbench.data.sources import source_path
from unlearnbench.judges.card import judge_cards
from unlearnbench.judges.resnet8 import CALIBRATED
from unlearnbench.storage.weights import read_manifest
from unlearnbench.tasks._cifar10 import OUTSIDE
from unlearnbench.tasks._cifar10_compact import ASSETS
from unlearnbench.tasks._cifar10_compact import CALIBRATED as FEW
from unlearnbench.tasks.cifar10_class import Cifar10Class

PAGE = Path(__file__).parents[2] / "results" / "cifar10-compact.md"
COLUMNS = ("images seen", "guidance", "samples", "judged right", "fid in the judge's features", "held-out loss")
HEAD = """# CIFAR-10 on a small network

Protocol `compact` of `cifar10-class` ([how to run it](../unlearnbench/guide/cifar10.md)). Numbers on this page are of
JPEG copies of the images (quality about 75), and do not compare with numbers on the originals.
"""
SPLIT = f"""
## How the images are split

| images | used for |
| --- | --- |
| 50,000 of training | original, methods, `retrain`, training of the judge; 200 of each class: reference of tuning |
| 5,000 of test, the even ones | thresholds: {CALIBRATED:,} of them of the judge, {FEW} of the judge of tuning |
| 2,500 of test | what FID and related metrics compare with: 200 of each class; half of the images of the cards |
| 2,500 of test | real images whose score is the floor: 200 of each class; the other half |

The original and its judge have seen the same images, so that the judge may know a sample that is a copy of one. No
threshold, reference or floor is of images that either was trained on, but for tuning, which only ranks settings.
"""


def shipped(weights: Path) -> Iterator[str]:
    """What the manifest says of network and judge."""
    manifest = read_manifest(weights)
    recipe, sizes = manifest["recipe"], {path.name: path.stat().st_size for path in weights.glob("*.safetensors")}
    seen = int(recipe["steps"] * recipe["batch"])
    yield "\n## What is shipped\n"
    rows = [(f"`{name}`", f"{size / 1e6:.1f}", manifest["hashes"][name][:12]) for name, size in sorted(sizes.items())]
    yield from table(["file", "MB", "hash"], rows)
    yield (
        f"\nThe network has seen {seen:,} images ({seen / 50_000:.1f} passes), in {recipe['steps']:,} steps of "
        f"{recipe['batch']}; over the last {recipe['decay steps']:,} of them the learning rate fell to zero. The judge "
        f"was trained for {recipe['judge epochs']} passes."
    )


def evaluations(training: Path) -> Iterator[str]:
    """The network's samples while it was trained, named by the ResNet-56 that others trained."""
    with (training / "evaluations.csv").open(newline="", encoding="utf-8") as file:
        found = sorted(csv.DictReader(file), key=lambda row: (int(row["images seen"]), float(row["guidance"])))
    yield "\n## Quality against images seen\n"
    yield "Samples in 25 steps, judged by the ResNet-56 that others trained; FID is in its features.\n"
    yield from table(COLUMNS, [tuple(row[name] for name in COLUMNS) for row in found])


def cards(data: Path, weights: Path) -> Iterator[str]:
    """How many held-out images the judges name right, and their cards."""
    yield "\n## Judges\n"
    yield 'Each cell is "named right / refused", in percent; ✗ marks a missed requirement ([what they are](judges.md)).'
    for protocol, about in (("compact", "the reported judge"), ("selection", "the judge of tuning")):
        if protocol == "selection" and not source_path(data, OUTSIDE).is_file():
            continue
        task = Cifar10Class("airplane", protocol=protocol, data=data, weights=weights)
        judge = task.judge()
        (card,) = judge_cards(judge, *task.labelled_images())
        yield from lines(card, f"{task.name}, protocol {protocol}", about, "classes", judge)
        right, refused = task.judged_held_out(judge)
        yield f"\nOf the 5,000 test images that set no threshold it names {right:.1%} right, and refuses {refused:.1%}."


def page(data: Path, weights: Path, training: Path | None) -> str:
    """The whole page."""
    measured = [] if training is None else evaluations(training)
    return HEAD + SPLIT + "\n".join([*shipped(weights), *measured, *cards(data, weights)]) + "\n"


def main(words: list[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=ASSETS)
    parser.add_argument("--training", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    given.page.write_text(page(given.data, given.weights, given.training), encoding="utf-8")


if __name__ == "__main__":
    main()
