"""`run --dry-run`: estimate time, memory and disk from a trial of a few seconds."""

from __future__ import annotations

import copy
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unlearnbench.compute.device import exact
from unlearnbench.compute.environment import Meter
from unlearnbench.compute.precision import in_fitting_parts, out_of_memory
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.method import run_prepare, run_unlearn
from unlearnbench.pipeline.cell import Cell, require
from unlearnbench.pipeline.planning import changed_bytes, own_images, training_sides, unlearning_steps
from unlearnbench.pipeline.stored_weights import starting_state, unchanged_names
from unlearnbench.pipeline.unlearning import check_model, name_errors
from unlearnbench.training import seeded, splitting

SECONDS = 10.0
"""The longest that the steps of one cell are timed."""
STEADY = 10
"""Steps in a row that are no faster than the fastest before them end the timing."""
FEW = 2
"""Training steps of the shorter of the first two trials; the longer one takes twice as many."""
APART = 0.3
"""Seconds by which two trials differ by more than chance."""


class CostEstimate(NamedTuple):
    """What one cell would take on this machine."""

    images: int
    evaluations: int
    """Network evaluations for sampling; guidance counts twice."""
    batch: int
    """Images at once: the protocol's number, or the largest that fits."""
    sampling: float
    """Seconds of sampling."""
    unlearning: float | None
    """Seconds of unlearning without preparing; None if the method has no number of steps."""
    memory: int | None
    """Peak bytes of both trials; None if the system cannot tell."""
    microbatch: int | None
    """Images that the network sees at once while unlearning, where a whole batch does not fit."""
    steps: int | None
    """Unlearning steps; None if the method has no number of them."""
    stored: int
    """Bytes of changed weights and of images that stay in the store."""
    training_images: int
    """Images that the original has yet to draw for training; other methods use them too."""
    drawing: float
    """Seconds of drawing them."""


