"""Seconds of an image relative to the original's, from a few steps of the sampler; measured once weights are stored."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from unlearnbench.compute.device import exact
from unlearnbench.compute.environment import Meter
from unlearnbench.compute.precision import out_of_memory
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import one_line
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.unlearning import loaded
from unlearnbench.reporting import phase, tell
from unlearnbench.storage.store import Made, Store

TIMED = 6
"""Images in a timed sampling."""
PLACES = 3
"""Steps of the sampler that are timed besides its first two, spread evenly: guidance may begin or end on the way."""
ROUNDS = 3
"""Timed rounds, of which the fastest counts, after one to warm up."""


def timed_cost(
    cell: Cell, weights: dict[str, Tensor], cost: dict[str, Any], parts: dict[str, Any], store: Store, force: bool
) -> dict[str, Any]:
    """The costs with `relative_time`, measured once and kept in the store below the weights' `parts`.

    It is None within a tuning budget, where no cost is reported, and where it cannot be measured;
    `relative_time_reason` then says why.
    """
    known = cost.get("relative_time")  # in entries of earlier versions
    if known is not None or cost["evaluations"] is not None:
        return {**cost, "relative_time": known}

    def make() -> Made:
        try:
            with phase("timing"):
                ratio = timed_beside_original(cell, weights)
            reason = None
        except Exception as error:  # noqa: BLE001 - the weights are done, and a time is no reason to lose the run
            ratio, reason = math.nan, one_line(error)
            tell(f"{cell.method.name}: seconds per image cannot be measured ({reason}); the run goes on without them")
        return {"relative_time": torch.tensor(ratio, dtype=torch.double)}, {"reason": reason}

    def measured(made: Made) -> bool:
        return made[1]["reason"] is None

    tensors, facts = store.stage("timed", parts, make, force, keep=measured)
    value = float(tensors["relative_time"])
    return {**cost, "relative_time": value if math.isfinite(value) else None, "relative_time_reason": facts["reason"]}


def timed_beside_original(cell: Cell, weights: dict[str, Tensor]) -> float:
    """Seconds per image of the model with these weights, relative to the original's; both are loaded for it."""
    return relative_time(cell, loaded(cell, weights), cell.task.pretrained().eval())


@torch.inference_mode()
def relative_time(cell: Cell, model: Diffusion, original: Diffusion) -> float:
    """Seconds per image relative to the original, of `TIMED` images at once, or of fewer where memory is short."""
    task = cell.task
    y = torch.cat([task.names("forget"), task.names("retain")])[:TIMED].to(task.device)
    while True:
        try:
            return _ratio(cell, model, original, y)
        except Exception as error:
            if not out_of_memory(error) or len(y) == 1:
                raise
        y = y[: len(y) // 2]


def _ratio(cell: Cell, model: Diffusion, original: Diffusion, y: Tensor) -> float:
    """The fastest of a few rounds each, in alternating order."""
    device = cell.task.device
    fastest = {"model": math.inf, "original": math.inf}
    pair = [("model", model), ("original", original)]
    with exact(), cell.resources.sampling(device):
        for number in range(ROUNDS + 1):
            for name, network in pair if number % 2 else pair[::-1]:
                seconds = seconds_of_sampling(network, y, device)
                fastest[name] = min(fastest[name], seconds) if number else math.inf
    return fastest["model"] / fastest["original"]


def seconds_of_sampling(model: Diffusion, y: Tensor, device: str) -> float:
    """Seconds in which the model would sample images for conditions y (B, ...), from a few of the sampler's steps.

    What is done once for all steps, such as embedding the prompts, and the first step, which may prepare guidance, are
    timed as they are. Each further step is taken to last as long as the nearest timed one.
    """
    steps = model.sampler.steps
    first, second = _lap(model, y, device, 0)
    known = {1: second}
    for place in _places(steps):
        known[place] = _lap(model, y, device, place - 1)[1]
    return first + sum(known[min(known, key=lambda place: abs(place - step))] for step in range(1, steps))


def _places(steps: int) -> list[int]:
    """Steps besides the first two that are timed, counted from 0."""
    ends = [2 + (steps - 2) * number // PLACES for number in range(PLACES + 1)]
    return [(start + end) // 2 for start, end in pairwise(ends) if end > start]


def _lap(model: Diffusion, y: Tensor, device: str, place: int) -> tuple[float, float]:
    """Seconds of two of the sampler's steps from `place` on: until the first ends, with all before it, and the second.

    The second is 0 where the sampler has one step.
    """
    steps, seeds = model.sampler.steps, list(range(len(y)))
    every, start = model.timesteps(), None
    if place:  # some samplers have fractions of timesteps, which are above the integer
        above = int(every[place]) + (int(every[place - 1]) - int(every[place]) > 1)
        start = torch.zeros(len(y), *model.shape, device=every.device), above
    meters: list[Meter] = []

    def hook(i: int, t: int, x: Tensor) -> None:
        if i > place:
            meters[-1].__exit__()
            meters.append(Meter(device, memory=False).__enter__())

    meters.append(Meter(device, memory=False).__enter__())
    model.sample(y, seeds, start=start, until=max(0, steps - place - 2), hook=hook)
    meters[-1].__exit__()
    return meters[0].seconds, meters[1].seconds if len(meters) > 1 else 0.0
