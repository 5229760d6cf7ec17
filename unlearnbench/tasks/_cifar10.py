"""Definitions of `cifar10-class`: classes, files to fetch and protocols."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from unlearnbench.data.image_sets import SPLITS
from unlearnbench.data.sources import Source
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.task import Protocol
from unlearnbench.training import seeded

HUB = "https://huggingface.co/datasets/uoft-cs/cifar10/resolve/main/"
PARTS = tuple(
    Source(
        name=f"plain_text/{split}-00000-of-00001.parquet",
        url=f"{HUB}plain_text/{split}-00000-of-00001.parquet",
        licence="none stated by its authors (Krizhevsky, 2009)",
        login=False,
        use=f"{split} images",
    )
    for split in SPLITS
)
IMAGENET = Source(
    name="resnet34-b627a593.pth",
    url="https://download.pytorch.org/models/resnet34-b627a593.pth",
    licence="bsd-3-clause",
    login=False,
    use="start of the judge, ImageNet weights",
)
INCEPTION = Source(
    name="weights-inception-2015-12-05-6726825d.pth",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    licence="apache-2.0",
    login=False,
    use="features of FID, KID, IS, precision and recall",
)
OUTSIDE = Source(
    name="resnet56-4bfd9763.th",
    url="https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/resnet56-4bfd9763.th",
    licence="bsd-2-clause",
    login=False,
    use="the judge of tuning, a ResNet-56 that others trained",
)
SIZE = 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
GUIDANCE = 3.0
"""The papers' w = 2 of (1 + w) eps_c - w eps_null, in the standard notation."""


@dataclass(frozen=True)
class ClassProtocol(Protocol):
    """A protocol of this task. It includes what the papers' scripts do to images and weights, so that its hash covers
    it.
    """

    weights: Literal["raw", "ema"] = "ema"
    """Which of the two sets of weights in a papers' .pth file is the original."""
    start: Literal["original", "raw"] = "original"
    """What unlearning starts from: the weights that are measured as the original, or always the raw ones, with
    pretraining's average as the beginning of a method's own (`ema`)."""
    dropout: bool = False
    """Whether dropout stays on while images are drawn."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Order of the colours in which Inception gets every image, generated or real."""
    reference_images: int = 0
    """Real images of each retained class in the reference and in the floor; 0: as many as are drawn."""
    stretch: bool = False
    """Whether every image, generated or real, is stretched to the full range by its own minimum and maximum, as the
    papers' `save_image(normalize=True)` does."""
    width: int = 128
    """Width of the network."""
    printed: str = ""
    """The paper's own names for numbers that this project calls differently."""


@dataclass(frozen=True)
class CompactProtocol(ClassProtocol):
    """A protocol on the compact network, whose weights and judge the package ships. `width` is that of its first level;
    the second is twice as wide.

    Real images come from the test split, which neither the network nor the judge was trained on: "reference" and
    "floor" are halves of what sets no threshold. "train" is the first of the training images.
    """

    network: Literal["compact"] = "compact"


@dataclass(frozen=True)
class SmokeProtocol(ClassProtocol):
    """A protocol that shows in less than a minute that everything runs, and nothing else."""

    most_steps: int = 4
    """Most steps of a method, and of a training without a class."""


SWAPPED = (
    "its scripts hand the generated images over as the reference, so that printed precision is recall here, and vice "
    "versa, and a printed IS is that of the real images, the floor here"
)
BGR = (
    "Inception gets every image with red and blue exchanged, for FID, IS, precision and recall, as its evaluator reads "
    "files with cv2.imread"
)
DROPOUT_ON = "images are drawn with dropout on, since its sample.py never calls eval() on the averaged copy that draws"
DROPOUT_OFF = "images are drawn without dropout, which its sample.py leaves on"
FEWER_REAL = "FID compares with the first 500 training images of each class, as its save_base_dataset.py writes"
RAW_START = "unlearning starts from the raw weights, with pretraining's average as the first of the method's own"


