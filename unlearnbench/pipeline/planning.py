"""Plan a run before its gigabytes are there: counts, memory by method, download and disk, from a table of shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from unlearnbench import registry
from unlearnbench.errors import UserError
from unlearnbench.pipeline.cell import Cell, require
from unlearnbench.pipeline.memory import (
    BYTES,
    MemoryPlan,
    Uncounted,
    cost_table,
    memory_plan,
    model_costs,
    peak_of_unlearning,
    smallest_card,
    whole_model,
)
from unlearnbench.task import Task


class CostPlan(NamedTuple):
    """What one cell would take, counted without its files."""

    images: int
    """Images that are drawn and judged."""
    evaluations: int
    """Network evaluations for these images; guidance counts twice."""
    training_images: int
    """Images that the original draws once for training, for all methods that take images."""
    training_evaluations: int
    steps: int | None
    """Unlearning steps; None if the method has no number of them."""
    memory: int | None
    """Peak bytes on a GPU while unlearning; None if the table lacks a shape that it takes."""
    uncounted: str | None
    """Which shape the table lacks; None where memory is counted."""
    alternatives: MemoryPlan
    """The same with other savings and precisions."""
    stored: int | None
    """Bytes of changed weights and of images that stay in the store; None if the table does not know the model."""


def planned_costs(cell: Cell) -> CostPlan:
    """Count what a cell would take. Raises `Unsupported` if the task lacks what the method needs."""
    require(cell)
    task, sampler = cell.task, cell.task.protocol.sampler
    guided = 1 if sampler.guidance == 1 else 2
    images, drawn = task.image_count() + own_images(cell), _training_images(cell)
    model, changed = model_costs(task), changed_bytes(cell)
    try:
        memory, uncounted = (
            peak_of_unlearning(model, cell.method, cell.resources.precision, cell.resources.memory),
            None,
        )
    except Uncounted as error:
        memory, uncounted = None, str(error)
    return CostPlan(
        images=images,
        evaluations=images * sampler.steps * guided,
        training_images=drawn,
        training_evaluations=drawn * sampler.steps * guided,
        steps=unlearning_steps(cell),
        memory=memory,
        uncounted=uncounted,
        alternatives=memory_plan(model, cell.method),
        stored=None if model is None or changed is None else changed + images * 3 * model["pixels"] ** 2,
    )


def unlearning_steps(cell: Cell) -> int | None:
    """Steps of the method, or of the original's training if it repeats that; None if it has no number of them."""
    steps = cell.method.settings().get("steps")
    if "training recipe" in cell.method.requires:
        steps = cell.task.training_steps
    return cell.task.steps(steps) if isinstance(steps, int) else None


def changed_bytes(cell: Cell) -> int | None:
    """Bytes of the weights that a method changes, which the store keeps; None if the table does not know the model.

    For methods and parts that are not in the table, all weights of the model, which is the most.
    """
    method = cost_table()["method"].get(cell.method.name)
    changes = None if method is None else method.get("changes")
    if changes == "nothing":
        return 0
    model = model_costs(cell.task)
    if model is None:
        return None
    if method is not None and "adapts" in method:
        return BYTES * int(model["parts"].get(method["adapts"], 0))
    part = changes or (method is not None and (cell.method.settings().get("part") or method.get("part") or "full"))
    return BYTES * int(model["parts"].get(part, whole_model(model)))


def own_images(cell: Cell) -> int:
    """How many images of the user's own prompts are drawn from the method's model; the original draws as many once."""
    return sum(len(file.rows()) for file in cell.prompts)


def training_sides(cell: Cell) -> list[Literal["forget", "retain"]]:
    """The sides whose images a method trains on."""
    return [side for side in ("forget", "retain") if f"{side} images" in cell.method.requires]


def _training_images(cell: Cell) -> int:
    """How many images the original draws for this method to train on."""
    each = int(getattr(cell.task.protocol, "training_images", 0))
    return each * len(training_sides(cell))


class Download(NamedTuple):
    """Files that `fetch` would bring."""

    folder: Path
    files: int
    size: int
    """Bytes of those whose size is known."""
    small: int
    """How many have no known size: configuration and prompts, of a few MiB at most."""


def download_of(task: Task) -> Download | None:
    """The task's files that are not in its folder yet; None if it fetches nothing."""
    sources, folder = getattr(task, "sources", ()), getattr(task, "folder", None)
    if not sources or folder is None:
        return None
    given = getattr(task, "checkpoint", None) is not None
    left = [each for each in sources if not (folder / each.name).is_file() and not (given and each.use == "original")]
    sizes = [each.size or cost_table()["file"].get(each.name) for each in left]
    return Download(folder, len(left), sum(size for size in sizes if size), sum(size is None for size in sizes))


