"""Forget a class of CIFAR-10: the papers' DDPM (needs a GPU; never run on its real weights here), or a small one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from unlearnbench.data.image_sets import SPLITS, Images, parts, read_image_set
from unlearnbench.data.sources import Source, check_source, known_hash
from unlearnbench.diffusion.model import Batch, Diffusion
from unlearnbench.errors import UserError, unknown
from unlearnbench.hashing import digest, file_hash, seed_of, state_hash
from unlearnbench.judges import Judge, resnet8
from unlearnbench.judges.cifar import Channels, PixelNeighbours, ResNetJudge, read_weights, train_resnet
from unlearnbench.models.configuration import configuration
from unlearnbench.models.ddpm import ConditionalDDPM, load_converted
from unlearnbench.models.ddpm_checkpoint import read_ddpm
from unlearnbench.models.ddpm_folder import LABELS, UNET
from unlearnbench.models.ddpm_train import RECIPE, STEPS, TrainingImages, train_ddpm
from unlearnbench.reporting import track
from unlearnbench.storage.store import default_root
from unlearnbench.storage.weights import load_checked, make_once, read_manifest
from unlearnbench.task import ModelIdentity, Side, Task, on_cpu, shuffled
from unlearnbench.tasks._cifar10 import (
    CLASSES,
    COMPACT_DECAY,
    COMPACT_STEPS,
    IMAGENET,
    INCEPTION,
    OUTSIDE,
    PARTS,
    PROTOCOLS,
    SIZE,
    ClassProtocol,
    CompactProtocol,
    SmokeProtocol,
    check_cifar10,
)
from unlearnbench.tasks._cifar10_compact import (
    ASSETS,
    compact_network,
    compact_recipe,
    inception_judge,
    outside_judge,
    retrained_name,
    small_judge,
    train_compact_steps,
)
from unlearnbench.training import seeded

CHECKED = 50
"""Samples of each class that `pretrain` shows to the judge at its end."""


class Cifar10Class(Task):
    """Class forgetting by the papers' protocols, which are not comparable with one another, and by some of our own.

    `compact` and `selection` are on a network of 4 M parameters, whose weights the package ships.
    """

    name = "cifar10-class"
    concepts = CLASSES
    protocols: ClassVar[dict[str, Any]] = PROTOCOLS
    protocol: ClassProtocol
    provides = frozenset({"forget images", "retain images", "concept", "training recipe"})
    default_forget, few_retrains = "airplane", True
    pixels = SIZE
    sources: ClassVar[tuple[Source, ...]] = (*PARTS, IMAGENET, INCEPTION, OUTSIDE)
    ships: ClassVar[frozenset[str]] = frozenset(
        name for name, protocol in PROTOCOLS.items() if isinstance(protocol, CompactProtocol)
    )
    """Protocols whose weights the package ships."""
    classes, parameters = len(CLASSES), 38_632_323
    fewer_steps: ClassVar[tuple[str, str]] = ("steps-250", "steps-1000")
    """Two protocols that differ only in the number of steps: the default and the papers'."""
    other_dropout: ClassVar[dict[str, str]] = {"first-hour": "first-hour-dropout"}
    """Protocols of `first-hour`, each with the one that differs in dropout alone."""
    sizes: ClassVar[dict[str, int]] = {"train": 50_000, "test": 10_000}

    def __init__(self, forget: str, *, data: Path | None = None, checkpoint: Path | None = None, **settings: Any):
        super().__init__(forget, **settings)
        self.folder, self.checkpoint = data or default_root() / "data" / self.name, checkpoint
        if isinstance(self.protocol, SmokeProtocol) and self.limit is None:
            self.limit = self.protocol.most_steps
        if self.compact:
            self.model_folder = "cifar10-compact"
            if checkpoint is not None:
                raise UserError(
                    f"--checkpoint holds the papers' network, and protocol {self.protocol.name} is on another: leave "
                    "one of them out"
                )

    @classmethod
    def resolve_concept(cls, forget: str) -> str:
        """Resolve a class by name or by number."""
        name = CLASSES[int(forget)] if forget.isdigit() and int(forget) < len(CLASSES) else forget
        if name not in CLASSES:
            raise unknown(f"class of {cls.name}", forget, [*CLASSES, *map(str, range(len(CLASSES)))])
        return name

    # ---- the model -------------------------------------------------------------------------------------------------

    @property
    def compact(self) -> bool:
        """Whether the protocol is on the compact network."""
        return isinstance(self.protocol, CompactProtocol)

    @property
    def own_weights(self) -> Path:
        """Folder of the compact network's weights: the user's, or the shipped ones."""
        return self.weights or ASSETS

    def architecture(self, seed: int) -> Diffusion:
        """The network; 38,632,323 parameters at the papers' width, 4,005,516 of the compact one."""
        if isinstance(self.protocol, CompactProtocol):
            compact = compact_network(self.protocol, seed_of("architecture", seed) >> 1)
            compact.sampler = self.protocol.sampler
            return compact.to(self.device)
        with seeded(seed_of("architecture", seed) >> 1):
            model = ConditionalDDPM(len(CLASSES), SIZE, self.protocol.width)
        model.sampler = self.protocol.sampler
        return model.to(self.device)

    def pretrained(self) -> Diffusion:
        """Load the original from --checkpoint (.pth, diffusers folder) or `pretrain`; "smoke" accepts new weights."""
        model: Any = self.architecture(0)
        if self.compact:
            model.load_state_dict(load_checked(self.own_weights, "model.safetensors")[0])
        elif self.checkpoint is not None:
            load_converted(model, read_ddpm(self.checkpoint, self.protocol.weights), str(self.checkpoint))
        elif self.weights is not None:
            model.load_state_dict(load_checked(self.weights, "model.safetensors")[0])
        elif self.protocol.name != "smoke":
            raise UserError(
                f"{self.name} ships no weights: give a papers' file with --checkpoint ckpt.pth, or a folder made by "
                f"`unlearnbench pretrain --task {self.name}` with --pretrained; --protocol compact needs neither"
            )
        return model

    def starting(self) -> Diffusion:
        """The original; or, where the protocol says so, the raw weights of a papers' file, with their average beside.

        Files with a single set of weights, such as diffusers folders and those of `pretrain`, start from that.
        """
        model: Any = self.pretrained()
        if self.protocol.start == "original" or self.checkpoint is None or self.checkpoint.is_dir():
            return model
        model.average = {name: value.detach().cpu().clone() for name, value in model.named_parameters()}
        load_converted(model, read_ddpm(self.checkpoint, self.protocol.start), str(self.checkpoint))
        if all(torch.equal(value.cpu(), model.average[name]) for name, value in model.named_parameters()):
            model.average = None
        return model

    @property
    def draws_with_dropout(self) -> bool:
        """As the protocol says."""
        return self.protocol.dropout

    def model_identity(self) -> ModelIdentity:
        """Hash of the file and of which weights in it; for a diffusers folder also of its configuration."""
        if self.checkpoint is not None:
            folder = self.checkpoint.is_dir()
            files = [self.checkpoint / name for name in (UNET, LABELS)] if folder else [self.checkpoint]
            weights = digest([*(file_hash(file) for file in files if file.is_file()), self.protocol.weights])
            return ModelIdentity(weights, configuration(self.checkpoint) if folder else {})
        own = self.own_weights if self.compact else self.weights
        if own is not None:
            manifest = read_manifest(own)
            return ModelIdentity(manifest["hashes"]["model.safetensors"], seed=manifest["seed"])
        return ModelIdentity(state_hash(on_cpu(self).pretrained().state_dict()))

    def train(self, seed: int, which: Literal["both", "retain"] = "both") -> Diffusion:
        """Train from scratch with `ddpm_train`'s recipe, on all classes or without the forgotten one; returns the
        moving average. The compact network is trained by `compact_train`'s, for as many steps as its manifest says.

        This takes hours. The state is kept in the store's folder until training is done, so that a stopped run
        continues. Of the compact network, weights without the class are taken from its folder, if that has them (see
        `retrained_name`).
        """
        if self.compact:
            return self._train_compact(seed, which)
        files = [file_hash(path) for path in parts(self.folder, "train", self.name)]
        key = digest([files, RECIPE, self.protocol.width, self._steps(), seed, which, self.forget, self.device])
        kept = default_root() / "training" / f"{key[:32]}.pt"
        model = self._trained(seed, which, kept)
        kept.unlink(missing_ok=True)
        return model

    @property
    def training_steps(self) -> int:
        """As in the recipe; of the compact network the original's, or none if its folder has what `retrain` makes."""
        if not self.compact:
            return self._steps()
        manifest = read_manifest(self.own_weights)
        ready = retrained_name(self.forget, self.seed) in manifest["hashes"]
        return 0 if ready else int(manifest["recipe"]["steps"])

    def _train_compact(self, seed: int, which: Literal["both", "retain"]) -> Diffusion:
        folder, name = self.own_weights, retrained_name(self.forget, seed)
        manifest, model = read_manifest(folder), self.architecture(seed)
        if which == "retain" and name in manifest["hashes"]:
            model.load_state_dict(load_checked(folder, name)[0])
            return model.eval()
        recipe = manifest["recipe"]
        steps, decay = (int(recipe[key]) for key in ("steps", "decay steps"))
        return self._compact_steps(model, seed, which, steps, decay)

    def _compact_steps(self, model: Any, seed: int, which: Side, steps: int, decay: int) -> Diffusion:
        steps = self.steps(steps)
        files = [known_hash(path) for path in parts(self.folder, "train", self.name)]
        forgotten = self.forget if which == "retain" else ""
        key = digest([files, self.protocol.width, steps, decay, seed, forgotten, self.device])
        keep = default_root() / "training" / f"compact-{key[:32]}.pt"
        return train_compact_steps(model, self._pictures(which), steps, min(decay, steps), seed, keep)

    def _steps(self) -> int:
        return 2 if self.protocol.name == "smoke" else self.steps(STEPS)

    def _trained(self, seed: int, which: Side, keep: Path | None) -> Diffusion:
        model: Any = self.architecture(seed)
        train_ddpm(model, self._pictures(which), self._steps(), seed_of("training", seed), keep=keep)
        return model

    def pretrain(self, out: Path, seed: int = 0) -> dict[str, float]:
        """Train judge and model in `out`. A stopped training continues at the step that it had reached."""
        reached = self.pretrain_judge(out, seed)
        kept = out / "training.pt"

        def trained() -> dict[str, Tensor]:
            if not self.compact:
                return dict(self._trained(seed, "both", kept).state_dict())
            model = self._compact_steps(self.architecture(seed), seed, "both", COMPACT_STEPS, COMPACT_DECAY)
            return {name: value.half() for name, value in model.state_dict().items()}

        self._made(out, "model.safetensors", trained, seed)
        kept.unlink(missing_ok=True)
        task = self._with(out)
        model, judge, labels = (
            task.pretrained().eval(),
            task.judge(),
            torch.arange(len(CLASSES)).repeat_interleave(CHECKED),
        )
        drawn = []
        with torch.inference_mode():
            for start, y in enumerate(track(labels.split(50), len(CLASSES), "samples")):
                seeds = [seed_of("pretrain check", start, i) for i in range(len(y))]
                drawn.append(self.to_uint8(model.sample(y.to(self.device), seeds)))
        found = (judge(torch.cat(drawn)).label == labels).float().mean().item()
        return {**reached, "samples judged right": round(found, 4)}

    def pretrain_judge(self, out: Path, seed: int = 0) -> dict[str, float]:
        """Train only the judge: the ResNet-34 by the papers' recipe, from torchvision's ImageNet weights; for the
        compact network the small ResNet, from scratch.
        """
        train, calibration, kept = self.images["train"], self._halves()[0], out / "judge-training.pt"

        def trained() -> dict[str, Tensor]:
            if self.compact:
                about: Any = {"epochs": resnet8.EPOCHS, "widths": resnet8.WIDTHS}
                return resnet8.train_small_resnet(train, calibration, seed, device=self.device, keep=kept, **about)
            start = check_source(self.folder, IMAGENET, self.name)
            return train_resnet(train, calibration, seed, self.device, read_weights(start, "ResNet-34 on ImageNet"))

        self._made(out, "judge.safetensors", trained, seed)
        kept.unlink(missing_ok=True)
        judge = self._with(out).judge()
        right, refused = self.judged_held_out(judge)
        return {"held-out images judged right": round(right, 4), "held-out images refused": round(refused, 4)}

    def _with(self, weights: Path) -> Cifar10Class:
        """This task, by this protocol, with the weights in a folder."""
        name = self.protocol.name
        return type(self)(self.forget, protocol=name, data=self.folder, device=self.device, weights=weights)

    def judged_held_out(self, judge: Judge) -> tuple[float, float]:
        """Shares of correct and refused verdicts on real images used for neither training nor calibration."""
        x, y = self._halves()[1]
        verdict = judge(torch.from_numpy(x.copy()))
        hits = verdict.label == torch.from_numpy(y.copy())
        return hits.float().mean().item(), verdict.refused.float().mean().item()

    def looked_over(self) -> Iterator[tuple[str, str, str, str, bool]]:
        """Checks for `first-hour`."""
        return check_cifar10(self)

    def _made(self, out: Path, name: str, make: Any, seed: int) -> None:
        compact = {**resnet8.RECIPE, **compact_recipe(COMPACT_STEPS, COMPACT_DECAY)}
        make_once(out, name, make, seed=seed, recipe=compact if self.compact else RECIPE)

    # ---- the data --------------------------------------------------------------------------------------------------

    @cached_property
    def images(self) -> dict[str, Images]:
        """Both splits, memory-mapped and read on access."""
        return {
            split: read_image_set(self.folder, split, default_root() / "images", SIZE, self.name) for split in SPLITS
        }

    def _halves(self) -> tuple[Images, Images]:
        """The test split's even images, for a judge's threshold, and its odd ones, for reported results."""
        x, y = self.images["test"]
        return Images(x[::2], y[::2]), Images(x[1::2], y[1::2])

    def data_identity(self) -> str | None:
        """Hash of the files of images, where records of the compact network are made: copies of the data differ."""
        if not self.compact:
            return None
        return digest([known_hash(path) for split in SPLITS for path in parts(self.folder, split, self.name)])

    def _rows(self, side: Side) -> np.ndarray:
        forgotten = self.images["train"].y == self.labels()[self.forget]
        return np.flatnonzero({"forget": forgotten, "retain": ~forgotten, "both": np.ones_like(forgotten)}[side])

    def _pictures(self, side: Side) -> TrainingImages:
        return TrainingImages(self.images["train"], self._rows(side))

    def data(self, which: Side) -> Batch:
        """Training images of one side or of both, all in memory: 12 kB each."""
        train, rows = self.images["train"], self._rows(which)
        return Batch(scale_pixels(train.x[rows]), torch.from_numpy(train.y[rows]))

    def count(self, which: Side) -> int:
        """Number of training images, without reading them."""
        return len(self._rows(which))

    def _stream(self, side: Side, size: int, seed: int) -> Iterator[Batch]:
        """Read batches from the memory-mapped arrays; each image is flipped at random every time."""
        pictures = self._pictures(side)
        generator = torch.Generator().manual_seed(seed_of("flips", side, seed) >> 1)
        for index in shuffled(len(pictures.rows), size, seed_of("batches", side, seed) >> 1):
            yield pictures.batch(index, generator, self.device)

    def substitute(self, y: Tensor) -> Tensor:
        """The next class instead of the forgotten one, as in SalUn."""
        return torch.where(self.forgotten(y), (y + 1) % len(CLASSES), y)

    def reference(self) -> Iterator[Tensor]:
        """Real images of the other classes: the first of each in the protocol's split, as many as it says."""
        return self._real(self.protocol.reference)

    def floor(self) -> Iterator[Tensor]:
        """The same images of the other split; for the compact network of "floor"."""
        return self._real("floor" if self.compact else "train" if self.protocol.reference == "test" else "test")

    def labelled_images(self) -> tuple[Tensor, Tensor]:
        """The first 50 of each class among the test images that set no threshold."""
        x, y = self._halves()[1]
        rows = np.concatenate([np.flatnonzero(y == k)[:50] for k in range(len(CLASSES))])
        return torch.from_numpy(np.array(x[rows])), torch.from_numpy(np.array(y[rows]))[:, None]

    def _split(self, name: str) -> Images:
        """Real images by split: "train", "test"; "reference" and "floor" are the halves of what sets no threshold."""
        if name in SPLITS:
            return self.images[name]
        x, y = self._halves()[1]
        first = ("reference", "floor").index(name)
        rows = np.concatenate([np.flatnonzero(y == k)[first::2] for k in range(len(CLASSES))])
        return Images(x[rows], y[rows])

    def _real(self, split: str) -> Iterator[Tensor]:
        x, y = self._split(split)
        count = self.protocol.reference_images or self.protocol.retain_images
        kept = [np.flatnonzero(y == k)[:count] for k in range(len(CLASSES))]
        del kept[self.labels()[self.forget]]
        rows = np.concatenate(kept)
        for start in range(0, len(rows), self.protocol.chunk):
            yield self.to_uint8(scale_pixels(x[rows[start : start + self.protocol.chunk]]))

    def judge(self) -> Judge:
        """ResNet-34 with Inception features; for "smoke" nearest neighbours, which need no training; for the compact
        network a small ResNet, and for tuning the ResNet-56 that others trained.
        """
        if self.compact:
            return _compact_judge(self.protocol.judge, self.folder, self.own_weights, self.device)
        return _judge(self.protocol.judge, self.folder, self.weights, self.device, self.protocol.channels)

    def to_uint8(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) in [-1, 1] -> uint8, rounded and clamped; stretched first if the protocol says so."""
        x = ((x.detach().float() + 1) / 2).clamp(0, 1)
        if self.protocol.stretch:
            low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
            x = (x - low) / (high - low).clamp(min=1e-5)
        return (x * 255).round().to(torch.uint8).cpu()


def scale_pixels(x: np.ndarray) -> Tensor:
    """uint8 (N, 3, H, W) -> float in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(x)).float() / 127.5 - 1


