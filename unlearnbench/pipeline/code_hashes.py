"""Fingerprints of the code that results pass through: the engine of a task, a method, a metric, an attack, a judge."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from unlearnbench.fingerprint import Limits, definitions, fingerprint

if TYPE_CHECKING:
    from unlearnbench.judges import Judge
    from unlearnbench.judges.scorer import Witness
    from unlearnbench.method import Method
    from unlearnbench.metric import Metric
    from unlearnbench.task import Task

ENGINE_VERSION = 2
"""Raised by hand, with a line in the changelog, when a change to the engine changes numbers on purpose."""
NOT_OF_TASKS = frozenset({"protocols", "pretrain", "pretrain_judge", "looked_over"})
"""Left out: protocols and weights have their own hashes."""
NOT_OF_METHODS = frozenset(
    {"presets", "space", "incomplete", "experimental", "least", "resumes", "version", "require_fit"}
)
"""Left out: records hold the settings, whatever preset they come from."""
NOT_OF_METRICS = frozenset({"title", "rank", "digits", "known", "expected", "everywhere", "version"})
"""Left out: how values are shown, and the known answers for `selfcheck`."""


def _engine() -> tuple[Any, ...]:
    """What every run passes through, whatever the task: model interface, training, sampling, judging, scoring."""
    from unlearnbench.compute.precision import Resources
    from unlearnbench.diffusion.model import Diffusion
    from unlearnbench.judges import look
    from unlearnbench.judges.scorer import asked
    from unlearnbench.metric import FeatureMetric, Outcome
    from unlearnbench.pipeline.sampling import _drawn
    from unlearnbench.pipeline.scoring import score_record
    from unlearnbench.pipeline.unlearning import loaded, unlearn
    from unlearnbench.task import Task
    from unlearnbench.training import gradients, minimise, seeded

    training, sampling = (gradients, minimise, seeded, unlearn), (loaded, _drawn, look, asked)
    return Diffusion, Task, FeatureMetric, Outcome, Resources, *training, *sampling, score_record


@cache
def _core() -> Limits:
    limits = Limits(members=NOT_OF_TASKS)
    return Limits(definitions(_engine(), limits))


@cache
def engine_hash(task: type[Task]) -> str:
    """Hash of the code that a task's results pass through: model, data, sampling, training, judges and scoring.

    Models and judges that the task does not use are left out, so that a new one leaves old results valid.
    """
    return fingerprint([task, *_engine()], Limits(members=NOT_OF_TASKS))


@cache
def method_code(cls: type[Method]) -> str:
    """Hash of a method and everything that it uses besides the engine."""
    return fingerprint([cls], Limits(_core().without, NOT_OF_METHODS))


@cache
def _metric_code(cls: type[Metric]) -> str:
    return fingerprint([cls], Limits(_core().without, NOT_OF_METRICS))


def metric_code(metric: Metric) -> str:
    """Hash of a metric or an attack and everything that it uses besides the engine."""
    return _metric_code(type(metric))


def judge_code(judge: Judge | Witness) -> str:
    """Hash of a judge or scorer, with its networks."""
    inner = getattr(judge, "judge", judge)
    extractor = getattr(inner, "extractor", None)
    kinds: tuple[Any, Any] = type(inner), None if extractor is None else type(extractor)
    return _judge_code(*kinds)


@cache
def _judge_code(judge: Any, extractor: Any) -> str:
    from unlearnbench.judges import look

    return fingerprint([judge, look, *([extractor] if extractor else [])])
