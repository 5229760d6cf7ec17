"""Plan a run before its gigabytes are there: counts, memory by method, download and disk, from a table of shapes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from unlearnbench.errors import UserError
from unlearnbench.pipeline.cell import Cell, require
from unlearnbench.task import Task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GIB = 2**30
CARDS = (12, 16, 24, 40, 80)
"""Memory of common GPUs in GiB, by which vendors name them."""
CONTEXT = 0.5
"""GiB that CUDA itself takes on a card."""
BYTES = 4
"""Of a weight, gradient or moment: training keeps them in float32 under every --precision."""


@cache
def cost_table() -> dict[str, dict[str, Any]]:
    """Read costs.toml: models, methods and files."""
    path = Path(__file__).parent / "costs.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


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
    checkpointed: int | None
    """The same with --memory checkpointing; None where that is not counted or saves nothing."""
    stored: int | None
    """Bytes of changed weights and of images that stay in the store; None if the table does not know the model."""


def planned_costs(cell: Cell) -> CostPlan:
    """Count what a cell would take. Raises `Unsupported` if the task lacks what the method needs."""
    require(cell)
    task, sampler = cell.task, cell.task.protocol.sampler
    guided = 1 if sampler.guidance == 1 else 2
    images, drawn = task.image_count() + own_images(cell), _training_images(cell)
    steps = cell.method.settings().get("steps")
    memory, saving = _memory(cell), None
    if isinstance(memory, int) and "checkpointing" not in cell.resources.memory:
        saved = _memory(cell, ("checkpointing",))
        saving = saved if isinstance(saved, int) and saved < memory else None
    model, changed = model_costs(task), changed_bytes(cell)
    return CostPlan(
        images=images,
        evaluations=images * sampler.steps * guided,
        training_images=drawn,
        training_evaluations=drawn * sampler.steps * guided,
        steps=steps if isinstance(steps, int) else None,
        memory=memory if isinstance(memory, int) else None,
        uncounted=None if isinstance(memory, int) else memory,
        checkpointed=saving,
        stored=None if model is None or changed is None else changed + images * 3 * model["pixels"] ** 2,
    )


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
    part = changes or (method is not None and (cell.method.settings().get("part") or method.get("part") or "full"))
    return BYTES * int(model["parts"].get(part, _whole(model)))


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


def model_costs(task: Task) -> dict[str, Any] | None:
    """The table's entry of a task's model; None if there is none, or the user gave a model of their own."""
    if getattr(task, "checkpoint", None) is not None and task.checkpoint.is_dir():  # type: ignore[attr-defined]
        return None
    name = getattr(task, "model_folder", task.name)
    found: dict[str, Any] | None = cost_table()["model"].get(name)
    return found


def _whole(model: dict[str, Any]) -> int:
    return int(model["unet"] + model["vae"] + model["text_encoders"])


def _memory(cell: Cell, more: Sequence[str] = ()) -> int | str:
    """Peak bytes while unlearning, by the formula at the head of the table; or in words which shape it lacks."""
    model, method = model_costs(cell.task), cost_table()["method"].get(cell.method.name)
    if model is None:
        return "no shape of this model"
    if method is None:
        return "no shape of this method"
    settings, savings = cell.method.settings(), {*cell.resources.memory, *more}
    part = settings.get("part") or method.get("part") or "full"
    if part not in model["parts"]:
        return f"no shape of part {part}"
    each = model["activations"].get("checkpointing" if "checkpointing" in savings else part)
    counts = [settings.get(name) for name in method.get("images", ())]
    whole = [count for count in counts if isinstance(count, int)]
    if each is None:
        return f"no activations of part {part}"
    if len(whole) < len(counts):
        return f"no number of images in {' and '.join(method['images'])}"
    resident = BYTES * ((2 + method.get("models", 0)) * _whole(model) + model["judges"])
    activations = each * GIB * sum(whole) * (0.5 if cell.resources.precision == "bf16" else 1)
    moments = 1.5 if "adam8bit" in savings else 0.0  # two moments of 1 byte in place of 4
    mean = 1 if settings.get("ema") is not None else 0
    copies = BYTES * model["parts"][part]
    trained = [
        max(0.0, method.get(name, 0) - moments + (mean if name in method else 0)) for name in ("backward", "step")
    ]
    return int(resident + max(copies * trained[0] + activations, copies * trained[1]))


def smallest_card(memory: int) -> int | None:
    """The smallest of `CARDS` that holds so many bytes; None if none does."""
    return next((size for size in CARDS if memory / GIB + CONTEXT <= size), None)


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
