"""Two judges of the UCI digits: a convolutional network, and nearest neighbours for choosing hyper-parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from unlearnbench.diffusion.model import Batch
from unlearnbench.errors import UserError
from unlearnbench.hashing import digest, seed_of
from unlearnbench.judges import Judge, Verdict
from unlearnbench.judges.calibration import corrupted_thresholds
from unlearnbench.judges.corruptions import CORRUPTIONS, NON_IMAGES, corrupt_some
from unlearnbench.reporting import track
from unlearnbench.training import minimise, seeded

LEAST_RANGE = 0.2
"""The least range of pixels in [-1, 1] that `stretched` takes for an image's own: a tenth of all."""
JPEG, JPEG_EVERY = frozenset({"jpeg"}), 8
"""The corruption that is too slow for every step of a training, and the steps between those that have it."""
CORRUPTED_SHARE, TWICE_SHARE = 0.7, 0.25
"""Shares of training images that are corrupted, and corrupted once more."""


def grey(images: Tensor) -> Tensor:
    """uint8 (N, 3, 8, 8) -> float (N, 1, 8, 8) in [-1, 1]."""
    return images.float().mean(dim=1, keepdim=True) / 127.5 - 1


def stretched(x: Tensor) -> Tensor:
    """Stretch each image of x (N, C, H, W) to [-1, 1], so that neither its contrast nor its brightness is left.

    All channels are stretched together, which keeps hues on a dark ground. A range below `LEAST_RANGE` is taken for
    that: an image that is all but plain stays so.
    """
    low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
    return 2 * (x - low) / (high - low).clamp(min=LEAST_RANGE) - 1


class _Net(nn.Module):
    """Three convolutions of an image and of its stretched copy, and a feature layer; class K of K + 1 is "no digit"."""

    def __init__(self, classes: int = 10, width: int = 48, features: int = 32):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(width * 16, features),
            nn.ReLU(),
        )
        self.head = nn.Linear(features, classes + 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1, 8, 8) -> logits (N, K + 1), features (N, D)."""
        features = self.body(torch.cat([x, stretched(x)], dim=1))
        return self.head(features), features


class CnnJudge(Judge):
    """Convolutional judge trained with outlier exposure (Hendrycks et al., ICLR 2019); it abstains on images that show
    no digit.

    The score is the log-odds of "no digit" against the best class; above `threshold` the judge abstains. Version 2 is
    trained and calibrated on corrupted digits too, and sees each image beside its stretched copy.
    """

    name, version, classes = "digits-cnn", "2", 10

    def __init__(self, state: dict[str, Tensor], hash: str):
        self.net = _Net()
        self.threshold, self.scale = float(state["threshold"]), state["scale"]
        load_network(self, {name: value for name, value in state.items() if name not in ("threshold", "scale")})
        self.net.eval()
        self.hash = hash

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Verdict:
        """Judge uint8 images (N, 3, 8, 8)."""
        logits, _ = self.net(grey(images))
        return Verdict(logits[:, :-1].softmax(dim=1).clone(), no_digit_score(logits) > self.threshold)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """The feature layer (N, 32), scaled to unit mean square over real digits, as KID's kernel expects."""
        return self.net(grey(images))[1] / self.scale


def load_network(judge: Any, state: dict[str, Tensor]) -> None:
    """Give a judge's network its weights. Those of another version raise `UserError`."""
    try:
        judge.net.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"these are no weights of {judge.name}, version {judge.version}: make them again with `unlearnbench "
            "pretrain`, in a new folder"
        ) from error


def no_digit_score(logits: Tensor) -> Tensor:
    """Log-odds of "no digit" (N,) from logits (N, K + 1)."""
    return logits[:, -1] - logits[:, :-1].amax(dim=1)


