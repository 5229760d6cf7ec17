"""Forget one digit of a class-conditional DDPM on the UCI digits: 1,797 real 8x8 images, in minutes on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from unlearnbench.diffusion.model import Batch, Diffusion
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.hashing import seed_of
from unlearnbench.judges import Judge
from unlearnbench.judges.digits import CnnJudge, NeighbourJudge, train_cnn
from unlearnbench.models.class_unet import ClassUNet
from unlearnbench.storage.weights import load_checked, make_once, read_manifest
from unlearnbench.task import ModelIdentity, Protocol, Task
from unlearnbench.training import minimise, seeded

SPLITS = {"train": 64, "judge": 30, "calibration": 12, "selection": 18, "reference": 25, "floor": 25}
"""Images of each class by what they are for; the rarest digit has 174 in all, so the rest, up to 9, is unused.

The original model is trained on "train" alone, the reported judge on "judge", with its threshold from "calibration".
The judge of the selection protocol compares with "selection". "reference" is what FID and related metrics compare with,
and "floor" are the real images whose score is the floor: no model or judge has seen either.
"""
STEPS, BATCH, RATE, EMA, DROP = 2000, 64, 3e-3, 0.995, 0.1
"""The training recipe, with a fixed number of steps, so that `retrain` uses the original's."""


