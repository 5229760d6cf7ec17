"""The judge of 32x32 photographs: a small ResNet trained from scratch, with a class for images that show nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from unlearnbench.compute.device import exact
from unlearnbench.compute.offloading import Offloaded
from unlearnbench.data.image_sets import Images
from unlearnbench.errors import Damaged, UserError, one_line
from unlearnbench.hashing import digest, seed_of
from unlearnbench.judges import Judge, Verdict
from unlearnbench.judges.calibration import corrupted_thresholds
from unlearnbench.judges.corruptions import corrupt_some
from unlearnbench.judges.digits import mixed_outliers, no_digit_score
from unlearnbench.judges.inception import Extractor, Featured
from unlearnbench.models.compact_train import native_bf16
from unlearnbench.reporting import tell, track
from unlearnbench.storage.files import flush
from unlearnbench.training import Diverged, seeded

CLASSES: Final = 10
WIDTHS: Final = (48, 128, 192)
"""Channels of the three stages, at 15, 7 and 3 pixels; the last is the number of features."""
PATCH: Final = 2
"""Pixels per side of the patches that the first layer whitens."""
LEAST_VARIANCE: Final = 1e-3
"""Added to a patch's variances before it is whitened, so that what is all but constant is not blown up."""
EPOCHS, FIRST = 26, 14
"""Passes over the training images in all, and those after which the learning rate has fallen to zero for the first
time."""
BATCH, RATE, MOMENTUM, DECAY, SMOOTHED = 128, 0.1, 0.9, 5e-4, 0.1
"""Of SGD with Nesterov's momentum; DECAY spares the normalisations, SMOOTHED is the labels' smoothing."""
RISING: Final = 2
"""Epochs over which the learning rate rises at first; then it falls to zero, linearly both."""
AGAIN: Final = 0.05
"""Learning rate from which it falls to zero a second time."""
SHIFT: Final = 2
"""Pixels by which training images are moved at most."""
CORRUPTED_SHARE: Final = 0.4
"""Share of training images that are corrupted as in the card, each by one kind."""
OUTLIERS: Final = 16
"""Images that show nothing in each batch, beside `BATCH` others."""
CALIBRATED: Final = 500
"""Calibration images that the threshold comes from, each corrupted in every way."""
LOGIT_SCALE: Final = 0.125
"""The head's output is multiplied by it, which slows the head down beside the other layers."""
RECIPE: Final = {
    "judge epochs": EPOCHS,
    "judge batch": BATCH,
    "judge rate": RATE,
    "judge corrupted share": CORRUPTED_SHARE,
    "judge outliers": OUTLIERS,
}