def make_outliers(x: Tensor, generator: torch.Generator) -> Tensor:
    """Make as many images without a digit as x (N, 1, 8, 8) has: noise, shuffled, noisy and inverted digits, blots,
    grey.

    Blends of two digits are left out: they resemble badly written digits and would teach the judge to refuse those.
    """
    n = len(x)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    level = uniform(n, 1, 1, 1) * 2 - 1
    kinds = [
        normal(n, 1, 8, 8) * (0.3 + 1.2 * uniform(n, 1, 1, 1)) + level,
        uniform(n, 1, 8, 8) * 2 - 1,
        x.flatten(1).gather(1, uniform(n, 64).argsort(dim=1)).view_as(x),
        x * 0.4 + normal(n, 1, 8, 8) * (0.8 + 0.4 * uniform(n, 1, 1, 1)),
        F.interpolate(normal(n, 1, 3, 3) + level, size=8, mode="bilinear"),
        -x,
        level.expand_as(x),
    ]
    choice = torch.randint(len(kinds), (n,), generator=generator)
    return torch.stack(kinds)[choice, torch.arange(n)].clamp(-1, 1)


def warped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale, shear and shift each image of x (N, 1, 8, 8) a little, independently."""

    def within(bound: float) -> Tensor:
        return (torch.rand(len(x), generator=generator) * 2 - 1) * bound

    angle, scale = within(0.2), 1 + within(0.12)
    rows = [
        torch.stack([angle.cos() * scale, -angle.sin() * scale + within(0.15), within(0.2)], dim=1),
        torch.stack([angle.sin() * scale, angle.cos() * scale, within(0.2)], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1  # padded with the background, -1


def corrupted_twice(x: Tensor, generator: torch.Generator, without: frozenset[str]) -> Tensor:
    """Corrupt `CORRUPTED_SHARE` of x (N, C, H, W) in [-1, 1] and then `TWICE_SHARE` of all; a little noise is added."""
    for share in (CORRUPTED_SHARE, TWICE_SHARE):
        x = corrupt_some((x + 1) / 2, share, generator, without) * 2 - 1
    return (x + 0.04 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def mixed_outliers(made: Tensor, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Replace two thirds of outliers `made` by `NON_IMAGES` of x, all (N, C, H, W) in [-1, 1].

    Returns them and which of `NON_IMAGES` each is, (N,), or -1. A third loses up to 70 % of its contrast.
    """
    kinds, out = list(NON_IMAGES.values()), made.clone()
    choice = torch.randint(len(kinds) * 3 // 2, (len(x),), generator=generator)
    choice[choice >= len(kinds)] = -1
    for number, kind in enumerate(kinds):
        rows = (choice == number).nonzero()[:, 0]
        if len(rows):
            out[rows] = (kind((x[rows] + 1) / 2, generator) * 2 - 1).clamp(-1, 1)
    dull = torch.rand(len(x), 1, 1, 1, generator=generator) < 1 / 3
    return torch.where(dull, out * (0.3 + 0.7 * torch.rand(len(x), 1, 1, 1, generator=generator)), out), choice


def digit_images(x: Tensor) -> Tensor:
    """(N, 1, 8, 8) in [-1, 1] -> uint8 (N, 3, 8, 8)."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)


def train_cnn(train: Batch, calibration: Batch, seed: int, steps: int = 3000, size: int = 96) -> dict[str, Tensor]:
    """Train a `CnnJudge` on one split, calibrate its threshold on another, and return its state."""
    with seeded(seed_of("judge", seed) >> 1):
        generator = torch.Generator().manual_seed(seed_of("judge data", seed) >> 1)
        net = _Net().train()
        nothing = torch.full((size // 2,), CnnJudge.classes)

        def losses() -> Iterator[Tensor]:
            for step in track(range(steps), steps, "judge"):
                index = torch.randint(len(train.x0), (size,), generator=generator)
                x, y = warped(train.x0[index], generator).clamp(-1, 1), train.y[index]
                digits = corrupted_twice(x, generator, frozenset() if step % JPEG_EVERY == 0 else JPEG)
                half = x[: size // 2]
                wrong, _ = mixed_outliers(make_outliers(half, generator), half, generator)
                logits, _ = net(torch.cat([digits, wrong]))
                yield F.cross_entropy(logits, torch.cat([y, nothing]))

        parameters = dict(net.named_parameters())
        minimise(losses(), parameters, lambda step: 2e-3 * (1 - step / steps), optimiser="adamw", ema=0.995)
        net.eval()

        def scored(images: Tensor) -> tuple[Tensor, Tensor]:
            logits = net(grey(images))[0]
            return logits[:, :-1].argmax(dim=1)[:, None], no_digit_score(logits)[:, None]

        with torch.inference_mode():
            threshold = corrupted_thresholds(scored, digit_images(calibration.x0), calibration.y[:, None], draws=3)[0]
            scale = net(train.x0)[1].square().mean().sqrt()
    state = {**net.state_dict(), "threshold": threshold, "scale": scale}
    return {name: value.clone() for name, value in state.items()}


class Shapes:
    """Real digits, each with copies that are moved, turned and scaled a little, and how far other images are from them.

    Images are stretched, then compared by the Euclidean distance of pixels; a digit is as far as its nearest copy.
    """

    k = 3
    """The number of nearest digits that vote."""

    def __init__(self, known: Batch):
        """`known`: digits x0 (M, 1, 8, 8) in [-1, 1] with labels y (M,)."""
        self.copies, self.labels = _compared(_moved_copies(known.x0)), known.y

    def votes(self, x: Tensor, left_out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Probabilities (N, 10), by votes of the `k` nearest weighted with 1 / distance, and their mean distance (N,).

        `x` is (N, 1, 8, 8) in [-1, 1]; `left_out` (N,) names the digit that must not vote on each image.
        """
        distances = torch.cdist(_compared(x), self.copies).view(len(x), len(self.labels), -1).amin(dim=2)
        if left_out is not None:
            distances[torch.arange(len(x)), left_out] = torch.inf
        near = distances.topk(self.k, largest=False)
        weights = 1 / near.values.clamp(min=1e-9)
        votes = torch.zeros(len(x), 10, dtype=weights.dtype).scatter_add(1, self.labels[near.indices], weights)
        return (votes / votes.sum(dim=1, keepdim=True)).float(), near.values.mean(dim=1)


def _compared(x: Tensor) -> Tensor:
    """(N, 1, 8, 8) -> (N, 64); in float64, so that an image's distances do not depend on the others of its batch."""
    return stretched(x.double()).flatten(1)


def _moved_copies(x: Tensor) -> Tensor:
    """15 copies of each digit (M, 1, 8, 8): itself, moved by half a pixel eight ways, turned and scaled both ways, with
    thicker and with thinner strokes.
    """
    ways = [(0.0, 1.0, dx / 8, dy / 8) for dx in (0, -1, 1) for dy in (0, -1, 1)]
    ways += [(0.2, 1.0, 0, 0), (-0.2, 1.0, 0, 0), (0.0, 0.85, 0, 0), (0.0, 1.15, 0, 0)]
    made = []
    for angle, scale, dx, dy in ways:
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]) / scale
        turn[:, 2] = torch.tensor([dx, dy])
        grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        made.append(F.grid_sample(x, grid, padding_mode="border", align_corners=False))
    half, generator = torch.full((len(x),), 0.5), torch.Generator()
    made += [CORRUPTIONS[kind]((x + 1) / 2, half, generator) * 2 - 1 for kind in ("thicker", "thinner")]
    return torch.stack(made, dim=1).flatten(0, 1)


class NeighbourJudge(Judge):
    """Nearest neighbours among real digits, for choosing hyper-parameters independently of the reported judge.

    The score is the mean distance of the nearest; its threshold comes from the same digits, corrupted, each compared
    with the others. Version 2 stretches images and compares with moved copies too.
    """

    name, version, classes = "digits-neighbours", "2", 10

    def __init__(self, known: Batch):
        self.shapes = Shapes(known)
        self.hash = digest([known.x0.flatten().tolist(), known.y.tolist()])

        def scored(images: Tensor) -> tuple[Tensor, Tensor]:
            own = torch.arange(len(images)) % len(known.y)
            probabilities, distance = self.shapes.votes(grey(images), own)
            return probabilities.argmax(dim=1)[:, None], distance[:, None]

        self.threshold = float(corrupted_thresholds(scored, digit_images(known.x0), known.y[:, None])[0])

    def __call__(self, images: Tensor) -> Verdict:
        """Judge uint8 images (N, 3, 8, 8)."""
        probabilities, distance = self.shapes.votes(grey(images))
        return Verdict(probabilities, distance > self.threshold)

    def features(self, images: Tensor) -> Tensor:
        """The pixels, (N, 64)."""
        return grey(images).flatten(1)
