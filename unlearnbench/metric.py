"""What a run leaves behind (`Outcome`), and the interface of a measurement on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor

from unlearnbench.diffusion import Diffusion
from unlearnbench.judges import Verdict
from unlearnbench.statistics import Interval, t_interval, wilson
from unlearnbench.task import Plan, Task


@dataclass(frozen=True)
class Score:
    """A number with what it rests on. `value` is None where it is not known, and `reason` says why."""

    value: float | None
    n: int
    missing: int = 0
    interval: Interval | None = None
    reason: str | None = None
    per_image: np.ndarray | None = None
    """(n,) float, NaN where missing, in the order of the outcome's side."""

    @classmethod
    def share(cls, hits: Tensor, missing: Tensor) -> Score:
        """Proportion of true values among those not missing, with Wilson's interval."""
        return cls._over(hits, missing, lambda kept: wilson(int(kept.sum()), len(kept)))

    @classmethod
    def mean(cls, values: Tensor, missing: Tensor) -> Score:
        """Mean of the values not missing, with a t-interval over images."""
        return cls._over(values, missing, t_interval)

    @classmethod
    def _over(cls, values: Tensor, missing: Tensor, interval: Callable[[np.ndarray], Interval | None]) -> Score:
        images = values.double().numpy().copy()
        images[missing.numpy()] = np.nan
        kept = images[~np.isnan(images)]
        lost = len(images) - len(kept)
        if not len(kept):
            return cls(None, len(images), lost, reason="no image could be judged" if lost else "no images")
        return cls(float(kept.mean()), len(images), lost, interval(kept), per_image=images)


class Side(NamedTuple):
    """The forget or the retain samples of an outcome."""

    samples: Tensor
    """uint8 (N, 3, H, W)."""
    asked: Tensor
    """(N,) labels that were asked for."""
    verdict: Verdict


@dataclass(frozen=True)
class Outcome:
    """All that metrics may look at; samples are drawn and judged once and shared."""

    task: Task
    model: Diffusion
    original: Diffusion
    plan: list[Plan]
    samples: Tensor
    """uint8 (N, 3, H, W), in the plan's order."""
    verdict: Verdict
    features: Tensor
    """(R, D) of the retain samples."""
    reference: Tensor
    """(M, D) of the protocol's real retain images."""
    cost: dict[str, Any]
    """Measured while unlearning, by the names of the cost metrics."""

    def _side(self, group: str) -> Side:
        import torch

        index = torch.tensor([i for i, plan in enumerate(self.plan) if plan.group == group], dtype=torch.long)
        asked = torch.tensor([self.plan[i].label for i in index.tolist()], dtype=torch.long)
        return Side(self.samples[index], asked, Verdict(self.verdict.probabilities[index], self.verdict.refused[index]))

    @cached_property
    def forget(self) -> Side:
        """Samples of the forgotten concept."""
        return self._side("forget")

    @cached_property
    def retain(self) -> Side:
        """Samples of the other concepts."""
        return self._side("retain")


class Metric(ABC):
    """One measurement, one file; the file's name is the metric's. An attack is a metric that searches first."""

    name: ClassVar[str] = ""
    title: ClassVar[str]
    axis: ClassVar[Literal["efficacy", "utility", "robustness", "cost"]]
    better: ClassVar[Literal["higher", "lower"] | None]
    unit: ClassVar[str] = ""
    """As shown, after scaling."""
    scale: ClassVar[float] = 1.0
    """What values are multiplied by where they are shown."""
    stored: ClassVar[str | None] = None
    """Unit of the value itself, as records hold it; the shown one when left out."""
    digits: ClassVar[int] = 1
    """Decimals shown."""
    rank: ClassVar[int] = 50
    """Place within its axis, small first."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    @abstractmethod
    def measure(self, outcome: Outcome, budget: int | None = None) -> Score:
        """Score an outcome; `budget` in model evaluations, for attacks."""
