"""Two judges of coloured digits, a network and nearest neighbours. Each judges digits and colours as two domains."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from unlearnbench.diffusion.model import Batch
from unlearnbench.hashing import digest, seed_of
from unlearnbench.judges import Judge, Verdict
from unlearnbench.judges.calibration import corrupted_thresholds
from unlearnbench.judges.corruptions import NON_IMAGES
from unlearnbench.judges.digits import (
    JPEG,
    JPEG_EVERY,
    Shapes,
    corrupted_twice,
    load_network,
    mixed_outliers,
    no_digit_score,
    stretched,
    warped,
)
from unlearnbench.reporting import track
from unlearnbench.training import minimise, seeded

PALETTE = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "cyan": (0.0, 1.0, 1.0),
    "magenta": (1.0, 0.0, 1.0),
}
DIGITS, COLOURS, SIZE = 10, len(PALETTE), 16
DOMAINS = (range(DIGITS), range(DIGITS, DIGITS + COLOURS))


def scale_images(images: Tensor) -> Tensor:
    """uint8 (N, 3, 16, 16) -> float in [-1, 1]."""
    return images.float() / 127.5 - 1


def painted(grey: Tensor, rgb: Tensor) -> Tensor:
    """Paint grey digits (N, 1, H, W) in [-1, 1] on black in colours (N, 3) in [0, 1] -> (N, 3, H, W) in [-1, 1]."""
    return (grey + 1) * rgb[:, :, None, None] - 1


def enlarged(x: Tensor) -> Tensor:
    """Enlarge (N, 1, 8, 8) to (N, 1, 16, 16)."""
    return F.interpolate(x, size=SIZE, mode="bilinear", align_corners=False)


class _Net(nn.Module):
    """Four convolutions of an image and of its stretched copy, and a feature layer; each head has one extra class,
    "none of these".
    """

    def __init__(self, width: int = 32, features: int = 32):
        super().__init__()
        layers: list[nn.Module] = []
        for number, (into, out) in enumerate(((6, width), (width, width), (width, 48), (48, 48))):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if number % 2 else [])]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(48 * 16, features), nn.ReLU())
        self.digit, self.colour = nn.Linear(features, DIGITS + 1), nn.Linear(features, COLOURS + 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, 16, 16) -> logits of digits (N, 11) and colours (N, 7), features (N, D)."""
        features = self.body(torch.cat([x, stretched(x)], dim=1))
        return self.digit(features), self.colour(features), features


class ColouredDigits(Judge):
    """Convolutional judge of digit and colour, trained with outlier exposure, that may abstain on each separately.

    A score is the log-odds of "none of these" against the best class of a domain; `threshold` is that of digits.
    Version 2 is trained and calibrated on corrupted digits too, and sees each image beside its stretched copy.
    """

    name, version, classes, domains = "coloured-digits-cnn", "2", DIGITS + COLOURS, DOMAINS

    def __init__(self, state: dict[str, Tensor], hash: str):
        self.net = _Net()
        self.thresholds, self.scale = state["thresholds"], state["scale"]
        load_network(self, {name: value for name, value in state.items() if name not in ("thresholds", "scale")})
        self.net.eval()
        self.threshold, self.hash = float(self.thresholds[0]), hash

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Verdict:
        """Judge uint8 images (N, 3, 16, 16)."""
        digit, colour, _ = self.net(scale_images(images))
        refused = torch.stack([no_digit_score(digit), no_digit_score(colour)], dim=1) > self.thresholds
        return Verdict(torch.cat([digit[:, :-1].softmax(dim=1), colour[:, :-1].softmax(dim=1)], dim=1), refused)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """The feature layer (N, 32), scaled to unit mean square over real digits, as KID's kernel expects."""
        return self.net(scale_images(images))[2] / self.scale


