"""A task fixes every choice that makes methods comparable: data, substitute, seeds, sampler, judge and counts."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from unlearnbench.diffusion.model import Batch, Diffusion
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.errors import Unsupported, UserError, unknown
from unlearnbench.hashing import digest, seed_of
from unlearnbench.reporting import track

if TYPE_CHECKING:
    from unlearnbench.data.concepts import Concept
    from unlearnbench.data.wording import Wording
    from unlearnbench.judges import Judge
    from unlearnbench.judges.scorer import Witness


@dataclass(frozen=True)
class ModelIdentity:
    """What defines an original model: its weights and all configuration that training and sampling depend on."""

    weights: str
    """Content hash of the weights."""
    configuration: Mapping[str, Any] = field(default_factory=dict)
    """Content of each configuration file; empty if the task's code defines everything."""
    seed: int = 0
    """The seed that the weights were trained with; 0 if unknown."""

    @property
    def hash(self) -> str:
        """Hash of weights and configuration; without configuration files, the weights' own hash."""
        return digest([self.weights, dict(self.configuration)]) if self.configuration else self.weights

    @property
    def configuration_hash(self) -> str | None:
        """Hash of the configuration only, for samples of other weights in the same model."""
        return digest(dict(self.configuration)) if self.configuration else None


@dataclass(frozen=True)
class Protocol:
    """How a task is measured. Two records are comparable if their protocols have the same hash."""

    name: str
    sampler: Sampler
    judge: str
    """Name of the judge that classifies images and provides features."""
    reference: str = "reference"
    """The split of real retain images that FID and related metrics compare with."""
    forget_images: int = 250
    """Number of samples of the forgotten concept."""
    retain_images: int = 50
    """Number of samples of each retained concept."""
    chunk: int = 50
    """Images per batch; batches start at multiples of it, counted by image index."""
    sampling_seed: int = 0
    k: int = 3
    """Number of neighbours in precision and recall."""
    version: ClassVar[int] = 2
    """Version of the protocols' meaning, increased when equal settings no longer give equal numbers."""

    @property
    def hash(self) -> str:
        """Hash of all fields."""
        return digest(asdict(self))


Side = Literal["forget", "retain", "both"]
"""Which images: of one side or of both together. The names are part of seeds, so they cannot change."""


class Plan(NamedTuple):
    """One image to draw."""

    group: str
    """"forget" or "retain"; text-to-image tasks also have "synonyms", "held_out", "neighbours" and "benign"."""
    concept: str
    label: int
    """The label that the judge should see."""
    seed: int
    """Seed of the noise."""
    prompt: str = ""
    """The prompt, for models that take text."""
    other: int = -1
    """A second label that the judge should see, in another domain (the colour of a digit); -1: none."""
    guidance: float = 0.0
    """Guidance scale of this image, if its data set gives one; 0: the sampler's."""


TaskType = TypeVar("TaskType", bound="Task")