def probe(cell: Cell, seconds: float | None = None) -> CostEstimate:
    """Time single steps of sampling and unlearning, and extrapolate. Nothing is kept.

    Raises `Unsupported` if the task lacks what the method needs, and `Failed` if the method's code fails or diverges
    within the trial.
    """
    require(cell)
    task, sampler = cell.task, cell.task.protocol.sampler
    with name_errors(cell.method):
        wrapped = cell.method.wrap(task.pretrained(), cell.worded)
    model = cell.resources.equip(wrapped).eval()
    plan = task.plan()
    with Meter(task.device) as drawing, exact(), cell.resources.compiled(model):
        batch, step, first = _step(cell, model, plan, SECONDS if seconds is None else seconds)
    undrawn = sum(cell.worded.undrawn(side) for side in training_sides(cell))
    drawn_by, drawn_in = batch, step
    if undrawn and cell.resources.precision != "fp32":  # training images are always drawn in fp32
        plain = replace(cell, resources=replace(cell.resources, precision="fp32", compile=False))
        with exact():
            drawn_by, drawn_in, _ = _step(plain, model, plan, SECONDS if seconds is None else seconds)
    with splitting() as micro, Meter(task.device) as training:
        unlearning, changed = in_fitting_parts(cell.method.name, partial(_unlearning, cell))
    images = len(plan) + own_images(cell)
    chunks = -(-images // batch)
    known = [meter.memory for meter in (drawing, training) if meter.memory is not None]
    guided = 1 if sampler.guidance == 1 else 2
    return CostEstimate(
        images=images,
        evaluations=images * sampler.steps * guided,
        batch=batch,
        sampling=chunks * sampler.steps * step + (first if cell.resources.compile else 0.0),
        unlearning=unlearning,
        memory=max(known) if known else None,
        microbatch=micro.size,
        steps=unlearning_steps(cell),
        stored=_stored(cell, model, images, changed),
        training_images=undrawn,
        drawing=-(-undrawn // drawn_by) * sampler.steps * drawn_in,
    )


class Room(NamedTuple):
    """Memory and disk of this machine."""

    memory: int | None
    """Bytes of the smallest GPU or, on the CPU, of the machine."""
    kind: str
    disk: int
    """Free bytes at the store."""


def room(device: str, store: Path) -> Room:
    """Memory and disk of this machine."""
    there = next(folder for folder in (store, *store.parents) if folder.exists())
    disk = shutil.disk_usage(there).free
    if device == "cuda":
        cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        least = min(cards, key=lambda card: card.total_memory)
        return Room(least.total_memory, f"{len(cards)} x {least.name}", disk)
    try:
        return Room(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the machine's", disk)
    except (AttributeError, ValueError, OSError):
        return Room(None, "the machine's", disk)


@torch.inference_mode()
def _stored(cell: Cell, model: Diffusion, images: int, changed: int | None) -> int:
    """Bytes of weights and images; all weights where neither a trial nor the table says which of them change."""
    if changed is None:
        changed = changed_bytes(cell)
    if changed is None:
        changed = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    model = model.to(cell.task.device)
    one = model.decode(torch.zeros(1, *model.shape, device=model.alpha_bar.device))
    return changed + images * 3 * one.shape[-2] * one.shape[-1]


def _step(cell: Cell, model: Any, plan: list[Any], seconds: float) -> tuple[int, float, float]:
    """The batch that fits, and seconds of one sampling step: the fastest of those that there was time for.

    The last value is the seconds of the very first step, compilation included.
    """
    task = cell.task
    batch, one = task.protocol.chunk, replace(task.protocol.sampler, steps=1)
    while True:
        items = (plan * -(-batch // len(plan)))[:batch]
        try:
            with torch.inference_mode(), cell.resources.sampling(task.device):
                y = task.inputs(items)
                work = partial(model.sample, y, [item.seed for item in items], sampler=one)
                times = _times(work, task.device, seconds)
            model.to("cpu")  # the trial of unlearning is measured next, and has the device to itself
            return batch, *times
        except Exception as error:
            if not out_of_memory(error) or batch == 1:
                raise
            batch //= 2


def _times(work: Callable[[], Any], device: str, seconds: float) -> tuple[float, float]:
    with Meter(device, memory=False) as warming:
        work()  # costs more: kernels are chosen or compiled, memory is taken
    least, since, end = float("inf"), 0, time.perf_counter() + seconds
    while True:
        with Meter(device, memory=False) as meter:
            work()
        since = 0 if meter.seconds < 0.99 * least else since + 1
        least = min(least, meter.seconds)
        if since >= STEADY or time.perf_counter() >= end:
            return least, warming.seconds


def _unlearning(cell: Cell) -> tuple[float | None, int | None]:
    """Seconds of all steps, from the difference of two short runs, and bytes of the weights that these changed.

    The runs grow until they differ by more than chance, since a step of a small network takes milliseconds.
    """
    steps = unlearning_steps(cell)
    if steps is None:
        return None, None
    start, few = starting_state(cell), FEW
    _trial(cell, 1)  # takes longer: kernels are chosen, files are read
    while True:
        short = _trial(cell, few)[0]  # the model is gone before the next one comes
        long, model = _trial(cell, 2 * few)
        if long - short >= APART or long >= SECONDS or 2 * few >= steps:
            break
        few *= 4
        del model
    check_model(cell.method, model)
    state = model.state_dict()
    changed = sum(state[name].numel() * state[name].element_size() for name in {*state} - unchanged_names(state, start))
    return max(0.0, long - short) / few * steps + max(0.0, 2 * short - long), changed


def _trial(cell: Cell, limit: int) -> tuple[float, Diffusion]:
    """Seconds of unlearning in at most as many steps, and the model."""
    task = copy.copy(cell.worded)
    task.limit = limit
    with seeded(0), name_errors(cell.method), cell.resources.training(task.device):
        model = cell.resources.equip(cell.method.wrap(task.pretrained(), task))
        prepared = run_prepare(cell.method, model, task)
        with Meter(task.device, memory=False) as meter:
            model = run_unlearn(cell.method, model, task, prepared)
    return meter.seconds, model