def make_coloured_outliers(grey: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Make images that show no digit, no colour or neither from grey digits (N, 1, 16, 16); returns them with both
    labels.

    -1 means "any label": shuffled pixels and blobs keep a colour that should not be learnt.
    """
    n, palette = len(grey), torch.tensor(list(PALETTE.values()))

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    colour = torch.randint(COLOURS, (n,), generator=generator)
    one, other = (
        palette[colour],
        palette[(colour + 1 + torch.randint(COLOURS - 1, (n,), generator=generator)) % COLOURS],
    )
    digit, level = painted(grey, one), uniform(n, 3, 1, 1) * 2 - 1
    mix = uniform(n, 1) * 0.3 + 0.35
    white = (0.3 + 0.7 * uniform(n, 1)).expand(-1, 3)
    blob = (F.interpolate(normal(n, 1, 3, 3), size=SIZE, mode="bilinear") * 1.5).clamp(-1, 1)
    shuffled = uniform(n, 1, SIZE * SIZE).argsort(dim=2).expand(-1, 3, -1)
    kinds = [
        normal(n, 3, SIZE, SIZE) * (0.3 + 1.2 * uniform(n, 1, 1, 1)) + level,
        uniform(n, 3, SIZE, SIZE) * 2 - 1,
        F.interpolate(normal(n, 3, 4, 4), size=SIZE, mode="bilinear") + level,
        level.expand(-1, -1, SIZE, SIZE),
        digit * 0.4 + normal(n, 3, SIZE, SIZE) * (0.8 + 0.4 * uniform(n, 1, 1, 1)),
        digit.flatten(2).gather(2, shuffled).view_as(digit),
        painted(blob, one),
        painted(grey, (1 - mix) * one + mix * other),
        painted(grey, white),
    ]
    nothing, digits_too = 5, 7  # the first kinds show nothing, the last ones a digit in a colour outside the palette
    choice = torch.randint(len(kinds), (n,), generator=generator)
    images = torch.stack(kinds)[choice, torch.arange(n)].clamp(-1, 1)
    strokes = (choice >= digits_too - 1)[:, None, None, None]
    images = torch.where(strokes, corrupted_twice(images, generator, JPEG), images)
    images, other_kind = mixed_outliers(images, digit.clamp(-1, 1), generator)
    digit_label = torch.where((choice < digits_too) | (other_kind >= 0), DIGITS, -1)
    colour_label = torch.where((choice < nothing) | (choice >= digits_too) | (other_kind >= 0), COLOURS, -1)
    colour_label[other_kind == list(NON_IMAGES).index("shuffled pixels")] = -1
    return images, digit_label, colour_label


def train_judge(train: Batch, calibration: Batch, seed: int, steps: int = 3000, size: int = 96) -> dict[str, Tensor]:
    """Train a `ColouredDigits` on grey digits x0 (N, 1, 8, 8) and return its state; thresholds come from the
    calibration split.
    """
    palette = torch.tensor(list(PALETTE.values()))
    with seeded(seed_of("judge", seed) >> 1):
        generator = torch.Generator().manual_seed(seed_of("judge data", seed) >> 1)
        net = _Net().train()

        def losses() -> Iterator[Tensor]:
            for step in track(range(steps), steps, "judge"):
                index = torch.randint(len(train.x0), (size,), generator=generator)
                grey = enlarged(warped(train.x0[index], generator)).clamp(-1, 1)
                colour = torch.randint(COLOURS, (size,), generator=generator)
                near = (palette[colour] + 0.08 * torch.randn(size, 3, generator=generator)).clamp(0, 1)
                without = frozenset[str]() if step % JPEG_EVERY == 0 else JPEG
                x = corrupted_twice(painted(grey, near), generator, without)
                wrong, no_digit, no_colour = make_coloured_outliers(grey[: size // 2], generator)
                digit, hue, _ = net(torch.cat([x, wrong]))
                digits = torch.cat([train.y[index], torch.where(no_digit < 0, train.y[index][: size // 2], no_digit)])
                yield F.cross_entropy(digit, digits) + F.cross_entropy(
                    hue, torch.cat([colour, no_colour]), ignore_index=-1
                )

        parameters = dict(net.named_parameters())
        minimise(losses(), parameters, lambda step: 2e-3 * (1 - step / steps), optimiser="adamw", ema=0.995)
        net.eval()

        def scored(images: Tensor) -> tuple[Tensor, Tensor]:
            heads = net(scale_images(images))[:2]
            closed = torch.stack([logits[:, :-1].argmax(dim=1) for logits in heads], dim=1)
            return closed, torch.stack([no_digit_score(logits) for logits in heads], dim=1)

        with torch.inference_mode():
            colours = torch.arange(COLOURS).repeat_interleave(len(calibration.y))
            labels = torch.stack([calibration.y.repeat(COLOURS), colours], dim=1)
            thresholds = corrupted_thresholds(scored, _shown(every_colour(calibration.x0)), labels)
            scale = net(every_colour(train.x0))[2].square().mean().sqrt()
    state = {**net.state_dict(), "thresholds": thresholds, "scale": scale}
    return {name: value.clone() for name, value in state.items()}


def every_colour(x0: Tensor) -> Tensor:
    """Enlarge grey digits (N, 1, 8, 8) and paint each in every colour of the palette: (6 N, 3, 16, 16)."""
    grey = enlarged(x0)
    return torch.cat([painted(grey, torch.tensor(rgb).expand(len(grey), 3)) for rgb in PALETTE.values()])


class ColouredNeighbours(Judge):
    """Nearest neighbours among real digits by shape and nearest palette colour by hue; for choosing hyper-parameters.

    Images are stretched. Shape is the brightest channel at 8x8. The hue is the mean colour of the bright pixels; the
    judge abstains if it is further than `tolerance` from every palette colour. The threshold of shapes comes from the
    same digits in colour, corrupted, each compared with the others. Version 1 did not stretch.
    """

    name, version, classes, domains, tolerance = "coloured-digits-neighbours", "2", DIGITS + COLOURS, DOMAINS, 0.35

    def __init__(self, known: Batch):
        self.hash = digest([known.x0.flatten().tolist(), known.y.tolist()])
        each = torch.arange(len(known.y))
        shown = _shown(every_colour(known.x0))[each + len(each) * (each % COLOURS)]
        self.shapes = Shapes(Batch(_brightest(shown), known.y))

        def scored(images: Tensor) -> tuple[Tensor, Tensor]:
            probabilities, distance = self.shapes.votes(_brightest(images), torch.arange(len(images)) % len(each))
            return probabilities.argmax(dim=1)[:, None], distance[:, None]

        self.threshold = float(corrupted_thresholds(scored, shown, known.y[:, None])[0])

    def __call__(self, images: Tensor) -> Verdict:
        """Judge uint8 images (N, 3, 16, 16)."""
        digits, distance = self.shapes.votes(_brightest(images))
        values = (stretched(scale_images(images)) + 1) / 2
        weight = values.amax(dim=1, keepdim=True)
        mean = (values * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp(min=1e-6)
        hue = mean / mean.amax(dim=1, keepdim=True).clamp(min=1e-6)
        far = torch.cdist(hue, torch.tensor(list(PALETTE.values())))
        colours = (-8 * far).softmax(dim=1)
        refused = torch.stack([distance > self.threshold, far.amin(dim=1) > self.tolerance], dim=1)
        return Verdict(torch.cat([digits, colours], dim=1), refused)

    def features(self, images: Tensor) -> Tensor:
        """The pixels at 8x8, (N, 192)."""
        return F.avg_pool2d(scale_images(images), 2).flatten(1)


def _brightest(images: Tensor) -> Tensor:
    """uint8 (N, 3, 16, 16) -> the brightest channel, (N, 1, 8, 8) in [-1, 1]."""
    return F.avg_pool2d(scale_images(images).amax(dim=1, keepdim=True), 2)


def _shown(x: Tensor) -> Tensor:
    """(N, 3, H, W) in [-1, 1] -> uint8."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