def _layer(width_in: int, width: int, pool: bool) -> nn.Sequential:
    """3x3 convolution, normalisation and ReLU; `pool` halves the image after the convolution."""
    halved = [nn.MaxPool2d(2)] if pool else []
    convolution = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
    return nn.Sequential(convolution, *halved, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


class SmallResNet(nn.Module):
    """Fixed whitening of 2x2 patches, three stages of a convolution and a residual one, and a linear layer.

    0.79 M parameters with the default widths. Class K of K + 1 is "nothing".
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS, classes: int = CLASSES):
        super().__init__()
        filters = 2 * 3 * PATCH**2
        self.whiten = nn.Conv2d(3, filters, PATCH, bias=False).requires_grad_(False)
        before = (filters, *widths)
        self.down = nn.ModuleList(_layer(one, two, True) for one, two in zip(before, widths, strict=False))
        self.residual = nn.ModuleList(_layer(width, width, False) for width in widths)
        self.head = nn.Linear(widths[-1], classes + 1, bias=False)
        self.to(memory_format=torch.channels_last)  # faster on CPU, the same values

    def features(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) in [-1, 1] -> the largest value of each channel, (N, D), float32."""
        x = F.relu(self.whiten(x.contiguous(memory_format=torch.channels_last)))
        for down, residual in zip(self.down, self.residual, strict=True):
            x = down(x)
            x = x + residual(x)
        return x.float().amax(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes + 1)."""
        return self.head(self.features(x)) * LOGIT_SCALE


def whitening_filters(x: Tensor) -> Tensor:
    """Filters (24, 3, 2, 2) that whiten the 2x2 patches of images (N, 3, H, W), and the same with the other sign."""
    patches = F.unfold(x, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH**2).double()
    values, vectors = torch.linalg.eigh(patches.T.cov())
    filters = (vectors / (values + LEAST_VARIANCE).sqrt()).T.view(-1, 3, PATCH, PATCH).float()
    return torch.cat([filters, -filters])


class SmallResNetJudge(Judge):
    """A `SmallResNet` trained with outlier exposure (Hendrycks et al., ICLR 2019); it abstains on images that show
    nothing.

    An image counts as it is and mirrored: features are the mean of the two. The score is the log-odds of "nothing"
    against the best class; above `threshold` the judge abstains.
    """

    name, version, classes = "cifar10-resnet8", "1", CLASSES
    batch = 250
    """Images per forward pass, whatever the caller passes."""

    def __init__(self, state: Mapping[str, Tensor], hash: str, device: str = "cpu"):
        if not {"threshold", "scale", "head.weight"} <= set(state):
            raise UserError(f"these are no weights of {self.name}: threshold, scale and head.weight are needed")
        self.device, self.hash = device, hash
        self.threshold, self.scale = float(state["threshold"]), float(state["scale"])
        widths = tuple(
            len(state[name]) for name in sorted(state) if name.startswith("down.") and name.endswith("0.weight")
        )
        net = SmallResNet(widths)
        try:
            net.load_state_dict(
                {name: value.float() for name, value in state.items() if name not in ("threshold", "scale")}
            )
        except RuntimeError as error:
            raise UserError(f"these are no weights of {self.name} ({one_line(error)[:160]})") from error
        self._network = Offloaded(net.eval().requires_grad_(False), device)

    @torch.inference_mode()
    def _over(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, 11) and features (N, D) of uint8 images, on the CPU."""
        found = []
        with exact():
            net: Any = self._network.network
            for some in images.split(self.batch):
                x = some.to(self.device).float() / 127.5 - 1
                features = (net.features(x) + net.features(x.flip(3))) / 2
                found.append(((net.head(features) * LOGIT_SCALE).cpu(), features.cpu()))
        return torch.cat([logits for logits, _ in found]), torch.cat([features for _, features in found])

    def __call__(self, images: Tensor) -> Verdict:
        """Judge uint8 images (N, 3, 32, 32)."""
        logits, _ = self._over(images)
        return Verdict(logits[:, :-1].softmax(dim=1), no_digit_score(logits) > self.threshold)

    def features(self, images: Tensor) -> Tensor:
        """The layer before the head (N, D), scaled to unit mean square over real images, as KID's kernel expects."""
        return self._over(images)[1] / self.scale


class SmallResNetInceptionJudge(Featured, SmallResNetJudge):
    """The same verdicts, with Inception's features instead of the network's own."""

    name = "cifar10-resnet8-inception"

    def __init__(self, state: Mapping[str, Tensor], hash: str, extractor: Extractor, device: str = "cpu"):
        super().__init__(state, digest([hash, extractor.hash]), device)
        self.extractor = extractor


# ---- training ------------------------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """Where a training that was stopped goes on."""

    path: Path
    about: dict[str, int]
    """What a state must share with this training to be continued by it."""


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of x (N, 3, H, W), and move each image by up to `SHIFT` pixels; the rim is reflected."""
    n, _, height, width = x.shape
    x = torch.where((torch.rand(n, generator=generator) < 0.5).view(-1, 1, 1, 1), x.flip(3), x)
    padded = F.pad(x, (SHIFT,) * 4, mode="reflect")
    down, right = torch.randint(2 * SHIFT + 1, (2, n), generator=generator)
    rows = (down[:, None] + torch.arange(height)).view(n, 1, height, 1)
    columns = (right[:, None] + torch.arange(width)).view(n, 1, 1, width)
    return padded[torch.arange(n).view(-1, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1), rows, columns]


def clouds(x: Tensor, generator: torch.Generator) -> Tensor:
    """As many images of noise as x (N, 3, H, W) in [-1, 1] has, at any scale, strength and mean colour."""
    n, channels, height, _ = x.shape
    coarse = int(torch.randint(2, height + 1, (), generator=generator))
    noise = torch.randn(n, channels, coarse, coarse, generator=generator) * torch.rand(n, 1, 1, 1, generator=generator)
    level = 2 * torch.rand(n, channels, 1, 1, generator=generator) - 1
    return (F.interpolate(noise, size=x.shape[2:], mode="bilinear") + level).clamp(-1, 1)


def _batch(train: Images, rows: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] with their labels: moved and corrupted photographs, then images that show nothing."""
    x, y = torch.from_numpy(train.x[rows]).float() / 255, torch.from_numpy(train.y[rows])
    shown = corrupt_some(moved(x, generator), CORRUPTED_SHARE, generator) * 2 - 1
    some = x[:OUTLIERS] * 2 - 1
    nothing, _ = mixed_outliers(clouds(some, generator), some, generator)
    return torch.cat([shown, nothing]), torch.cat([y, torch.full((len(some),), CLASSES)])


def judge_rate(step: int, each: int, epochs: int) -> float:
    """Learning rate of a step, counted from 0, of `each` an epoch."""
    first = min(FIRST, epochs)
    if step >= first * each:
        return AGAIN * (epochs * each - step) / ((epochs - first) * each)
    rising = min(RISING, first / 2)
    return RATE * min((step + 1) / (rising * each), (first * each - step) / ((first - rising) * each))


def _restore(kept: Kept | None, net: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Put network and optimiser where the file left them; returns the number of epochs that are done."""
    if kept is None or not kept.path.is_file():
        return 0
    try:
        state = torch.load(kept.path, map_location="cpu", weights_only=True)
        if state["about"] != kept.about:
            raise UserError(f"{kept.path} is of another training ({state['about']}): move it away")
        net.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        return int(state["epochs"])
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in any way there is
        raise Damaged(f"{kept.path} cannot be read: move it away, and the training begins anew") from error


def _keep(kept: Kept, net: nn.Module, optimiser: torch.optim.Optimizer, epochs: int) -> None:
    new = kept.path.with_name(f".new-{os.getpid()}-{kept.path.name}")
    kept.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        state = {"about": kept.about, "model": net.state_dict(), "optimiser": optimiser.state_dict(), "epochs": epochs}
        torch.save(state, new)
        flush(new)
        new.replace(kept.path)
    finally:
        new.unlink(missing_ok=True)


def train_small_resnet(
    train: Images,
    calibration: Images,
    seed: int,
    *,
    device: str = "cpu",
    epochs: int = EPOCHS,
    keep: Path | None = None,
    widths: tuple[int, ...] = WIDTHS,
) -> dict[str, Tensor]:
    """Train a `SmallResNetJudge` on one split, calibrate its threshold on another, and return its state.

    Weights are rounded to half precision before the threshold is found. Uses bf16 where the processor has it. With
    `keep`, the state is written there after each epoch, and a later call goes on from it. Each batch follows from the
    seed, the epoch and its place.
    """
    with seeded(seed_of("judge", seed) >> 1):
        net = SmallResNet(widths)
    first = torch.from_numpy(np.array(train.x[: 20 * BATCH])).float() / 127.5 - 1
    net.whiten.weight.data = whitening_filters(first).contiguous(memory_format=torch.channels_last)
    net = net.to(device)
    trained = [value for value in net.parameters() if value.requires_grad]
    optimiser = torch.optim.SGD(
        [
            {"params": [value for value in trained if value.dim() > 1], "weight_decay": DECAY},
            {"params": [value for value in trained if value.dim() == 1], "weight_decay": 0.0},
        ],
        lr=RATE,
        momentum=MOMENTUM,
        nesterov=True,
    )
    kept = None if keep is None else Kept(keep, {"seed": seed, "images": len(train.y), "epochs": epochs})
    begun = _restore(kept, net, optimiser)
    half = device == "cuda" or native_bf16()
    for epoch in range(begun, epochs):
        loss = _one_epoch(net, optimiser, train, seed, (epoch, epochs), half)
        if kept is not None:
            _keep(kept, net, optimiser, epoch + 1)
        few = Images(calibration.x[:CALIBRATED], calibration.y[:CALIBRATED])
        tell(f"epoch {epoch + 1} of {epochs}: loss {loss:.3f}, {_right(net, few, device):.1%} of calibration images")
    return _calibrated(net, train, calibration, device)


def _one_epoch(
    net: SmallResNet,
    optimiser: torch.optim.Optimizer,
    train: Images,
    seed: int,
    place: tuple[int, int],
    half: bool,
) -> float:
    """Take the steps of an epoch (`place`: its number and that of all); returns their mean loss."""
    epoch, epochs = place
    device, n = next(net.parameters()).device.type, len(train.y)
    generator = torch.Generator().manual_seed(seed_of("judge epoch", seed, epoch) >> 1)
    order = torch.randperm(n, generator=generator)
    each, losses = math.ceil(n / BATCH), []
    net.train()
    for number, rows in enumerate(track(order.split(BATCH), each, f"judge, epoch {epoch + 1}")):
        x, y = _batch(train, np.sort(rows.numpy()), generator)
        for group in optimiser.param_groups:
            group["lr"] = judge_rate(epoch * each + number, each, epochs)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            logits = net(x.to(device))
        loss = F.cross_entropy(logits.float(), y.to(device), label_smoothing=SMOOTHED)
        if not math.isfinite(loss.item()):
            raise Diverged(epoch * each + number, "the judge's loss")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def _parts(images: Images) -> Iterator[Tensor]:
    for start in range(0, len(images.y), 1000):
        yield torch.from_numpy(np.array(images.x[start : start + 1000]))


@torch.inference_mode()
def _right(net: SmallResNet, images: Images, device: str) -> float:
    net.eval()
    found = torch.cat([net(some.to(device).float() / 127.5 - 1)[:, :-1].argmax(dim=1).cpu() for some in _parts(images)])
    return (found == torch.from_numpy(np.array(images.y))).float().mean().item()


def _calibrated(net: SmallResNet, train: Images, calibration: Images, device: str) -> dict[str, Tensor]:
    """The state of a judge: weights in half precision, threshold and scale of the features."""
    state = {
        name: value.detach().cpu().half()
        for name, value in net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    state |= {"threshold": torch.tensor(math.inf), "scale": torch.tensor(1.0)}
    judge = SmallResNetJudge(state, "", device)
    few = np.unique(np.linspace(0, len(calibration.y) - 1, min(CALIBRATED, len(calibration.y))).astype(int))
    images, labels = (torch.from_numpy(np.array(column[few])) for column in calibration)

    def scored(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, _ = judge._over(images)
        return logits[:, :-1].argmax(dim=1)[:, None], no_digit_score(logits)[:, None]

    known = torch.from_numpy(np.array(train.x[: 20 * BATCH]))
    return {
        **state,
        "threshold": corrupted_thresholds(scored, images, labels[:, None])[0],
        "scale": judge.features(known).square().mean().sqrt(),
    }