ERASEDIFF = ClassProtocol(
    "erasediff-cvpr25",
    Sampler(steps=1000, eta=1.0, guidance=GUIDANCE),
    "cifar10-resnet34",
    reference="train",
    forget_images=500,
    retain_images=5000,
    chunk=500,
    start="raw",
    dropout=True,
    channels="bgr",
    stretch=True,
    printed="; ".join((SWAPPED, BGR, DROPOUT_ON, RAW_START)),
)
"""EraseDiff's code, whose evaluation is Selective Amnesia's: JingWu321/EraseDiff@14f4e98, ddpm/, and
clear-nus/selective-amnesia@b736571, ddpm/. Both draw with the copy that `ema_copy` makes, which stays in training mode
(runners/diffusion.py:312 and 392 of the one and the other), read images as BGR (evaluator.py:676), and start unlearning
from `states[0]` with the average `states[-1]` as shadow (runners/diffusion.py:722,728 and 264,270)."""
ERASEDIFF_EVAL = replace(
    ERASEDIFF,
    name="erasediff-cvpr25-eval",
    dropout=False,
    printed="; ".join((SWAPPED, BGR, DROPOUT_OFF, RAW_START)),
)
SALUN = replace(
    ERASEDIFF,
    name="salun-iclr24",
    weights="raw",
    start="original",
    dropout=False,
    reference_images=500,
    printed="; ".join((SWAPPED, BGR, FEWER_REAL)),
)
"""SalUn's code, OPTML-Group/Unlearn-Saliency@a6e89fd, DDPM/: raw weights (configs/cifar10_sample.yml:25), drawn by the
model that was set to eval (runners/diffusion.py:661), BGR (evaluator.py:735), 500 images of each class as the reference
(save_base_dataset.py:44). SFRon's, K1nght/Unified-Unlearning-w-Remain-Geometry@36bb7f6, does the same."""
FIRST_HOUR = replace(
    ERASEDIFF_EVAL, name="first-hour", sampler=Sampler(steps=250, eta=1.0, guidance=GUIDANCE), retain_images=1000
)
FIRST_HOUR_DROPOUT = replace(FIRST_HOUR, name="first-hour-dropout", dropout=True, printed=ERASEDIFF.printed)
DEFAULT = ClassProtocol(
    "default",
    Sampler(steps=250, eta=1.0, guidance=GUIDANCE),
    "cifar10-resnet34",
    reference="test",
    forget_images=500,
    retain_images=1000,
    chunk=500,
)
RAW = replace(DEFAULT, name="raw", weights="raw")
"""The default for files without an average, such as SalUn's: original and unlearned weights are both raw."""
FEWER = replace(DEFAULT, name="steps-250", forget_images=100, retain_images=100)
ALL = replace(FEWER, name="steps-1000", sampler=replace(FEWER.sampler, steps=1000))
"""Effects of the default's fewer steps: both use the same conditions and starting noise."""
SMOKE = SmokeProtocol(
    "smoke",
    Sampler(steps=4, eta=1.0, guidance=GUIDANCE),
    "cifar10-neighbours",
    reference="test",
    forget_images=12,
    retain_images=4,
    chunk=16,
    width=32,
)
COMPACT = CompactProtocol(
    "compact",
    Sampler(steps=25, eta=0.0, guidance=4.0),
    "cifar10-resnet8",
    reference="reference",
    reference_images=200,
    forget_images=200,
    retain_images=60,
    chunk=50,
    width=64,
)
COMPACT_INCEPTION = replace(COMPACT, name="compact-inception", judge="cifar10-resnet8-inception")
"""The same images, with FID and KID in Inception's features."""
SELECTION = replace(
    COMPACT,
    name="selection",
    judge="cifar10-resnet56",
    reference="train",
    forget_images=100,
    retain_images=30,
    sampling_seed=1,
)
"""For `tune`: other noise, another reference, and a judge that others trained on the originals."""
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        DEFAULT,
        RAW,
        ERASEDIFF,
        ERASEDIFF_EVAL,
        SALUN,
        FIRST_HOUR,
        FIRST_HOUR_DROPOUT,
        FEWER,
        ALL,
        COMPACT,
        COMPACT_INCEPTION,
        SELECTION,
        SMOKE,
    )
}
COMPACT_STEPS, COMPACT_DECAY = 43_000, 12_900
"""Steps of `pretrain` on the compact network, 55 passes over the images, and those of them over which the learning rate
falls. `retrain` takes as many as the original, whose manifest says them."""


SURE = 0.9
"""Share of held-out real images that a judge must recognise."""


def check_cifar10(task: Any) -> Iterator[tuple[str, str, str, str, bool]]:
    """Checks of `first-hour` before the original's row: images, network and judge."""
    for split, (x, y) in task.images.items():
        classes, count = task.classes, task.sizes[split]
        counts = {int((y == k).sum()) for k in range(classes)}
        even = counts == {count // classes}
        said = " to ".join(dict.fromkeys(f"{n:,}" for n in (min(counts), max(counts))))
        yield "data", f"{split} images a class", f"{count // classes:,}", said, len(x) == count and even
    model = task.pretrained().eval()
    parameters = sum(value.numel() for value in model.parameters())
    yield "original", "parameters", f"{task.parameters:,}", f"{parameters:,}", parameters == task.parameters
    batch = task.data("forget")
    with torch.inference_mode(), seeded(0):
        few = type(batch)(batch.x0[:250].to(task.device), batch.y[:250].to(task.device))
        loss = model.loss(few).item()
    yield "original", "denoising loss, forget images", "below 0.1", f"{loss:.3f}", loss < 0.1
    right, refused = task.judged_held_out(task.judge())
    yield "judge", "held-out images judged right", f"at least {SURE:.0%}", f"{right:.1%}", right >= SURE
    yield "judge", "held-out images refused", "at most 2%", f"{refused:.1%}", refused <= 0.02
