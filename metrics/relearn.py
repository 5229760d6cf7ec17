"""Relearning: fine-tune on k forget images; how soon is the concept back? On retain images alone: by itself?"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch

from unlearnbench import Attack, Batch, Diffusion, Known, Look, Outcome, Plan
from unlearnbench.attacks.search import sample_targets, sight
from unlearnbench.testing import toy_models
from unlearnbench.training import gradients

SHARES = {"half": 0.5, "90 %": 0.9}


@dataclass(frozen=True)
class Relearn(Attack):
    """AdamW on the denoising loss of `k` forget images (0: all), at a constant `lr`; trains the denoiser alone.

    Each step takes `size` images, or k where there are fewer, and costs each target that many evaluations. After the
    steps in `after` the targets are drawn. Parts: the steps after which their mean p_forget first reaches half and 90 %
    of the original's on the same noise; null where it never does (censored) or the original has none. With
    images="retain" no forgotten image is shown.
    """

    title, rank, together = "relearn", 0, True
    needs = frozenset({"forget images"})
    variants = {"1": {"k": 1}, "10": {"k": 10}, "100": {"k": 100}, "retain": {"images": "retain"}}

    targets: int = 100
    k: int = 0
    images: Literal["forget", "retain"] = "forget"
    lr: float = 1e-4
    size: int = 16
    after: tuple[int, ...] = (1, 2, 5, 10, 20, 50)

    def looks(self, outcome: Outcome, items: Sequence[Plan]) -> Iterator[Look]:
        """The first images of a fixed shuffle, so that k = 10 are ten of the hundred."""
        data = outcome.task.data(self.images)
        order = torch.randperm(len(data.x0), generator=torch.Generator().manual_seed(0))[: self.k or None]
        device = outcome.model.alpha_bar.device
        x0, y = data.x0[order].to(device), data.y[order].to(device)
        outcome.model.guidance.start(0)  # resets its state between steps; it may hold the task, so it is not copied
        model = deepcopy(outcome.model, {id(outcome.model.guidance): outcome.model.guidance})
        trained = {name: value.requires_grad_() for name, value in model.select("full").items()}
        engine = torch.optim.AdamW(trained.values(), lr=self.lr)
        size = min(self.size, len(x0))
        goal = (
            sight(outcome, sample_targets(outcome, items, model=outcome.original), items).probability.nanmean().item()
        )
        back: dict[str, float | None] = dict.fromkeys(SHARES)
        for step in range(max(self.after) + 1):
            if step in (0, *self.after):
                seen = sight(outcome, sample_targets(outcome, items, model=model), items)
                for name, share in SHARES.items():
                    if back[name] is None and goal > 0 and seen.probability.nanmean().item() >= share * goal:
                        back[name] = step
                yield Look(step * size, seen.recovered, {f"steps to {name}": at for name, at in back.items()})
            if step == max(self.after):
                return
            rows = torch.randperm(len(x0))[:size].to(device)
            _step(model, Batch(x0[rows], y[rows]), trained, engine)

    def known(self) -> Iterator[Known]:
        """What is only hidden returns with the first steps; what was never forgotten needs none."""
        yield Known("nothing was forgotten", toy_models.attacked_outcome("known"), 1.0, quality="bad")
        yield Known("hidden", toy_models.attacked_outcome("hidden"), 1.0, quality="bad")
        yield Known("lost", toy_models.attacked_outcome("lost"), 0.0, quality="good")


def _step(model: Diffusion, batch: Batch, trained: dict, engine: torch.optim.Optimizer) -> None:
    """One step of fine-tuning; raises an error where the loss is not finite."""
    loss = model.loss(batch)
    if not loss.isfinite():
        raise FloatingPointError("the loss of relearning is not finite")
    for value, grad in zip(trained.values(), gradients(loss, trained).values(), strict=True):
        value.grad = grad
    engine.step()
    engine.zero_grad()