def all_files(task: type[Task]) -> Download | None:
    """All files of a task, whether they are there or not; None if it fetches nothing."""
    sources = getattr(task, "sources", ())
    if not sources:
        return None
    sizes = [each.size or cost_table()["file"].get(each.name) for each in sources]
    return Download(Path(), len(sources), sum(size for size in sizes if size), sum(size is None for size in sizes))


def methods_by_card(task: type[Task]) -> dict[int | None, int]:
    """How many methods that a task can host unlearn on each size of card in GB, in fp32 with default settings.

    None counts those for which no card is enough. Methods and models that the table lacks are left out.
    """
    model, found = model_costs(task), dict[int | None, int]()
    for name in registry.methods():
        method = registry.load_method(name)
        if method.incomplete or method.requires - task.provides - task.model_parts:
            continue
        try:
            peak = peak_of_unlearning(model, method.configured(method.preset("default", task.name)), "fp32", ())
        except Uncounted:
            continue
        card = smallest_card(peak)
        found[card] = found.get(card, 0) + 1
    return found


class ProtocolSize(NamedTuple):
    """What a run by one protocol draws."""

    images: int
    evaluations: int
    """Network evaluations for these images; guidance counts twice."""


def protocol_sizes(task: type[Task]) -> dict[str, ProtocolSize | None]:
    """Count the images of each protocol, for the default concept or the first one that the protocol has.

    None for a protocol whose prompts are in a file that is not there.
    """
    found = dict[str, ProtocolSize | None]()
    for name, protocol in task.protocols.items():
        try:
            images = _of_any_concept(task, name).image_count()
        except UserError:
            found[name] = None
            continue
        guided = 1 if protocol.sampler.guidance == 1 else 2
        found[name] = ProtocolSize(images, images * protocol.sampler.steps * guided)
    return found


def _of_any_concept(task: type[Task], protocol: str) -> Task:
    """The task by a protocol, on the default concept or, where that is none of the protocol's, on the first that is."""
    failure: UserError | None = None
    for forget in (task.default_forget, *task.concepts):
        try:
            return task(forget, protocol=protocol)
        except UserError as error:
            failure = failure or error
    raise failure or UserError(f"{task.name} has no concepts: name some in its class")


def seconds_of_evaluation(cell: Cell, device: str, repeats: int = 3) -> float | None:
    """Seconds of one network evaluation of one image, on a U-Net of the table's shape with random weights.

    A chunk of the protocol is evaluated, once to warm up and then `repeats` times; the fastest counts. None if the
    table has no shape for the task's model, or the device has too little memory.
    """
    from unlearnbench.compute.environment import Meter
    from unlearnbench.compute.precision import out_of_memory
    from unlearnbench.training import seeded

    model = model_costs(cell.task)
    if model is None or "network" not in model:
        return None
    from diffusers import UNet2DConditionModel

    shape = model["network"]
    try:
        with seeded(0), torch.device(device):
            network: Any = UNet2DConditionModel(**shape)
            network.eval()
            size, count = shape["sample_size"], 2 * cell.task.protocol.chunk
            x, t = torch.randn(count, network.config.in_channels, size, size), torch.zeros(count, dtype=torch.long)
            given: dict[str, Any] = {"encoder_hidden_states": torch.randn(count, 77, shape["cross_attention_dim"])}
            if shape.get("addition_embed_type"):
                pooled = shape["projection_class_embeddings_input_dim"] - 6 * shape["addition_time_embed_dim"]
                added = {"text_embeds": torch.randn(count, pooled), "time_ids": torch.zeros(count, 6)}
                given["added_cond_kwargs"] = added
        least = float("inf")
        with torch.inference_mode(), cell.resources.sampling(device):
            for number in range(repeats + 1):
                with Meter(device, memory=False) as meter:
                    network(x, t, **given)
                least = min(least, meter.seconds) if number else least
        return least / count
    except Exception as error:
        if not out_of_memory(error):
            raise
        return None


def lacking_files(cell: Cell, results: Path) -> str | None:
    """Why the cell cannot be tried here: the first file that is missing of those that `fetch` brings; None if it can.

    Raises `UserError` where nothing is to be fetched.
    """
    from unlearnbench.errors import Damaged
    from unlearnbench.pipeline.cell_state import CellState

    try:
        CellState.of(cell, results)
    except Damaged:
        raise
    except UserError as error:
        if not getattr(cell.task, "sources", ()):
            raise
        return str(error)
    return None