@lru_cache(maxsize=2)
def _compact_judge(name: str, data: Path, folder: Path, device: str) -> Judge:
    if name == resnet8.SmallResNetJudge.name:
        return small_judge(folder, device)
    if name == resnet8.SmallResNetInceptionJudge.name:
        return inception_judge(folder, data, device, Cifar10Class.name)
    x, y = read_image_set(data, "test", default_root() / "images", SIZE, Cifar10Class.name)
    return outside_judge(data, Images(x[::2], y[::2]), device, Cifar10Class.name, default_root() / "thresholds")


@lru_cache(maxsize=2)
def _judge(name: str, data: Path, folder: Path | None, device: str, channels: Channels) -> Judge:
    cache = default_root() / "images"
    if name == PixelNeighbours.name:
        train, test = (read_image_set(data, split, cache, SIZE, Cifar10Class.name) for split in SPLITS)
        return PixelNeighbours(train, test)
    if folder is None:
        raise UserError(
            "the judge is a ResNet-34 that is trained once: `unlearnbench pretrain --task cifar10-class --judge`, then "
            "--pretrained with the folder that it made, in addition to --checkpoint if the original is a .pth file"
        )
    state, hash = load_checked(folder, "judge.safetensors")
    return ResNetJudge(state, hash, device, check_source(data, INCEPTION, Cifar10Class.name), channels=channels)
