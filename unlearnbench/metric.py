"""The result of a run (`Outcome`), and the interface of metrics that measure it."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor

from unlearnbench.diffusion.model import Diffusion
from unlearnbench.judges import Seen, Verdict
from unlearnbench.judges.scorer import Testimony
from unlearnbench.statistics import Interval, block_jackknife, t_interval, wilson
from unlearnbench.storage.lazy_arrays import Table, taken
from unlearnbench.task import Plan, Task

if TYPE_CHECKING:
    from unlearnbench.method import Method


@dataclass(frozen=True)
class Score:
    """A number with its evidence. `value` is None if unknown, and `reason` says why."""

    value: float | None
    n: int
    missing: int = 0
    interval: Interval | None = None
    reason: str | None = None
    per_image: np.ndarray | None = None
    """(N,) float in the order of the metric's side; NaN where missing or not applicable."""
    floor: float | None = None
    """The score of real images of another split, used instead of the samples."""
    parts: dict[str, Any] | None = None
    """The summands of the value by name; for attacks, additional numbers."""
    spent: np.ndarray | None = None
    """(N,) for attacks: the cost of each target until it was recovered or given up."""
    limit: float | None = None
    """For attacks: the maximum cost per target."""

    @classmethod
    def share(cls, hits: Tensor, missing: Tensor, counted: Tensor | None = None) -> Score:
        """Proportion of true values among those not missing, with Wilson's interval.

        Images that are not `counted` (N,), if given, are left out: they are neither in n nor missing.
        """
        return cls._over(hits, missing, lambda kept: wilson(int(kept.sum()), len(kept)), counted)

    @classmethod
    def mean(cls, values: Tensor, missing: Tensor) -> Score:
        """Mean of the values that are not missing, with a t-interval over images."""
        return cls._over(values, missing, t_interval)

    @classmethod
    def _over(
        cls,
        values: Tensor,
        missing: Tensor,
        interval: Callable[[np.ndarray], Interval | None],
        counted: Tensor | None = None,
    ) -> Score:
        images = values.double().numpy().copy()
        images[missing.numpy()] = np.nan
        n = len(images)
        if counted is not None:
            images[~counted.numpy()] = np.nan
            n = int(counted.sum())
        kept = images[~np.isnan(images)]
        lost = n - len(kept)
        if not len(kept):
            return cls(None, n, lost, reason="no image could be judged" if lost else "no images")
        return cls(float(kept.mean()), n, lost, interval(kept), per_image=images)


class Side(NamedTuple):
    """The samples of one group of an outcome."""

    samples: Table
    """uint8 (N, 3, H, W)."""
    asked: Tensor
    """(N,) requested labels."""
    verdict: Verdict
    """The verdict on the domain of the label."""
    other: Tensor
    """(N,) labels requested in a second domain; -1: none."""
    besides: Verdict
    """The verdict on the domain of the second label."""


class Loaded:
    """A field that is given a model, or a function that loads it when the field is first read."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, owner: Any, cls: type | None = None) -> Any:
        if owner is None:
            return self
        found = vars(owner)[self.name]
        if inspect.isfunction(found):
            found = vars(owner)[self.name] = found()
        return found

    def __set__(self, owner: Any, value: Diffusion | Callable[[], Diffusion]) -> None:
        vars(owner)[self.name] = value


@dataclass(frozen=True)
class Outcome:
    """Everything that metrics may use. Samples are drawn and judged once and shared."""

    task: Task
    model: Diffusion
    original: Diffusion
    """These two may be given as functions, which load the model when a metric first asks for it."""
    plan: list[Plan]
    samples: Table
    """uint8 (N, 3, H, W), in the plan's order."""
    verdict: Verdict
    """The verdict on the domain of each planned label."""
    besides: Verdict
    """The verdict on the domain of each planned second label."""
    features: Table
    """(R, D) features of the retain samples."""
    reference: Table
    """(M, D) features of the protocol's real retain images."""
    real: Table
    """(M, D) features of as many real retain images of another split."""
    cost: dict[str, Any]
    """Costs measured while unlearning, by the names of the cost metrics."""
    witnessed: Mapping[str, Testimony] = field(default_factory=dict)
    """Values for the samples from models other than the judge, by the models' roles."""
    method: Method | None = None
    """The method that made the model, for attacks that apply it again."""
    forget_features: Table | None = None
    """(F, D) features of the forget samples; None where the judge failed to compute them."""
    drawing: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Context in which attacks draw images, for the run's precision."""

    @classmethod
    def of(cls, samples: Table, plan: list[Plan], seen: Seen, reference: Seen, real: Seen, **parts: Any) -> Outcome:
        """Build an outcome from a judge's results on samples, reference and real images. Failed features are empty."""
        import torch

        retain, forget = (
            torch.tensor([item.group == group for item in plan], dtype=torch.bool) for group in ("retain", "forget")
        )
        features = taken(seen.features, retain) if len(seen.features) else seen.features
        parts.setdefault("forget_features", taken(seen.features, forget) if len(seen.features) else None)
        return cls(
            plan=plan,
            samples=samples,
            verdict=seen.verdict.about(torch.tensor([item.label for item in plan], dtype=torch.long), seen.domains),
            besides=seen.verdict.about(torch.tensor([item.other for item in plan], dtype=torch.long), seen.domains),
            features=features,
            reference=reference.features,
            real=real.features,
            **parts,
        )

    def index(self, group: str) -> Tensor:
        """Positions (n,) of one group's samples in the plan."""
        import torch

        return torch.tensor([i for i, plan in enumerate(self.plan) if plan.group == group], dtype=torch.long)

    def said(self, role: str, column: str, group: str) -> Tensor:
        """A witness's values for one group's samples (n,); NaN is missing."""
        return self.witnessed[role].of(column, self.index(group))

    def side(self, group: str) -> Side:
        """The samples of one group."""
        import torch

        index = self.index(group)
        asked = torch.tensor([self.plan[i].label for i in index.tolist()], dtype=torch.long)
        other = torch.tensor([self.plan[i].other for i in index.tolist()], dtype=torch.long)
        own, besides = (
            Verdict(verdict.probabilities[index], verdict.refused[index]) for verdict in (self.verdict, self.besides)
        )
        return Side(taken(self.samples, index), asked, own, other, besides)

    @cached_property
    def forget(self) -> Side:
        """Samples of the forgotten concept."""
        return self.side("forget")

    @cached_property
    def retain(self) -> Side:
        """Samples of the other concepts."""
        return self.side("retain")


