"""Draw images from a model, have them judged, and score them: the one way from a model to metrics' values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from unlearnbench.diffusion.model import Diffusion
from unlearnbench.metric import Metric, Outcome, Score
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.fingerprint import model_parts
from unlearnbench.pipeline.judging import judged, observed, witnessed
from unlearnbench.pipeline.sampling import sample_images, stored_images
from unlearnbench.pipeline.scoring import score_metric
from unlearnbench.pipeline.stored_weights import original_state
from unlearnbench.reporting import phase, track
from unlearnbench.storage.lazy_arrays import Rows
from unlearnbench.storage.store import Store
from unlearnbench.task import Plan


def original_images(cell: Cell, original: Callable[[], Diffusion], plan: list[Plan], store: Store) -> Rows:
    """The original's images of a plan: those of its own run if they are in the store, else drawn and kept."""
    identity = {**model_parts(cell.task, original_state(cell.task)), "wrap": None}
    found = stored_images(cell, identity, plan, store)
    return sample_images(cell, original(), identity, plan, store) if found is None else found


class Measurement(NamedTuple):
    """A model's images, what was seen on them, and the scores."""

    plan: list[Plan]
    samples: Rows
    """uint8 (N, 3, H, W), in the order of the plan."""
    outcome: Outcome
    scores: dict[str, Score]
    judge_error: str | None
    """Why the judge failed on some images; None where it did not."""
    scorer_error: str | None
    """The same of the task's further detectors and scorers."""


def measure(
    cell: Cell,
    model: Callable[[], Diffusion],
    original: Callable[[], Diffusion],
    metrics: Mapping[str, Metric],
    plan: list[Plan],
    identity: dict[str, Any],
    store: Store,
    *,
    cost: dict[str, Any] | None = None,
    references: bool = True,
    scorers: bool = True,
    force: bool = False,
) -> Measurement:
    """Draw the plan's images from `model`, have them judged, and score them by `metrics`.

    `model` and `original` load a model. The first is loaded to draw, and kept no longer than that; both are loaded
    again where a metric asks for them, which no metric of this package does.
    `identity` is what the images depend on besides plan and protocol, for the store's keys (see `sample_parts`).
    `cost` is what unlearning took, for metrics of cost. Without `references` no real images are judged: this is for
    metrics that look at one image at a time. Without `scorers` the judge is the only one who looks.

    Raises `Diverged` where samples are not finite.
    """
    task = cell.task

    def originals() -> Rows:
        return original_images(cell, original, plan, store)

    judge = task.judge()
    samples, seen, known = observed(cell, judge, model(), identity, plan, store, force, scorers)
    if references:
        with phase("judging real images"):
            reference, real = judged(judge, task.reference(), store), judged(judge, task.floor(), store)
    else:
        reference = real = seen._replace(features=torch.zeros(0, 0), error=None)
    with phase("further scorers"):
        testimony = witnessed(task, samples, plan, store, known, originals) if scorers else {}
    about: dict[str, Any] = {"task": task, "model": model, "original": original, "cost": cost or {}}
    outcome = Outcome.of(samples, plan, seen, reference, real, **about, witnessed=testimony)
    with phase("scoring"):
        scores = {
            name: score_metric(metric, outcome) for name, metric in track(metrics.items(), len(metrics), "metrics")
        }
    return Measurement(
        plan=plan,
        samples=samples,
        outcome=outcome,
        scores=scores,
        judge_error=seen.error or reference.error or real.error,
        scorer_error=next((said.error for said in testimony.values() if said.error), None),
    )
