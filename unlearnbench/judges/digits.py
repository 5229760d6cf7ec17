"""Two judges of the UCI digits: a convolutional network, and nearest neighbours for choosing hyper-parameters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from unlearnbench.diffusion.model import Batch
from unlearnbench.hashing import digest, seed_of
from unlearnbench.judges import Judge, Verdict
from unlearnbench.reporting import track
from unlearnbench.training import minimise, seeded

REFUSED_SHARE = 0.005
"""The threshold is the interpolated quantile of calibration scores that leaves this share of real digits above it."""


def grey(images: Tensor) -> Tensor:
    """uint8 (N, 3, 8, 8) -> float (N, 1, 8, 8) in [-1, 1]."""
    return images.float().mean(dim=1, keepdim=True) / 127.5 - 1


class _Net(nn.Module):
    """Three convolutions and a feature layer; class K of K + 1 is "no digit"."""

    def __init__(self, classes: int = 10, width: int = 48, features: int = 32):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
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
        features = self.body(x)
        return self.head(features), features


class CnnJudge(Judge):
    """Convolutional judge trained with outlier exposure (Hendrycks et al., ICLR 2019); it abstains on images that show
    no digit.

    The score is the log-odds of "no digit" against the best class; above `threshold` the judge abstains.
    """

    name, version, classes = "digits-cnn", "1", 10

    def __init__(self, state: dict[str, Tensor], hash: str):
        self.net = _Net()
        self.threshold, self.scale = float(state["threshold"]), state["scale"]
        self.net.load_state_dict({name: value for name, value in state.items() if name not in ("threshold", "scale")})
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


def train_cnn(train: Batch, calibration: Batch, seed: int, steps: int = 2000, size: int = 96) -> dict[str, Tensor]:
    """Train a `CnnJudge` on one split, calibrate its threshold on another, and return its state."""
    with seeded(seed_of("judge", seed) >> 1):
        generator = torch.Generator().manual_seed(seed_of("judge data", seed) >> 1)
        net = _Net().train()
        nothing = torch.full((size // 2,), CnnJudge.classes)

        def losses() -> Iterator[Tensor]:
            for _ in track(range(steps), steps, "judge"):
                index = torch.randint(len(train.x0), (size,), generator=generator)
                x, y = train.x0[index], train.y[index]
                digits = (warped(x, generator) + 0.1 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
                logits, _ = net(torch.cat([digits, make_outliers(x[: size // 2], generator)]))
                yield F.cross_entropy(logits, torch.cat([y, nothing]))

        parameters = dict(net.named_parameters())
        minimise(losses(), parameters, lambda step: 2e-3 * (1 - step / steps), optimiser="adamw", ema=0.99)
        net.eval()
        with torch.inference_mode():
            threshold = no_digit_score(net(calibration.x0)[0]).quantile(1 - REFUSED_SHARE)
            scale = net(train.x0)[1].square().mean().sqrt()
    state = {**net.state_dict(), "threshold": threshold, "scale": scale}
    return {name: value.clone() for name, value in state.items()}


class NeighbourJudge(Judge):
    """Nearest neighbours among real digits in pixel space, for choosing hyper-parameters independently of the reported
    judge.

    Class probabilities are distance-weighted votes of the 5 nearest; the score is their mean distance.
    """

    name, version, classes, k = "digits-neighbours", "1", 10, 5

    def __init__(self, known: Batch):
        from sklearn.neighbors import KNeighborsClassifier

        x, y = known.x0.flatten(1).numpy(), known.y.numpy()
        self.model = KNeighborsClassifier(self.k, weights="distance").fit(x, y)
        self.hash = digest([known.x0.flatten().tolist(), known.y.tolist()])
        others = self.model.kneighbors()[0].mean(axis=1)  # of each image to its nearest others, itself left out
        self.threshold = float(np.quantile(others, 1 - REFUSED_SHARE))

    def _distance(self, x: np.ndarray) -> np.ndarray:
        return self.model.kneighbors(x)[0].mean(axis=1)

    def __call__(self, images: Tensor) -> Verdict:
        """Judge uint8 images (N, 3, 8, 8)."""
        x = grey(images).flatten(1).numpy()
        probabilities = torch.from_numpy(self.model.predict_proba(x)).float()
        return Verdict(probabilities, torch.from_numpy(self._distance(x) > self.threshold))

    def features(self, images: Tensor) -> Tensor:
        """The pixels, (N, 64)."""
        return grey(images).flatten(1)
