"""Train the compact network on CIFAR-10 over many sittings, and look at what it has learnt so far.

`python -m tests.studies.train_cifar10_compact train --data DIR --out DIR` trains until it is stopped (Ctrl-C, SIGTERM,
or --hours); the same command goes on at the step where it was. With --decay-steps N the learning rate falls to zero
over N steps from there. `... evaluate --data DIR --out DIR --judge FILE` samples with guidance, has a network that took
no part in the training name the samples, and writes a row of evaluations.csv and a grid.

`... judge --data DIR --out DIR --folder ASSETS` trains the judge of these protocols and writes it into what the package
ships, with ASSETS = unlearnbench/tasks/assets/cifar10-class. `... export --out DIR` writes weights, with `--folder
ASSETS` those that the package ships; both enter their file in the manifest there. `train --without ship` leaves a class
out, and `export --without ship --folder ASSETS` writes its weights where `retrain` takes them from. `... curve` draws
FID against images seen from evaluations.csv.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from unlearnbench.data.image_sets import Images, read_image_set
from unlearnbench.diffusion.model import Condition, Diffusion, Guidance
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.errors import UserError
from unlearnbench.feature_distances import Moments, frechet
from unlearnbench.hashing import seed_of, state_hash
from unlearnbench.judges import resnet8
from unlearnbench.judges.resnet8 import SmallResNetJudge
from unlearnbench.judges.resnet56 import CifarResNet, read_resnet
from unlearnbench.models.compact_ddpm import CompactDDPM
from unlearnbench.models.compact_train import (
    CompactTraining,
    native_bf16,
    open_training,
    read_training_state,
    told_to_stop,
    train_compact,
)
from unlearnbench.models.ddpm_train import TrainingImages, antithetic
from unlearnbench.reporting import told_by
from unlearnbench.storage.files import replace_file
from unlearnbench.storage.store import default_root
from unlearnbench.storage.weights import read_manifest, save_state
from unlearnbench.tasks._cifar10 import CLASSES
from unlearnbench.tasks._cifar10_compact import compact_recipe, retrained_name
from unlearnbench.training import seeded

SIZE, CHUNK, REAL, COLUMNS, ZOOM = 32, 50, 2000, 10, 2
COLUMNS_OF_PAGE = (
    "state,step,images seen,samples,guidance,sampling steps,bound,judged right,judged right by class,"
    "held-out loss,fid in the judge's features,images a second"
)


class Bounded(Guidance):
    """Guidance after which x0 lies in [-bound, bound]; the sampler's own bound of 1 must be off."""

    def __init__(self, bound: float):
        self.bound = bound

    def __call__(
        self, model: Diffusion, x_t: Tensor, t: Tensor, i: int, condition: Condition, null: Condition, w: float
    ) -> Tensor:
        eps = super().__call__(model, x_t, t, i, condition, null, w)
        a, b = model.signal(t)
        x0 = ((x_t - b * eps) / a).clamp(-self.bound, self.bound)
        return (x_t - a * x0) / b


def split(data: Path, name: str) -> Images:
    """One of the two, decoded into the store once."""
    return read_image_set(data, name, default_root() / "images", SIZE)


def network(seed: int, **shape: Any) -> CompactDDPM:
    """Freshly initialised."""
    with seeded(seed_of("architecture", seed) >> 1):
        return CompactDDPM(**shape)


def run_training(given: argparse.Namespace, **shape: Any) -> None:
    """Until it is told to stop, its hours are over, or its decay is complete."""
    torch.set_num_threads(given.threads)
    images, begun = split(given.data, "train"), time.monotonic()
    left_out = -1 if given.without is None else CLASSES.index(given.without)
    pictures = TrainingImages(images, np.flatnonzero(images.y != left_out))
    bf16 = native_bf16() if given.precision == "auto" else given.precision == "bf16"
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(given.out / ".lock", timeout=0), told_to_stop() as told:
            training = CompactTraining(network(given.seed, **shape), pictures, given.seed, batch=given.batch, bf16=bf16)
            path = open_training(training, given.out, given.decay_steps)
            end = training.done + given.steps if given.steps is not None else None
            print(f"{path}: from step {training.done}, {'bf16' if bf16 else 'fp32'}", flush=True)

            def stop() -> bool:
                late = given.hours is not None and time.monotonic() - begun >= given.hours * 3600
                return told() or late or training.done == end

            train_compact(training, path, stop)
            print(f"{path}: at step {training.done}{', complete' if training.complete else ''}", flush=True)
    except Timeout as error:
        raise UserError(f"another process is training in {given.out}: stop it, or name another folder") from error