for _name in ("model", "original"):  # not as defaults, which these two do not have
    setattr(Outcome, _name, Loaded(_name))


class Known(NamedTuple):
    """A test case with a known answer."""

    case: str
    outcome: Outcome
    low: float | None
    """Smallest allowed value; None if there must be no value."""
    high: float | None = None
    """Largest allowed value; defaults to `low`."""
    quality: Literal["good", "bad"] | None = None
    """Checks that `better` points the right way: every good case must beat every bad one."""
    missing: int = 0


class Metric(ABC):
    """One measurement in one file; the file's name is the metric's name. An attack is a metric that searches first."""

    name: ClassVar[str] = ""
    title: ClassVar[str]
    axis: ClassVar[Literal["efficacy", "utility", "robustness", "cost"]]
    better: ClassVar[Literal["higher", "lower"] | None]
    unit: ClassVar[str] = ""
    """Unit shown, after scaling."""
    scale: ClassVar[float] = 1.0
    """Factor applied to values for display."""
    stored: ClassVar[str | None] = None
    """Unit of the value in records; defaults to the unit shown."""
    digits: ClassVar[int] = 1
    """Decimals shown."""
    version: ClassVar[int] = 1
    """Increased, with a line in the changelog, when equal samples no longer give equal values."""
    rank: ClassVar[int] = 50
    """Position within its axis, smallest first."""
    side: ClassVar[str | None] = None
    """The group of samples that `Score.per_image` refers to, if it is set."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    limits: ClassVar[tuple[float | None, float | None]] = (None, None)
    """Smallest and largest possible value; see `bounds`."""

    @classmethod
    def bounds(cls) -> tuple[float | None, float | None]:
        """Limits of intervals: 0 and 1 for shares, 0 for costs, otherwise `limits`."""
        return (0.0, 1.0) if cls.stored == "share" else (0.0, None) if cls.axis == "cost" else cls.limits

    everywhere: ClassVar[bool] = True
    """Whether it applies to every task. Tables omit other metrics if no record has them."""

    judge_needs: ClassVar[str | None] = None
    """An attribute of the task's judge that must be true; otherwise records omit the metric."""

    witness: ClassVar[str | tuple[str, ...] | None] = None
    """The roles of the witnesses that it uses; if a task lacks one, records omit the metric."""

    @classmethod
    def roles(cls) -> set[str]:
        """The roles of the witnesses that it uses, as a set."""
        return {cls.witness} if isinstance(cls.witness, str) else set(cls.witness or ())

    def applies(self, plan: Sequence[Plan]) -> bool:
        """Whether a task plans images that this metric uses; otherwise records omit the metric."""
        return self.side is None or any(item.group == self.side for item in plan)

    @abstractmethod
    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Score an outcome. `budget` is the number of model evaluations, for attacks."""

    @abstractmethod
    def known(self) -> Iterator[Known]:
        """Return cases with known answers for `selfcheck`: at least one, if possible both good and bad ones.

        `unlearnbench.testing.toy` helps to build them.
        """

    def expected(self, control: str, original: float) -> tuple[float, float] | None:
        """Range in which a control's value must lie on a real task, given the original's value; None: no claim."""
        return None


class FeatureMetric(Metric):
    """Compares the judge's features of retain samples with those of as many real retain images.

    The floor compares other real images instead of the samples. Without features there is no value.
    """

    against: ClassVar[Literal["reference", "real"]] = "reference"
    """The real images, by their name in an outcome, that samples are compared with; the others give the floor.

    "real" are training images, and so is the reference if the protocol takes it from the training split."""

    def least(self, k: int) -> int:
        """Minimum number of images on each side, given the protocol's number of neighbours."""
        return 2

    @abstractmethod
    def between(self, generated: Table, real: Table, k: int) -> float:
        """The value for features (n, D) of both sides, which may be too many to hold in memory at once."""

    def interval(self, value: float, generated: Table, real: Table, k: int) -> Interval | None:
        """Interval of the value: delete-block jackknife over samples and reference together."""
        return block_jackknife(lambda kept: self.between(taken(generated, kept), taken(real, kept), k), len(generated))

    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Compute the value, its interval and the floor."""
        k = outcome.task.protocol.k
        reference, other = outcome.reference, outcome.real
        if self.against == "real" and outcome.task.protocol.reference != "train":
            reference, other = other, reference
        n, least = min(len(outcome.features), len(reference)), self.least(k)
        if n < least:
            return Score(None, n, reason=f"{n} images with features on a side, at least {least} are needed")

        generated, real = (taken(side, slice(n)) for side in (outcome.features, reference))
        found = self.between(generated, real, k)
        floor = self.between(taken(other, slice(n)), real, k) if len(other) >= n else None
        return Score(found, n, interval=self.interval(found, generated, real, k), floor=floor)