class Task(ABC):
    """Forget one concept of a pretrained model. `seed` is the unlearning seed; `limit` caps steps, for quick checks."""

    name: ClassVar[str]
    concepts: ClassVar[tuple[str, ...]]
    protocols: ClassVar[dict[str, Protocol]]
    provides: ClassVar[frozenset[str]]
    """Kinds of access (`method.ACCESS`) that methods have here; "own concepts" if users may define concepts."""
    default_forget: ClassVar[str]
    few_retrains: ClassVar[bool] = False
    """Whether `retrain` runs for the first three unlearning seeds only, since training is costly and the same for every
    method; likeness to retrain needs three."""
    unsafe: ClassVar[bool] = False
    """Whether samples may be unsafe to show: they stay in the store, and records hold neither images nor prompts."""
    model_parts: ClassVar[frozenset[str]] = frozenset({"full"})
    """Parts of the model that methods may train, by the papers' names (see `Diffusion.parts`)."""
    defaults: ClassVar[bool] = False
    """Whether the methods' built-in settings were chosen for this task; other tasks need presets."""
    pixels: ClassVar[int] = 0
    """Pixels per side of its images; 0 if any size will do."""
    without: ClassVar[frozenset[str]] = frozenset()
    """Metrics that make no sense here, such as closed-set accuracy of a detector; records leave them out."""

    def __init__(
        self,
        forget: str,
        *,
        protocol: str = "default",
        seed: int = 0,
        device: str = "cpu",
        weights: Path | None = None,
        limit: int | None = None,
        concepts: tuple[Concept, ...] = (),
    ):
        if concepts and "own concepts" not in self.provides:
            raise UserError(f"{self.name} takes no --concept: its concepts are {', '.join(self.concepts)}")
        self.forget, self.protocol, self.seed, self.device = (
            forget if concepts else self.resolve_concept(forget),
            self.resolve_protocol(protocol),
            seed,
            device,
        )
        self.weights, self.limit = weights, limit

    # ---- the model -------------------------------------------------------------------------------------------------

    @abstractmethod
    def architecture(self, seed: int) -> Diffusion:
        """The network with fresh weights drawn from `seed`, on the task's device, with the protocol's sampler."""

    @abstractmethod
    def pretrained(self) -> Diffusion:
        """Load the original model. Its file is checked against the shipped hash."""

    @abstractmethod
    def model_identity(self) -> ModelIdentity:
        """Identify the original without loading it. Every key and record of a run contains its hash."""

    def starting(self) -> Diffusion:
        """The model that methods train (see `Method.trains`): the original, unless the protocol says otherwise."""
        return self.pretrained()

    @property
    def draws_with_dropout(self) -> bool:
        """Whether dropout stays on while the protocol's images are drawn."""
        return False

    @abstractmethod
    def train(self, seed: int, which: Literal["both", "retain"] = "both") -> Diffusion:
        """Train from scratch with the original's recipe and number of steps, on all data or without the forget set."""

    @property
    def training_steps(self) -> int | None:
        """Steps of the original's training, of which `retrain` takes as many; None if the task does not say."""
        return None

    def data_identity(self) -> str | None:
        """Content hash of the files that prompts and real images come from; None if the package ships them."""
        return None

    # ---- the data --------------------------------------------------------------------------------------------------

    @abstractmethod
    def data(self, which: Literal["forget", "retain", "both"]) -> Batch:
        """Training images of one side, or of both together, on the CPU.

        "both" is the mixture that `batches(..., "all")` draws from.
        """

    def count(self, which: Literal["forget", "retain", "both"]) -> int:
        """Number of these training images."""
        return len(self.data(which).x0)

    def undrawn(self, side: Literal["forget", "retain"]) -> int:
        """Number of training images that the original has yet to draw; 0 where a data set has them."""
        return 0

    @abstractmethod
    def reference(self) -> Iterator[Tensor]:
        """Real retain images of the protocol's reference split, uint8 (n, 3, H, W), in batches."""

    @abstractmethod
    def floor(self) -> Iterator[Tensor]:
        """As many real retain images as `reference`, from another split: their score is the floor."""

    def labelled_images(self) -> tuple[Tensor, Tensor]:
        """Real images of every concept that the judge was not trained on, uint8 (N, 3, H, W), and what they show.

        The labels are (N, D), one for each of the judge's D domains. Raises `Unsupported` where a task has none.
        """
        raise Unsupported(f"{self.name} has no real images with labels: its judge was made and tested elsewhere")

    @abstractmethod
    def substitute(self, y: Tensor) -> Tensor:
        """Conditions that replace the forgotten ones, shaped like y."""

    @abstractmethod
    def judge(self) -> Judge:
        """The protocol's judge."""

    def witnesses(self) -> Mapping[str, Witness]:
        """Models that score samples in addition to the judge, by the roles that metrics ask for."""
        return {}

    @abstractmethod
    def to_uint8(self, x: Tensor) -> Tensor:
        """Convert model output (N, C, H, W) to images (N, 3, H, W), uint8, on the CPU."""

    @abstractmethod
    def pretrain(self, out: Path, seed: int = 0) -> dict[str, float]:
        """Train the original and the judges and save them in `out`. Returns what they reach, by name."""

    def with_words(self, words: Wording) -> Task:
        """This task as a method sees it that has words of its own; what is measured stays as it is.

        Raises `UserError`: tasks take no words unless they are about text.
        """
        raise UserError(f"{self.name} has class labels, no words: leave out {', '.join(words.given)}")

    def steps(self, steps: int) -> int:
        """Return `steps`, or the cap that a conformance check set."""
        return steps if self.limit is None else min(steps, self.limit)

    def batches(
        self, steps: int, size: int, split: Literal["forget", "retain", "all"], seed: int | None = None
    ) -> Iterator[Batch]:
        """Yield `steps` batches of `size` images of one split; "all" mixes forget and retain images as in the data set.

        Every pass over the split is shuffled again, from the unlearning seed unless `seed` is given. A conformance
        check may cap `steps`.
        """
        if split not in ("forget", "retain", "all"):
            raise UserError(f"batches(split={split!r}): give forget, retain or all; paired_batches() yields pairs")
        stream = self._stream("both" if split == "all" else split, size, self.seed if seed is None else seed)
        steps = self.steps(steps)
        for _ in track(range(steps), steps, "steps"):
            yield next(stream)

    def paired_batches(self, steps: int, size: int, seed: int | None = None) -> Iterator[tuple[Batch, Batch]]:
        """Yield `steps` pairs (forget, retain), each a batch of `size` images.

        Each side of the pairs is the sequence that `batches` yields for that split and seed.
        """
        seed = self.seed if seed is None else seed
        forget, retain = self._stream("forget", size, seed), self._stream("retain", size, seed)
        steps = self.steps(steps)
        for _ in track(range(steps), steps, "steps"):
            yield next(forget), next(retain)

    def conditions(self, which: Literal["forget", "retain"], steps: int, size: int) -> Iterator[Tensor]:
        """Yield `steps` batches of `size` conditions y from `names` of one side, for methods that need no images."""
        chosen = self.names(which)
        if not len(chosen):
            raise UserError(f"{self.name} has no name to {which}: --set keep=… names something")
        generator = torch.Generator().manual_seed(seed_of("conditions", which, self.seed) >> 1)
        steps = self.steps(steps)
        for _ in track(range(steps), steps, "steps"):
            index = torch.randint(len(chosen), (size,), generator=generator)
            yield chosen[index].to(self.device)

    def names(self, which: Literal["forget", "retain"]) -> Tensor:
        """One condition for each name of the forgotten concept, or for each other concept, on the CPU."""
        labels = self.labels()
        return torch.tensor([labels[c] for c in self.concepts if (c == self.forget) == (which == "forget")])

    def captions(self, which: Literal["forget", "retain"]) -> Tensor:
        """The distinct conditions of one side's training images, on the CPU; by default its names."""
        return self.names(which)

    def _stream(self, side: Side, size: int, seed: int) -> Iterator[Batch]:
        x0, y = (tensor.to(self.device) for tensor in self.data(side))
        for index in shuffled(len(x0), size, seed_of("batches", side, seed) >> 1):
            yield Batch(x0[index.to(x0.device)], y[index.to(x0.device)])

    # ---- what is measured ------------------------------------------------------------------------------------------

    def labels(self) -> dict[str, int]:
        """Concept -> the model's label."""
        return {concept: index for index, concept in enumerate(self.concepts)}

    def erased_labels(self) -> list[int]:
        """Labels that the judge should no longer see: that of the forgotten concept, or of several erased together."""
        return [self.labels()[self.forget]]

    def plan(self) -> list[Plan]:
        """List every image of the protocol, in order. Image i of a concept has the same noise for every method."""
        labels = self.labels()
        order = [("forget", self.forget, self.protocol.forget_images)]
        order += [("retain", c, self.protocol.retain_images) for c in self.concepts if c != self.forget]
        return [
            Plan(group, concept, labels[concept], seed_of("sampling", self.protocol.sampling_seed, concept, i))
            for group, concept, count in order
            for i in range(count)
        ]

    def image_count(self) -> int:
        """Number of images in the plan, which need no data to be counted."""
        return len(self.plan())

    def inputs(self, items: Sequence[Plan]) -> Tensor:
        """Conditions y for planned images, on the task's device."""
        return torch.tensor([item.label for item in items], device=self.device)

    def forgotten(self, y: Tensor) -> Tensor:
        """Mask (B,) of the conditions that ask for the forgotten concept."""
        return y == self.labels()[self.forget]

    @classmethod
    def resolve_concept(cls, forget: str) -> str:
        """Return the concept that a user means. An unknown one raises `UserError` with similar names."""
        if forget not in cls.concepts:
            raise unknown(f"concept of {cls.name}", forget, cls.concepts)
        return forget

    @classmethod
    def resolve_protocol(cls, name: str) -> Protocol:
        """Return the protocol with this name. An unknown one raises `UserError` with similar names."""
        if name not in cls.protocols:
            raise unknown(f"protocol of {cls.name}", name, cls.protocols)
        return cls.protocols[name]