def newest(out: Path) -> Path:
    """The state that was written last."""
    found = sorted(out.glob("*.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"no state in {out}: train first")
    return found[-1]


def with_mean(state: dict[str, Any], **shape: Any) -> CompactDDPM:
    """The network with the running mean of its weights."""
    model = CompactDDPM(**shape)
    model.load_state_dict(state["mean"])
    return model.eval()


@torch.inference_mode()
def held_out_loss(model: Diffusion, images: Images) -> float:
    """Mean of the loss over the first test images, at the same timesteps and noise each time."""
    generator, total, n = torch.Generator().manual_seed(0), 0.0, min(REAL, len(images.y))
    for start in range(0, n, CHUNK):
        x0 = torch.from_numpy(np.array(images.x[start : min(n, start + CHUNK)])).float() / 127.5 - 1
        t, noise = antithetic(len(x0), len(model.alpha_bar), generator), torch.randn(x0.shape, generator=generator)
        y = torch.from_numpy(np.array(images.y[start : start + len(x0)]))
        error = model(model.add_noise(x0, noise, t), t, y) - model.target(x0, noise, t)
        total += error.square().mean().item() * len(x0)
    return total / n


@torch.inference_mode()
def sampled(model: Diffusion, y: Tensor, sampler: Sampler, bound: float) -> Tensor:
    """uint8 (N, 3, 32, 32), image i from its own seed."""
    model.clip, model.guidance = False, Bounded(bound)
    parts = []
    for start in range(0, len(y), CHUNK):
        some = y[start : start + CHUNK]
        seeds = [seed_of("compact evaluation", start + i) for i in range(len(some))]
        x = model.sample(some, seeds, sampler=sampler)
        parts.append(((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(parts)


@torch.inference_mode()
def judged(judge: CifarResNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, 64) and labels (N,)."""
    features = torch.cat([judge.features(some) for some in images.split(250)])
    return features, judge.linear(features).argmax(dim=1)


def grid(images: Tensor, y: Tensor) -> bytes:
    """PNG, a row a class."""
    rows = [images[y == k][:COLUMNS] for k in y.unique().tolist()]
    canvas = Image.new("RGB", (COLUMNS * SIZE * ZOOM, len(rows) * SIZE * ZOOM), "white")
    for row, some in enumerate(rows):
        for column, image in enumerate(some):
            tile = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((SIZE * ZOOM,) * 2, Image.Resampling.NEAREST)
            canvas.paste(tile, (column * SIZE * ZOOM, row * SIZE * ZOOM))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def run_evaluation(given: argparse.Namespace, **shape: Any) -> None:
    """Print and append one row, and write the grid."""
    torch.set_num_threads(given.threads)
    path = given.state or newest(given.out)
    state, judge, test = read_training_state(path), read_resnet(given.judge), split(given.data, "test")
    model = with_mean(state, **shape)
    loss = held_out_loss(model, test)
    y = torch.arange(given.samples) % 10
    begun = time.monotonic()
    images = sampled(model, y, Sampler(given.sampling_steps, 0.0, given.guidance), given.bound)
    speed = len(y) / (time.monotonic() - begun)
    features, labels = judged(judge, images)
    real, _ = judged(judge, torch.from_numpy(np.array(test.x[:REAL])))
    right = labels == y
    by_class = " ".join(f"{right[y == k].float().mean():.2f}" for k in y.unique().tolist())
    fid = frechet(Moments.of(features), Moments.of(real))
    row = (
        f"{path.stem},{state['done']},{state['images']},{len(y)},{given.guidance:g},{given.sampling_steps},"
        f"{given.bound:g},{right.float().mean():.4f},{by_class},{loss:.5f},{fid:.3f},{speed:.2f}"
    )
    log = given.out / "evaluations.csv"
    before = log.read_text() if log.is_file() else COLUMNS_OF_PAGE + "\n"
    replace_file(log, (before + row + "\n").encode())
    replace_file(given.out / f"grid-{path.stem}-{state['done']}-w{given.guidance:g}.png", grid(images, y))
    print(COLUMNS_OF_PAGE, row, sep="\n", flush=True)


def enter(folder: Path, name: str, weights: dict[str, Tensor], seed: int, recipe: dict[str, float]) -> None:
    """Write weights into a folder and their hash into its manifest, whose other entries stay."""
    manifest = folder / "manifest.json"
    folder.mkdir(parents=True, exist_ok=True)
    entry = read_manifest(folder) if manifest.is_file() else {"seed": seed, "recipe": {}, "hashes": {}}
    entry["hashes"][name] = state_hash(weights)
    entry["recipe"] |= recipe
    save_state(weights, folder / name)
    replace_file(manifest, (json.dumps(entry, indent=2, sort_keys=True) + "\n").encode())


def run_export(given: argparse.Namespace) -> None:
    """The running mean in half precision, about 8 MB; with --folder also its hash and recipe in the manifest there."""
    path = given.state or newest(given.out)
    state = read_training_state(path)
    weights = {name: value.half() for name, value in state["mean"].items()}
    name = "model.safetensors" if given.without is None else retrained_name(given.without, state["seed"])
    if given.folder is None:
        target = given.weights or given.out / name
        save_state(weights, target)
    else:
        target = given.folder / name
        recipe = compact_recipe(state["done"], 0 if state["decay"] is None else state["decay"][1])
        enter(given.folder, name, weights, state["seed"], recipe if given.without is None else {})
    print(f"{target}: the running mean of {path}, {state['images']} images seen")


def run_judge(given: argparse.Namespace) -> None:
    """Train the judge, which goes on from the last whole epoch, and enter it in the manifest of --folder."""
    torch.set_num_threads(given.threads)
    train, (x, y) = (split(given.data, name) for name in ("train", "test"))
    about: dict[str, Any] = {
        "epochs": resnet8.EPOCHS,
        "widths": resnet8.WIDTHS,
        "keep": given.out / "judge-training.pt",
    }
    with told_by(lambda line: print(line, flush=True)):
        weights = resnet8.train_small_resnet(train, Images(x[::2], y[::2]), given.seed, **about)
    enter(given.folder, "judge.safetensors", weights, given.seed, resnet8.RECIPE)
    judge = SmallResNetJudge(weights, "")
    verdict, labels = judge(torch.from_numpy(np.array(x[1::2]))), torch.from_numpy(np.array(y[1::2]))
    right, refused = (hits.float().mean() for hits in (verdict.closed == labels, verdict.refused))
    print(f"{given.folder}: of {len(labels)} held-out images {right:.2%} are named right, {refused:.2%} refused")


def run_curve(given: argparse.Namespace) -> None:
    """FID in the judge's features and the share of samples that it names right, against images seen."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    log = given.out / "evaluations.csv"
    if not log.is_file():
        raise UserError(f"no {log}: evaluate first")
    with log.open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["images seen"]))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), constrained_layout=True)
    for guidance in sorted({row["guidance"] for row in rows}, key=float):
        own = [row for row in rows if row["guidance"] == guidance]
        seen = [int(row["images seen"]) / 1e6 for row in own]
        for axis, column in zip(axes, ("fid in the judge's features", "judged right"), strict=True):
            axis.plot(seen, [float(row[column]) for row in own], "o-", label=f"guidance {guidance}")
            axis.set(xlabel="million images seen", ylabel=column)
    axes[0].legend()
    target = given.picture or given.out / "curve.svg"
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
    plt.close(figure)
    print(target)


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    names = ("train", "evaluate", "export", "curve", "judge")
    one, two, three, four, five = (commands.add_parser(name) for name in names)
    for each in (one, two, three, four, five):
        each.add_argument("--out", type=Path, required=True, help="Folder of state, log, evaluations and grids.")
    for each in (one, two, five):
        each.add_argument("--data", type=Path, required=True, help="CIFAR-10 in the hub's layout.")
        each.add_argument("--threads", type=int, default=1)
    for each in (two, three):
        each.add_argument("--state", type=Path, help="A state file; the newest in --out if left out.")
    for each in (one, three):
        each.add_argument("--without", choices=CLASSES, help="A class that the training leaves out.")
    one.add_argument("--hours", type=float, help="Stop after as many; otherwise when it is told to.")
    one.add_argument("--steps", type=int, help="Stop after as many more.")
    one.add_argument("--decay-steps", type=int, help="Let the learning rate fall to zero over as many steps.")
    one.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    one.add_argument("--batch", type=int, default=64)
    for each in (one, five):
        each.add_argument("--seed", type=int, default=0)
    two.add_argument("--judge", type=Path, required=True, help="Weights of a CIFAR ResNet, as safetensors.")
    two.add_argument("--samples", type=int, default=300)
    two.add_argument("--guidance", type=float, default=4.0)
    two.add_argument("--sampling-steps", type=int, default=25)
    two.add_argument("--bound", type=float, default=1.5, help="Of x0 at each step.")
    three.add_argument("--weights", type=Path, help="File to write; model.safetensors in --out if left out.")
    three.add_argument("--folder", type=Path, help="Folder with a manifest, which the weights are entered in.")
    five.add_argument(
        "--folder", type=Path, required=True, help="Folder with a manifest, which the judge is entered in."
    )
    four.add_argument("--picture", type=Path, help="File to write; curve.svg in --out if left out.")
    return parser.parse_args(words)


def main(words: list[str] | None = None, **shape: Any) -> int:
    """Exit code."""
    given = parsed(words)
    try:
        if given.command == "train":
            run_training(given, **shape)
        elif given.command == "evaluate":
            run_evaluation(given, **shape)
        else:
            {"export": run_export, "curve": run_curve, "judge": run_judge}[given.command](given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
