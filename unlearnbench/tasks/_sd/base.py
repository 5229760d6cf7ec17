"""Base of tasks on full Stable Diffusion models: weights, generated training images and judges."""

from __future__ import annotations

import json
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from unlearnbench.compute.device import exact
from unlearnbench.compute.precision import in_fitting_parts
from unlearnbench.data.sources import Source, check_source, known_hash, missing_source, source_path
from unlearnbench.data.wording import Wording
from unlearnbench.diffusion.model import Batch, Diffusion
from unlearnbench.diffusion.schedulers import Scheduled
from unlearnbench.errors import Unsupported, UserError
from unlearnbench.fingerprint import fingerprint
from unlearnbench.hashing import digest, seed_of
from unlearnbench.judges import Judge
from unlearnbench.judges.clip import CONFIG, WEIGHTS, Clip, ClipScore
from unlearnbench.judges.inception import Extractor
from unlearnbench.judges.lpips import ALEXNET, Lpips, has_lpips
from unlearnbench.judges.scorer import Witness
from unlearnbench.models.configuration import configuration
from unlearnbench.models.loading import load_stable_diffusion, load_tokenizers, untrained, weight_paths
from unlearnbench.models.model_index import require_folder
from unlearnbench.models.stable_diffusion import StableDiffusion
from unlearnbench.reporting import track
from unlearnbench.storage.store import default_root
from unlearnbench.storage.weights import load_state, save_state
from unlearnbench.task import ModelIdentity, Side, on_cpu, shuffled
from unlearnbench.tasks._cifar10 import INCEPTION
from unlearnbench.tasks._text import TextProtocol, TextTask
from unlearnbench.training import splitting

ABOUT = "about.json"
"""File next to generated training images that names their task, for `purge`."""
HUB = "https://huggingface.co/"
PARTS = {
    "": ("model_index.json",),
    "scheduler/": ("scheduler_config.json",),
    "text_encoder/": ("config.json", "model.safetensors"),
    "tokenizer/": ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"),
    "unet/": ("config.json", "diffusion_pytorch_model.safetensors"),
    "vae/": ("config.json", "diffusion_pytorch_model.safetensors"),
}
SECOND = {"text_encoder_2/": PARTS["text_encoder/"], "tokenizer_2/": PARTS["tokenizer/"]}


def model_files(folder: str, hub: str, licence: str, parts: Mapping[str, tuple[str, ...]] = PARTS) -> list[Source]:
    """List the files of a diffusers folder on the hub."""
    return [
        Source(f"{folder}/{part}{name}", f"{HUB}{hub}/resolve/main/{part}{name}", licence, False, "original")
        for part, names in parts.items()
        for name in names
    ]


def clip_files(folder: str, hub: str) -> list[Source]:
    """List the files of an open_clip folder on the hub."""
    return [
        Source(f"{folder}/{name}", f"{HUB}{hub}/resolve/main/{name}", "mit (OpenAI's CLIP)", False, "CLIP score")
        for name in (CONFIG, WEIGHTS)
    ]


SD14 = model_files("sd-v1-4", "CompVis/stable-diffusion-v1-4", "creativeml-openrail-m")
CLIPS = {"clip_b32": "clip-vit-b-32", "clip_l14": "clip-vit-l-14"}
"""Role of each CLIP model, and its folder."""
CLIP_FILES = [
    *clip_files(CLIPS["clip_b32"], "timm/vit_base_patch32_clip_224.openai"),
    *clip_files(CLIPS["clip_l14"], "timm/vit_large_patch14_clip_224.openai"),
]


@dataclass(frozen=True)
class PictureProtocol(TextProtocol):
    """A protocol on full Stable Diffusion models."""

    size: int = 512
    """Pixels per side; 0: whatever size the model generates, for trials."""
    features: Literal["inception", "pixels"] = "inception"
    """The features that FID and similar metrics use."""
    training_images: int = 1000
    """Number of images that the original generates for each side, for methods that train on images."""


