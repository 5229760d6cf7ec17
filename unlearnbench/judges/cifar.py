"""Judges for CIFAR-10: the papers' ResNet-34, with Inception features, and nearest neighbours of pixels."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from unlearnbench.compute.device import exact
from unlearnbench.compute.offloading import Offloaded
from unlearnbench.data.image_sets import Images
from unlearnbench.errors import UserError, one_line
from unlearnbench.hashing import digest, seed_of, state_hash
from unlearnbench.judges import Judge, Verdict
from unlearnbench.judges.calibration import REFUSED_SHARE, corrupted_thresholds
from unlearnbench.judges.corruptions import corrupt_some
from unlearnbench.models.external.state_files import read_state
from unlearnbench.reporting import track
from unlearnbench.training import Diverged, seeded

Channels = Literal["rgb", "bgr"]
CLASSES, SIZE = 10, 224
BATCH = 64
"""Images per forward pass, whatever the caller passes: under 2 GB at Inception's 299 pixels."""
HEAD = 10
"""Learning rate of the new layer, as a multiple of the body's."""
DECAY = 5e-4
"""Weight decay of Adam, added to the gradients as torch's Adam does: clear-nus/selective-amnesia@b736571,
ddpm/train_classifier.py:143,147; OPTML-Group/Unlearn-Saliency@a6e89fd, DDPM/train_classifier.py:140,149."""
NOT_OF_NETWORK = ("threshold", "weight_decay", "corrupted_share")
"""Numbers that a judge's state has beside its network's weights."""


# ---- networks ------------------------------------------------------------------------------------------------------


def prepared(images: Tensor, size: int = SIZE) -> Tensor:
    """uint8 (N, 3, H, W) -> float (N, 3, size, size) in [-1, 1]: torchvision's Resize, ToTensor, Normalize(0.5, 0.5).

    Values are rounded after resizing, since the papers' code resizes PIL images, which hold integers.
    """
    x = images.float()
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
        x = x.round().clamp(0, 255)
    return x / 127.5 - 1


def energy(logits: Tensor) -> Tensor:
    """-logsumexp (N,) of logits (N, K): high for images unlike the training data (Liu et al., NeurIPS 2020)."""
    return -logits.logsumexp(dim=1)


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """Read tensors from safetensors, or from torch.save if the file holds no code. Errors name the network `what`."""
    if not path.is_file():
        raise UserError(f"no weights of {what} at {path}: give a file that exists; none is downloaded")
    return read_state(path)


def read_inception(path: Path) -> tuple[nn.Module, str]:
    """Load torch-fidelity's Inception from its weights file (weights-inception-2015-12-05-6726825d.pth); return it and
    its hash.

    torch-fidelity would unpickle any file, so it is given the tensors that were read here instead.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state, copy = read_weights(path, "Inception"), io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    with _fits(f"{path} holds no Inception of torch-fidelity"), torch.random.fork_rng(devices=[]):
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=copy)
    return net, state_hash(state)


@contextmanager
def _fits(otherwise: str) -> Iterator[None]:
    """Turn the error for weights of another network into one line for the user."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"{otherwise} ({one_line(error)[:160]})") from error


def _resnet(state: Mapping[str, Tensor]) -> Any:
    from torchvision.models import resnet34

    with torch.device("meta"):  # draws no random numbers
        net = resnet34(weights=None, num_classes=CLASSES)
    with _fits("these are no weights of a ResNet-34 with ten classes"):
        net.load_state_dict({name: value.detach().clone() for name, value in state.items()}, assign=True)
    return net