@lru_cache(maxsize=1)
def splits() -> dict[str, Batch]:
    """The disjoint parts of the data by name (see `SPLITS`), equal on every machine. x0 is (N, 1, 8, 8) in [-1, 1]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(images))  # the legacy stream is frozen across numpy versions
    chosen: dict[str, list[int]] = {name: [] for name in SPLITS}
    for digit in range(10):
        rows = iter([int(row) for row in order if labels[row] == digit])
        for name, count in SPLITS.items():
            chosen[name] += islice(rows, count)
    return {
        name: Batch(torch.tensor(images[rows] / 8 - 1).float().view(-1, 1, 8, 8), torch.tensor(labels[rows]).long())
        for name, rows in chosen.items()
    }


def to_uint8(x: Tensor) -> Tensor:
    """(N, 1, 8, 8) in [-1, 1] -> uint8 (N, 3, 8, 8), rounded and clamped."""
    return (
        ((x.detach().float() + 1) * 127.5)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        .cpu()
        .expand(-1, 3, -1, -1)
        .contiguous()
    )


class DigitsClass(Task):
    """Class forgetting on the UCI digits."""

    name, defaults = "digits-class", True
    concepts = tuple("0123456789")
    protocols: ClassVar[dict[str, Protocol]] = {
        "default": Protocol(
            "default", Sampler(steps=20, eta=0.0, guidance=1.25), judge="digits-cnn", retain_images=SPLITS["reference"]
        ),
        "selection": Protocol(
            "selection",
            Sampler(steps=20, eta=0.0, guidance=1.25),
            judge="digits-neighbours",
            reference="judge",
            forget_images=100,
            retain_images=SPLITS["floor"],
            sampling_seed=1,
        ),
    }
    provides = frozenset({"forget images", "retain images", "concept", "training recipe"})
    default_forget = "3"
    pixels = 8

    def architecture(self, seed: int) -> Diffusion:
        """The network, with 0.63 M parameters."""
        with seeded(seed_of("architecture", seed) >> 1):
            model = ClassUNet(classes=10, size=8)
        model.sampler = self.protocol.sampler
        return model.to(self.device)

    @property
    def folder(self) -> Path:
        """Folder of the shipped weights or of the user's own."""
        return self.weights or Path(__file__).parent / "assets" / self.name

    def pretrained(self) -> Diffusion:
        """The original, trained by `train(seed=0)`."""
        model = self.architecture(0)
        model.load_state_dict(load_checked(self.folder, "model.safetensors")[0])
        return model

    def model_identity(self) -> ModelIdentity:
        """The manifest's hashes; the task's code defines the architecture."""
        manifest = read_manifest(self.folder)
        return ModelIdentity(manifest["hashes"]["model.safetensors"], seed=manifest["seed"])

    def train(self, seed: int, which: Literal["both", "retain"] = "both") -> Diffusion:
        """AdamW 3e-3, constant for 30 % of the steps, then a cosine to zero; 10 % label dropping; EMA 0.995."""
        model, steps = self.architecture(seed), self.steps(STEPS)

        def rate(step: int) -> float:
            done = max(0.0, (step / steps - 0.3) / 0.7)
            return RATE * 0.5 * (1 + math.cos(math.pi * done))

        def losses() -> Iterator[Tensor]:
            for batch in self.batches(
                steps, BATCH, "all" if which == "both" else "retain", seed=seed_of("training", seed)
            ):
                yield model.loss(batch, drop=DROP)

        with seeded(seed_of("training", seed) >> 1):
            minimise(losses(), model.select("full"), rate, optimiser="adamw", ema=EMA, clip=1.0)
        return model

    @property
    def training_steps(self) -> int:
        """As in the recipe."""
        return STEPS

    def pretrain(self, out: Path, seed: int = 0) -> dict[str, float]:
        """Train judge and model in `out`, with a manifest of hashes, and return what they reach.

        Weights that exist under the same recipe and seed are kept, so that a stopped run continues.
        """
        recipe = {"steps": STEPS, "batch": BATCH, "rate": RATE, "ema": EMA, "drop": DROP}
        made = partial(make_once, out, seed=seed, recipe={**recipe, "judge": float(CnnJudge.version)})
        made("judge.safetensors", lambda: train_cnn(splits()["judge"], splits()["calibration"], seed))
        made("model.safetensors", lambda: self.train(seed).state_dict())
        task = type(self)(self.forget, device=self.device, weights=out)
        judge, model, real = task.judge(), task.pretrained().eval(), splits()["reference"]
        labels = torch.arange(10).repeat_interleave(100)
        with torch.inference_mode():
            images = [
                model.sample(y.to(self.device), [seed_of("pretrain check", int(y[0]), i) for i in range(len(y))])
                for y in labels.split(100)
            ]
            noise = torch.randint(0, 256, (1000, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        return {
            "samples judged right (of 1,000)": _share(judge(task.to_uint8(torch.cat(images))).label == labels),
            "held-out digits judged right, closed set": _share(judge(to_uint8(real.x0)).closed == real.y),
            "held-out digits refused": _share(judge(to_uint8(real.x0)).refused),
            "uniform noise refused": _share(judge(noise.expand(-1, 3, -1, -1)).refused),
        }

    def data(self, which: Literal["forget", "retain", "both"]) -> Batch:
        """Training images: 64 of the forgotten digit, 576 of the others."""
        x0, y = splits()["train"]
        forgotten = y == int(self.forget)
        keep = {"forget": forgotten, "retain": ~forgotten, "both": torch.ones_like(forgotten)}[which]
        return Batch(x0[keep], y[keep])

    def reference(self) -> Iterator[Tensor]:
        """Held-out images of the retained digits, as many per class as the protocol samples."""
        return self._real(self.protocol.reference)

    def floor(self) -> Iterator[Tensor]:
        """Images that neither the original nor a judge has seen."""
        return self._real("floor")

    def labelled_images(self) -> tuple[Tensor, Tensor]:
        """The reference and floor splits together, 50 of each digit."""
        held_out = [splits()[name] for name in ("reference", "floor")]
        return to_uint8(torch.cat([some.x0 for some in held_out])), torch.cat([some.y for some in held_out])[:, None]

    def _real(self, split: str) -> Iterator[Tensor]:
        x0, y = splits()[split]
        kept = [(y == d).nonzero()[: self.protocol.retain_images, 0] for d in range(10) if d != int(self.forget)]
        yield to_uint8(x0[torch.cat(kept)])

    def substitute(self, y: Tensor) -> Tensor:
        """The next digit, (y + 1) mod 10, as in SalUn's class forgetting."""
        return (y + 1) % 10

    def judge(self) -> Judge:
        """digits-cnn, or digits-neighbours in the selection protocol."""
        return named_judge(self.protocol.judge, self.folder)

    def to_uint8(self, x: Tensor) -> Tensor:
        """Grey repeated to three channels."""
        return to_uint8(x)


def _share(hits: Tensor) -> float:
    return round(hits.float().mean().item(), 4)


@lru_cache(maxsize=4)
def named_judge(name: str, folder: Path) -> Judge:
    """Load a judge by name, with its weights from `folder`."""
    if name == NeighbourJudge.name:
        return NeighbourJudge(splits()["selection"])
    return CnnJudge(*load_checked(folder, "judge.safetensors"))