class StableDiffusionTask(TextTask):
    """A task on Stable Diffusion v1.4 unless it says otherwise; this project has never run it on the real weights.

    Methods train on latents that the original generates. They are kept as latents: the papers decode images and encode
    them again, with an autoencoder that no method changes.
    """

    protocol: PictureProtocol
    provides = frozenset({"forget images", "retain images", "concept"})
    model_folder: ClassVar[str] = "sd-v1-4"
    pixels = 512
    sources: ClassVar[tuple[Source, ...]]
    data_name: ClassVar[str] = "stable-diffusion"
    """Download folder that these tasks share, since they use the same gigabytes of files."""
    licence, origin = "creativeml-openrail-m", "CompVis/stable-diffusion-v1-4"

    def __init__(self, forget: str, *, data: Path | None = None, checkpoint: Path | None = None, **settings: Any):
        super().__init__(forget, **settings)
        if self.weights is not None:
            raise UserError(f"{self.name} takes no --pretrained: give a diffusers folder or a file with --checkpoint")
        if checkpoint is not None and not checkpoint.exists():
            raise UserError(f"no --checkpoint at {checkpoint}: give a diffusers folder or a file that exists")
        self.folder, self.checkpoint = data or default_root() / "data" / self.data_name, checkpoint
        self._batches: dict[Side, Batch] = {}

    # ---- the model -------------------------------------------------------------------------------------------------

    @property
    def layout(self) -> Path:
        """The diffusers folder that describes the model: that of --checkpoint, or the fetched one."""
        given = self.checkpoint is not None and self.checkpoint.is_dir()
        folder: Any = self.checkpoint if given else self.folder / self.model_folder
        if not folder.is_dir():
            single = f", and {self.checkpoint} contains no configuration" if self.checkpoint is not None else ""
            raise UserError(
                f"{self.name} ships no weights, and there are none in {folder}{single}: `unlearnbench fetch --task "
                f"{self.name}`, or give a diffusers folder with --checkpoint"
            )
        require_folder(folder)
        return folder

    @cached_property
    def tokenizers(self) -> Sequence[Any]:
        """The model's tokenizers, one or two."""
        return load_tokenizers(self.layout)

    def architecture(self, seed: int) -> Diffusion:
        """The networks that the folder describes."""
        return self._set(untrained(self.layout, seed))

    def pretrained(self) -> Diffusion:
        """Load --checkpoint, a diffusers folder or one file, or the fetched folder, in float32."""
        if self.checkpoint is not None and not self.checkpoint.is_dir():
            return self._set(load_stable_diffusion(self.checkpoint, config=self.layout))
        return self._set(load_stable_diffusion(self.layout))

    def _set(self, model: Any) -> Diffusion:
        drawn, meant = model.shape[1] * model.scale_factor, self.protocol.size
        if meant not in (0, drawn):
            raise UserError(
                f"the model in {self.layout} draws {drawn}x{drawn} pixels, protocol {self.protocol.name} means "
                f"{meant}x{meant}: give the model that it is for, or --protocol smoke to try another"
            )
        model = model.float()
        model.sampler = self.protocol.sampler
        return model.to(self.device)

    def model_identity(self) -> ModelIdentity:
        """Hash of the model's weight files that are loaded, and of its configuration files."""
        if self.checkpoint is not None and self.checkpoint.is_file():
            return ModelIdentity(known_hash(self.checkpoint), configuration(self.layout))
        files = sorted(weight_paths(self.layout))
        weights = digest([[path.relative_to(self.layout).as_posix(), known_hash(path)] for path in files])
        return ModelIdentity(weights, configuration(self.layout))

    def train(self, seed: int, which: Literal["both", "retain"] = "both") -> Diffusion:
        """Raises an error: training takes 150,000 GPU hours."""
        raise Unsupported(
            f"{self.name} cannot be trained again: there is no retrained Stable Diffusion to compare with"
        )

    def pretrain(self, out: Path, seed: int = 0) -> dict[str, float]:
        """Raises an error: nothing is trained for this task."""
        raise UserError(f"nothing of {self.name} is trained here: `unlearnbench fetch --task {self.name}` brings it")

    # ---- training images -------------------------------------------------------------------------------------------

    @abstractmethod
    def training_prompts(self, which: Literal["forget", "retain"]) -> list[str]:
        """The task's prompts for which the original generates training images, which are their captions."""

    def image_prompts(self, which: Literal["forget", "retain"]) -> list[str]:
        """The prompts for which training images are generated: those of the method, or the task's."""
        return list(self.wording.prompts(which) or self.training_prompts(which))

    def with_words(self, words: Wording) -> TextTask:
        """This task as a method sees it that has words of its own, with training images drawn for them."""
        worded: Any = super().with_words(words)
        worded._batches = {}
        return worded

    def data(self, which: Side) -> Batch:
        """Latents that the original generated for each side's prompts in turn, with the prompts as captions."""
        sides: tuple[Literal["forget", "retain"], ...] = ("forget", "retain") if which == "both" else (which,)
        x0, y = zip(*(self._drawn(side) for side in sides), strict=True)
        return Batch(torch.cat(x0), torch.cat(y))

    def count(self, which: Side) -> int:
        """Number of training images, which are generated if they do not exist."""
        return len(self.data(which).x0)

    @property
    def kept(self) -> Path:
        """Folder of the training images that the original generated, as latents."""
        return default_root() / "generated"

    def undrawn(self, side: Literal["forget", "retain"]) -> int:
        """Number of training images that are not in `kept` yet."""
        count, size = self.protocol.training_images, self.protocol.chunk
        return sum(min(size, count - start) for start in self._missing(self._captions_kept_in(side)[1]))

    def _missing(self, folder: Path) -> list[int]:
        """Where the parts begin that the folder lacks."""
        starts = range(0, self.protocol.training_images, self.protocol.chunk)
        return [start for start in starts if not (folder / f"{start}.safetensors").is_file()]

    def _captions_kept_in(self, side: Literal["forget", "retain"]) -> tuple[list[str], Path]:
        """Captions of a side's training images, and the folder of what was drawn for them."""
        prompts, count, size = self.image_prompts(side), self.protocol.training_images, self.protocol.chunk
        captions = [prompts[i % len(prompts)] for i in range(count)]
        about = [self.name, side, captions, self.model_identity().hash, repr(self.protocol.sampler), size, self.device]
        about.append(fingerprint([Scheduled, StableDiffusion]))
        folder = self.kept / digest(about)[:32]
        return captions, folder

    def _drawn(self, side: Literal["forget", "retain"]) -> tuple[Tensor, Tensor]:
        prompts, count, size = self.image_prompts(side), self.protocol.training_images, self.protocol.chunk
        if self.limit is not None:  # a trial: noise is enough, and nothing is kept
            shape, count = on_cpu(self).architecture(0).shape, min(count, 4 * self.limit)
            x0 = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
            return x0, self.tokens([prompts[i % len(prompts)] for i in range(count)])
        captions, folder = self._captions_kept_in(side)
        starts = range(0, count, size)
        missing = self._missing(folder)
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ABOUT).write_text(json.dumps({"task": self.name, "side": side}), encoding="utf-8")
            model: Any = self.pretrained().eval()
            with splitting():
                for start in track(missing, len(missing), f"drawing {side} images"):
                    index = range(start, min(start + size, count))
                    y = self.tokens([captions[i] for i in index]).to(self.device)
                    seeds = [seed_of("training images", side, i) >> 1 for i in index]
                    with exact(), torch.autocast(self.device, enabled=False), torch.inference_mode():
                        x = in_fitting_parts("drawing training images", partial(model.sample, y, seeds))
                    _keep(x.cpu().clone(), folder / f"{start}.safetensors")
        x0 = torch.cat([load_state(folder / f"{start}.safetensors")["x0"] for start in starts])
        return x0, self.tokens(captions)

    def _stream(self, side: Side, size: int, seed: int) -> Iterator[Batch]:
        if side not in self._batches:
            self._batches[side] = self.data(side)
        x0, y = (tensor.to(self.device) for tensor in self._batches[side])
        for index in shuffled(len(x0), size, seed_of("batches", side, seed) >> 1):
            yield Batch(x0[index.to(x0.device)], y[index.to(x0.device)])

    def captions(self, which: Literal["forget", "retain"]) -> Tensor:
        """The training prompts of a side, and its names; only the prompts where a method gives its own."""
        prompts = self.tokens(self.image_prompts(which))
        return prompts if self.wording.prompts(which) else torch.cat([prompts, self.names(which)])

    # ---- what is measured ------------------------------------------------------------------------------------------

    def to_uint8(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> uint8, rounded and clamped."""
        return ((x.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().contiguous()

    @cached_property
    def extractor(self) -> Extractor:
        """Inception, or pixels if the protocol says so."""
        if self.protocol.features == "pixels":
            return Extractor(None, self.device)
        return Extractor(check_source(self.folder, INCEPTION, self.name), self.device)

    def witnesses(self) -> Mapping[str, Witness]:
        """Two CLIP models, LPIPS where it is installed and its file is there, and those that a task adds."""
        return self._witnesses

    @cached_property
    def _witnesses(self) -> dict[str, Witness]:
        return {role: make() for role, make in self.witness_makers().items()}

    def witness_makers(self) -> dict[str, Callable[[], Witness]]:
        """What loads each witness, by its role. It raises `UserError` if a file is missing."""

        def clip_score(name: str) -> ClipScore:
            return ClipScore(self.clip(name), name)

        found: dict[str, Callable[[], Witness]] = {role: partial(clip_score, name) for role, name in CLIPS.items()}
        if has_lpips() and source_path(self.folder, ALEXNET).is_file():
            found["lpips"] = lambda: Lpips(check_source(self.folder, ALEXNET, self.name), self.device)
        return found

    def clip(self, name: str) -> Clip:
        """The CLIP model of this name in the data folder. Raises `UserError` if a file of it is missing."""
        for source in CLIP_FILES:
            if source.name.startswith(f"{name}/") and not source_path(self.folder, source).is_file():
                raise missing_source(self.folder, source, task=self.name)
        return _clip(self.folder / name, self.device)

    def judge_without_features(self) -> Judge:
        """The judge without Inception, where its file is missing and no features are needed."""
        self.__dict__["extractor"] = Extractor(None, self.device)
        return self.judge()


def _keep(x0: Tensor, path: Path) -> None:
    """Write the latents completely or not at all; two processes that generate the same may both do so."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as new:
            save_state({"x0": x0}, Path(new) / path.name)
            (Path(new) / path.name).replace(path)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UserError(f"cannot write {path} ({why}): free the disk, or move UNLEARNBENCH_CACHE") from error


@lru_cache(maxsize=2)
def _clip(folder: Path, device: str) -> Clip:
    """Load each CLIP model once."""
    return Clip(folder, device)


def smoke(**settings: Any) -> dict[str, Any]:
    """Settings for a trial run, on a model of any size."""
    return {
        "sampler": Scheduled(3, guidance=3.0),
        "size": 0,
        "features": "pixels",
        "training_images": 4,
        "forget_images": 6,
        "retain_images": 6,
        "chunk": 3,
        **settings,
    }