class ResNetJudge(Judge):
    """ResNet-34 of the CIFAR-10 papers (SalUn, EraseDiff). It abstains if the energy score is above `threshold`.

    If `inception` names a file of torch-fidelity's weights, features are Inception's, which the papers' FID uses;
    otherwise the network's own. `channels` is the order of the colours in which Inception gets the images, "bgr" as in
    the papers' evaluators; verdicts are on RGB images, as theirs. Versions have different states: version 1 was trained
    without the papers' weight decay, version 2 with it, and the threshold of version 3 comes from corrupted images too.
    The papers' judge never abstains, so that metrics of closed answers, such as `ua_closed`, compare with theirs.
    """

    name, version, classes = "cifar10-resnet34", "3", CLASSES

    def __init__(
        self,
        state: Mapping[str, Tensor],
        hash: str,
        device: str = "cpu",
        inception: Path | None = None,
        size: int = SIZE,
        channels: Channels = "rgb",
    ):
        self.device, self.size, self.hash = device, size, hash
        if "threshold" not in state:
            raise UserError("these weights of the ResNet-34 have no threshold: train them again")
        self.threshold = float(state["threshold"])
        if "corrupted_share" not in state:
            self.version = "2" if "weight_decay" in state else "1"  # type: ignore[misc]
        weights = {name: value for name, value in state.items() if name not in NOT_OF_NETWORK}
        body = _resnet(weights)
        head, body.fc = body.fc, nn.Identity()
        self._body, self._head = Offloaded(body, device), Offloaded(head, device)
        self._inception: Offloaded | None = None
        if inception is not None:
            net, own = read_inception(inception)
            self._inception = Offloaded(net, device)
            self.hash = digest([hash, own] if channels == "rgb" else [hash, own, channels])
        self.channels = channels

    @property
    def body(self) -> Any:
        """The network without its last layer, on its device."""
        return self._body.network

    @property
    def has_logits(self) -> bool:
        """Whether there is an Inception network, whose logits the Inception Score needs."""
        return self._inception is not None

    @torch.inference_mode()
    def _over(self, rows: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Run a network on rows in batches; returns its output on the CPU in float32."""
        with exact():
            return torch.cat([network(some.to(self.device)).float().cpu() for some in rows.split(BATCH)])

    def scores(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of uint8 images (N, 3, H, W)."""
        body, head = self.body, self._head.network
        return self._over(images, lambda x: head(body(prepared(x, self.size))))

    def __call__(self, images: Tensor) -> Verdict:
        """Judge uint8 images (N, 3, H, W); CIFAR's own have 32 pixels."""
        scores = self.scores(images)
        return Verdict(scores.softmax(dim=1), energy(scores) > self.threshold)

    def features(self, images: Tensor) -> Tensor:
        """Inception's pooled features (N, 2048); without Inception the layer before the head, (N, 512)."""
        if self._inception is not None:
            inception = self._inception.network
            return self._over(images.flip(1) if self.channels == "bgr" else images, lambda x: inception(x)[0])
        body = self.body
        return self._over(images, lambda x: body(prepared(x, self.size)))

    def logits(self, images: Tensor) -> Tensor:
        """Inception's logits without bias (N, 1008), torch-fidelity's "logits_unbiased"."""
        return self.logits_from(self.features(images))

    def logits_from(self, features: Tensor) -> Tensor:
        """The same logits from Inception's features (N, 2048), which saves a second forward pass."""
        if self._inception is None:
            raise UserError(f"{self.name} has no logits without the weights of Inception: give their file")
        weight = self._inception.network.fc.weight
        return self._over(features, lambda x: x.mm(weight.T))


# ---- training ------------------------------------------------------------------------------------------------------


def train_resnet(
    train: Images,
    calibration: Images,
    seed: int,
    device: str = "cpu",
    start: Mapping[str, Tensor] | None = None,
    epochs: int = 10,
    size: int = SIZE,
    batch: int = 128,
    lr: float = 1e-5,
    corrupted_share: float = 0.0,
    corrupted_images: int = 500,
) -> dict[str, Tensor]:
    """Train a `ResNetJudge` by the papers' recipe and return its state: Adam with weight decay on all layers, the new
    head at ten times `lr`, flips.

    `start` is torchvision's state of a ResNet-34 on ImageNet (resnet34-b627a593.pth); without it the weights start
    random. The threshold refuses at most `REFUSED_SHARE` of the calibration images, and few of those still recognised
    when `corrupted_images` of them are corrupted (see `corrupted_thresholds`). `corrupted_share` of the training images
    are corrupted too; the papers corrupt none.
    """
    generator = torch.Generator().manual_seed(seed_of("judge data", seed) >> 1)
    with seeded(seed_of("judge", seed) >> 1):
        net = started(start).to(device).train()
    body = [value for name, value in net.named_parameters() if not name.startswith("fc.")]
    groups: list[dict[str, Any]] = [{"params": body}, {"params": list(net.fc.parameters()), "lr": HEAD * lr}]
    optimiser = torch.optim.Adam(groups, lr=lr, weight_decay=DECAY)
    steps = epochs * math.ceil(len(train.y) / batch)
    with exact():
        for step, rows in enumerate(track(_shuffled(len(train.y), epochs, batch, generator), steps, "judge")):
            x, y = (torch.from_numpy(np.array(column[rows.numpy()])).to(device) for column in train)
            turned = (torch.rand(len(x), generator=generator) < 0.5).to(device)
            x = torch.where(turned[:, None, None, None], x.flip(3), x)
            if corrupted_share:
                made = corrupt_some(x.cpu().float() / 255, corrupted_share, generator)
                x = (made * 255).round().to(torch.uint8).to(device)
            loss = F.cross_entropy(net(prepared(x, size)), y)
            if not math.isfinite(loss.item()):
                raise Diverged(step, "the judge's loss")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    state = {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}
    judge = ResNetJudge({**state, "threshold": torch.tensor(math.inf)}, "", device, size=size)
    found = torch.cat([energy(judge.scores(images)) for images in _parts(calibration)])
    chosen = np.unique(np.linspace(0, len(found) - 1, min(corrupted_images, len(found))).astype(int))
    few = torch.cat(list(_parts(calibration, chosen)))

    def scored(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = judge.scores(images)
        return logits.argmax(dim=1)[:, None], energy(logits)[:, None]

    threshold = corrupted_thresholds(scored, few, torch.from_numpy(np.array(calibration.y[chosen]))[:, None])[0]
    return {
        **state,
        "threshold": torch.maximum(found.quantile(1 - REFUSED_SHARE), threshold),
        "weight_decay": torch.tensor(DECAY),
        "corrupted_share": torch.tensor(corrupted_share),
    }


def started(start: Mapping[str, Tensor] | None) -> Any:
    """The network before training: `start` with a new head, initialised by Xavier's method."""
    from torchvision.models import resnet34

    net = resnet34(weights=None, num_classes=CLASSES)
    if start is not None:
        kept = {name: value for name, value in start.items() if not name.startswith("fc.")}
        head = {name: value for name, value in net.state_dict().items() if name.startswith("fc.")}
        with _fits("the start is no ResNet-34 of torchvision"):
            net.load_state_dict({**kept, **head})
    nn.init.xavier_uniform_(net.fc.weight)
    return net


def _shuffled(n: int, epochs: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(n, generator=generator).split(batch)


def _parts(images: Images, rows: np.ndarray | None = None) -> Iterator[Tensor]:
    """Yield uint8 images, all or these rows, a few at a time: they are memory-mapped and never held as a whole."""
    rows = np.arange(len(images.y)) if rows is None else rows
    for first in range(0, len(rows), 4 * BATCH):
        yield torch.from_numpy(np.array(images.x[rows[first : first + 4 * BATCH]]))


# ---- without training ----------------------------------------------------------------------------------------------


class PixelNeighbours(Judge):
    """Nearest neighbours among a few real images by 8x8 cells of pixels, for the "smoke" protocol; needs no training.

    Images are compared by mean and standard deviation within each cell; by means alone, noise would look like a grey
    image. Class probabilities are distance-weighted votes of the 5 nearest; the score is their mean distance.
    """

    name, version, classes, k, most = "cifar10-neighbours", "1", CLASSES, 5, 2000

    def __init__(self, train: Images, calibration: Images):
        from sklearn.neighbors import KNeighborsClassifier

        labels = np.asarray(train.y)
        of_class = [np.flatnonzero(labels == label)[: self.most // CLASSES] for label in range(CLASSES)]
        if absent := [str(label) for label, rows in enumerate(of_class) if not len(rows)]:
            raise UserError(f"{self.name} needs training images of every class: none of {', '.join(absent)}")
        chosen = np.sort(np.concatenate(of_class))
        known = torch.cat([pixel_statistics(images) for images in _parts(train, chosen)])
        self.model = KNeighborsClassifier(self.k, weights="distance").fit(known.numpy(), labels[chosen])
        self.hash = digest([known.flatten().tolist(), labels[chosen].tolist()])
        others = torch.cat([pixel_statistics(images) for images in _parts(calibration)])
        self.threshold = float(np.quantile(self._distance(others.numpy()), 1 - REFUSED_SHARE))

    def _distance(self, x: np.ndarray) -> np.ndarray:
        return self.model.kneighbors(x)[0].mean(axis=1)

    def __call__(self, images: Tensor) -> Verdict:
        """Judge uint8 images (N, 3, H, W)."""
        x = pixel_statistics(images).numpy()
        probabilities = torch.from_numpy(self.model.predict_proba(x)).float()
        return Verdict(probabilities, torch.from_numpy(self._distance(x) > self.threshold))

    def features(self, images: Tensor) -> Tensor:
        """The pixels at 8x8, in [-1, 1], (N, 192)."""
        return pixel_statistics(images)[:, :192]


def pixel_statistics(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> means, then standard deviations of 8x8 cells: (N, 384), of pixels in [-1, 1]."""
    x = images.float() / 127.5 - 1
    mean, square = (F.adaptive_avg_pool2d(value, 8).flatten(1) for value in (x, x.square()))
    return torch.cat([mean, (square - mean.square()).clamp(min=0).sqrt()], dim=1)