def on_cpu(task: TaskType) -> TaskType:
    """The same task on the CPU, for a look at its model that takes no memory on a GPU."""
    if task.device == "cpu":
        return task
    other = copy.copy(task)
    other.device = "cpu"
    return other


def shuffled(n: int, size: int, seed: int) -> Iterator[Tensor]:
    """Yield batches (size,) of indices below n. Every index appears once before any is repeated."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(n, generator=generator)])
        yield order[:size]
        order = order[size:]


def accepted(task: type[Any], **given: Any) -> dict[str, Any]:
    """Return the task's own settings that were given.

    Raises `UserError` for settings that the task does not take, and for a data folder that does not exist.
    """
    known = {name for cls in task.__mro__ for name in inspect.signature(vars(cls).get("__init__", object)).parameters}
    for name, value in given.items():
        if value is not None and name not in known:
            raise UserError(f"{task.name} takes no --{name}: leave it out")
    if (folder := given.get("data")) is not None and not folder.is_dir():
        wrong = "is a file, no folder" if folder.exists() else "does not exist"
        brings = f", or bring its files with `unlearnbench fetch --task {task.name} --data FOLDER`"
        have = brings if getattr(task, "sources", ()) else ""
        raise UserError(f"--data {folder} {wrong}: give a folder that has the task's data{have}")
    return {name: value for name, value in given.items() if value is not None}
