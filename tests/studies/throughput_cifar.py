"""The papers' CIFAR-10 network at full width with random weights: images a second, beside the loop that papers ship.

Ours are drawn and judged as in a run (`pipeline.judging.observed`). That loop draws in fp32 (convolutions as torch
takes them by default, TF32 where there is any) and uncompiled, asks for condition and none one after the other, writes
every image as a PNG file, and reads the files back to judge them and to take Inception's features. See
`tests.studies.throughput`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812 - torch's own idiom
from torchvision.utils import save_image

from tests.studies.throughput import Row, seconds, uint8
from tests.support import random_inception
from unlearnbench.compute.precision import Resources
from unlearnbench.data.image_sets import Images
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.errors import UserError
from unlearnbench.hashing import seed_of
from unlearnbench.judges.cifar import ResNetJudge, started
from unlearnbench.methods.original import Original
from unlearnbench.models.ddpm import ConditionalDDPM
from unlearnbench.models.ddpm_train import TrainingImages, draw_batch, train_ddpm
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.judging import observed
from unlearnbench.storage.store import Store
from unlearnbench.task import Plan, Protocol, Task

WIDTHS = {"cifar10": 128, "cifar10-tiny": 32}
CHUNKS, TRAINED = 1, 20
"""Chunks drawn, and steps trained in a round."""


class Plain(ConditionalDDPM):
    """As the papers lay it out in memory: channels first, in weights and images."""

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, condition: Any) -> torch.Tensor:
        half = self.cemb[1](F.silu(self.cemb[0](condition.states)))
        return self.unet(x_t.contiguous(), t, class_labels=F.pad(half, (half.shape[1], 0)), return_dict=False)[0]


def plain_network(size: str, device: str) -> Plain:
    """Of full width, or narrow."""
    return Plain(width=WIDTHS[size]).to(device, memory_format=torch.contiguous_format)


def judged_by(size: str, device: str, folder: Path) -> ResNetJudge:
    """The papers' judge, untrained, with an untrained Inception."""
    state = {**started(None).state_dict(), "threshold": torch.tensor(0.0)}
    pixels = 224 if size == "cifar10" else 32
    return ResNetJudge(state, "0" * 64, device, random_inception.write(folder / "inception.pth"), pixels)


def plain_images(model: Any, y: torch.Tensor, sampler: Sampler, folder: Path) -> torch.Tensor:
    """The loop of the papers: ancestral steps, two forwards each, PNG files."""
    every = model.timesteps(sampler).tolist()
    x = torch.randn(len(y), *model.shape, device=y.device)
    for now, after in zip(every, [*every[1:], -1], strict=True):
        t = torch.full((len(y),), now, device=y.device)
        eps_null, eps_c = model.eps(x, t, model.null(len(y))), model.eps(x, t, y)
        eps = eps_null + sampler.guidance * (eps_c - eps_null)
        a, b = model.alpha_bar[now], model.alpha_bar[after] if after >= 0 else torch.ones((), device=y.device)
        sigma = sampler.eta * ((1 - b) / (1 - a) * (1 - a / b)).clamp(min=0).sqrt()
        x = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b - sigma**2).clamp(min=0).sqrt() * eps
        x = x + sigma * torch.randn_like(x)
    for number, image in enumerate(x.cpu()):
        save_image(((image + 1) / 2).clamp(0, 1), folder / f"{number}.png", normalize=True)
    files = [np.array(Image.open(folder / f"{number}.png")) for number in range(len(y))]
    return torch.from_numpy(np.stack(files)).permute(0, 3, 1, 2)


class Labels(Task):
    """Ten labels to draw, without data."""

    name, concepts = "cifar10-labels", tuple("0123456789")
    protocols: ClassVar[dict[str, Protocol]] = {"default": Protocol("default", Sampler(), judge="none")}
    to_uint8 = staticmethod(uint8)

    def pretrained(self) -> Any:
        raise NotImplementedError

    architecture = data = substitute = train = model_identity = reference = floor = judge = pretrain = pretrained


def measured(size: str, device: str, batch: int, steps: int, folder: Path) -> Iterator[Row]:
    """Rows of sampling with judging, then of training, each as soon as it is measured."""
    model = ConditionalDDPM(width=WIDTHS[size]).to(device).eval()
    judge, sampler = judged_by(size, device, folder), Sampler(steps, 1.0, 3.0)
    model.sampler = sampler
    task = Labels("0", device=device)
    task.protocol = replace(task.protocol, sampler=sampler, chunk=batch)
    y = (torch.arange(batch) % 10).to(device)
    kinds = [Resources(), Resources("bf16"), Resources("bf16", compile=True)] if device == "cuda" else [Resources()]
    rounds = iter(range(10**6))
    for kind in kinds:

        def ours(kind: Resources = kind) -> None:
            number = next(rounds)
            plan = [Plan("retain", str(i % 10), i % 10, seed_of(number, i)) for i in range(CHUNKS * batch)]
            store = Store(folder / f"store-{number}")
            observed(Cell(Original(), task, resources=kind), judge, model, {}, plan, store)

        name = ", ".join([kind.precision, *(["compiled"] if kind.compile else [])])
        try:
            yield row(f"sampling and judging, {name}", CHUNKS * batch, ours, device)
        except UserError as error:  # where nothing compiles
            yield Row(f"sampling and judging, {name}", 0.0, None, None, str(error))

    network = plain_network(size, device).eval()

    def plain() -> None:
        (folder / "png").mkdir(exist_ok=True)
        for _ in range(CHUNKS):
            with torch.inference_mode():
                images = plain_images(network, y, sampler, folder / "png")
            judge(images)
            judge.features(images)

    yield row("sampling and judging, plain loop with PNG files", CHUNKS * batch, plain, device)
    yield from training(size, device, batch)


def training(size: str, device: str, batch: int) -> Iterator[Row]:
    """The recipe's own steps beside plain ones: fp32, uncompiled, batches made between steps."""
    rng = np.random.RandomState(0)
    images = Images(rng.randint(0, 256, (4 * batch, 3, 32, 32), dtype=np.uint8), rng.randint(0, 10, 4 * batch))
    pictures = TrainingImages(images, np.arange(4 * batch))

    def recipe() -> None:
        train_ddpm(ConditionalDDPM(width=WIDTHS[size]).to(device), pictures, TRAINED, 0, size=batch)

    def plain() -> None:
        model = plain_network(size, device)
        engine = torch.optim.Adam(model.parameters(), lr=2e-4)
        for step in range(TRAINED):
            data, t, noise, shown = draw_batch(pictures, step, batch, 0, 1000, device)
            condition = model.embed(data.y).where(shown, model.null(batch))
            loss = (model(model.add_noise(data.x0, noise, t), t, condition) - noise).square().mean()
            engine.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            engine.step()

    yield row("training, by the recipe", TRAINED * batch, recipe, device)
    yield row("training, plain loop", TRAINED * batch, plain, device)


def row(what: str, images: int, work: Any, device: str) -> Row:
    """One line of the page."""
    took, memory = seconds(work, device)
    return Row(what, took, images, None if memory is None else memory / 2**30)
