"""Sample images, chunk by chunk. Each chunk is kept in the store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from unlearnbench.compute.device import exact, trim
from unlearnbench.compute.precision import out_of_memory, too_little
from unlearnbench.diffusion.dropout import dropping
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import Damaged
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.code_hashes import engine_hash
from unlearnbench.reporting import tell, track
from unlearnbench.storage.lazy_arrays import ArrayPart, Rows
from unlearnbench.storage.store import Made, Store
from unlearnbench.task import Plan, Task
from unlearnbench.training import Diverged


def sample_images(
    cell: Cell,
    model: Diffusion,
    identity: dict[str, Any],
    plan: list[Plan],
    store: Store,
    force: bool = False,
    see: Callable[[Tensor], None] = lambda images: None,
    shard: tuple[int, int] = (0, 1),
) -> Rows:
    """Sample images uint8 (N, 3, H, W) in chunks of the protocol's size; each is kept by itself and passed to `see` in
    order.

    With `shard` (i, n), only every n-th chunk from the i-th on. Other jobs sample the others; images are the same for
    any n.
    """
    size = cell.task.protocol.chunk
    chunks = [plan[start : start + size] for start in range(0, len(plan), size)][shard[0] :: shard[1]]
    _tell_cut_prompts(model, [item for chunk in chunks for item in chunk])
    drawn = []
    with exact(), cell.resources.compiled(model) as model:
        for chunk in track(chunks, len(chunks), "sampling"):
            padded = _padded(chunk, size)

            def make(padded: list[Plan] = padded, n: int = len(chunk)) -> Made:
                return {"images": _drawn(cell, model, padded)[:n]}, {}

            parts = _chunk_parts(cell, identity, padded)
            made = store.stage("samples", parts, make, force)
            see(made[0]["images"])
            drawn.append(ArrayPart(len(chunk), store.reader("samples", parts, "images", made)))
            trim()
    return Rows(drawn)


def has_images(cell: Cell, identity: dict[str, Any], plan: list[Plan], store: Store) -> bool:
    """Whether the store holds all images that `sample_images` would draw for this plan."""
    size = cell.task.protocol.chunk
    chunks = (plan[start : start + size] for start in range(0, len(plan), size))
    return all(store.has("samples", _chunk_parts(cell, identity, _padded(chunk, size))) for chunk in chunks)


def stored_images(cell: Cell, identity: dict[str, Any], plan: list[Plan], store: Store) -> Rows | None:
    """What `sample_images` would give for this plan, without a model; None unless the store holds all of it."""
    if not has_images(cell, identity, plan, store):
        return None
    size, drawn = cell.task.protocol.chunk, []

    def gone() -> Made:
        raise Damaged("images in the store were deleted while they were read: run the same command again")

    for chunk in (plan[start : start + size] for start in range(0, len(plan), size)):
        parts = _chunk_parts(cell, identity, _padded(chunk, size))
        made = store.stage("samples", parts, gone)
        drawn.append(ArrayPart(len(chunk), store.reader("samples", parts, "images", made)))
    return Rows(drawn)


def _padded(chunk: list[Plan], size: int) -> list[Plan]:
    """A chunk of the full size, since results depend on the size of a batch in the last bit."""
    return chunk + [chunk[-1]] * (size - len(chunk))


def _chunk_parts(cell: Cell, identity: dict[str, Any], padded: list[Plan]) -> dict[str, Any]:
    """The parts of the key of a chunk's images."""
    task = cell.task
    return {
        **identity,
        "task": task.name,
        "sampler": asdict(task.protocol.sampler),
        "images": [_asked(item) for item in padded],
        "engine": engine_hash(type(task)),
        "device": task.device,
        **({"dropout": True} if task.draws_with_dropout else {}),
        **cell.resources.named(drawing=True),
    }


def _tell_cut_prompts(model: Diffusion, plan: list[Plan]) -> None:
    """Say how many prompts are longer than the text encoder reads; not which: they may be unfit to be shown."""
    too_long = getattr(model, "too_long", None)
    prompts = list(dict.fromkeys(item.prompt for item in plan if item.prompt))
    if too_long is not None and (cut := too_long(prompts)):
        tell(f"{len(cut)} of {len(prompts)} prompts are longer than the text encoder reads: it gets their beginnings")


def _drawn(cell: Cell, model: Diffusion, items: list[Plan]) -> Tensor:
    """Images of one chunk: at once or, if memory does not allow it, in smaller and smaller parts, which is noted.

    Each image has its own noise, so that parts give the same images up to the last bits.
    """
    task = cell.task
    size = int(cell.notes.get("sampling_batch", len(items)))
    while True:
        parts = []
        try:
            with torch.inference_mode(), cell.resources.sampling(task.device):
                for start in range(0, len(items), size):
                    some = items[start : start + size]
                    parts.append(task.to_uint8(_decoded(task, model, _sampled(task, model, some))))
            return torch.cat(parts)
        except Exception as error:
            if not out_of_memory(error):
                raise
            if size == 1:
                raise too_little("drawing one image", error, None) from error
            size = cell.notes["sampling_batch"] = (size + 1) // 2
            tell(f"too little memory for {len(items)} images: {size} at once")


class NotFinite(Diverged):
    """Samples contain NaN or infinity. As pixels they would be black, and no judge would see anything in them."""

    def __init__(self, lost: int, n: int):
        RuntimeError.__init__(
            self, f"{lost} of {n} samples are not finite: the weights, or --precision fp16, overflow; try bf16 or fp32"
        )
        self.step, self.what = None, "a sample"  # type: ignore[assignment]


def _decoded(task: Task, model: Diffusion, x: Tensor) -> Tensor:
    """Decode latents in float32, since autoencoders overflow in fp16."""
    with torch.autocast(task.device, enabled=False):
        images = model.decode(x.float())
    lost = int((~images.isfinite()).flatten(1).any(dim=1).sum())
    if lost:
        raise NotFinite(lost, len(images))
    return images


def _asked(item: Plan) -> list[Any]:
    """What an image depends on, for keys."""
    return [item.prompt or item.label, item.seed, *([item.guidance] if item.guidance else [])]


def _sampled(task: Task, model: Diffusion, items: list[Plan]) -> Tensor:
    """Sample images of these items; those with the same guidance scale together."""
    scales = list(dict.fromkeys(item.guidance for item in items))
    parts, places = [], []
    for scale in scales:
        index = [i for i, item in enumerate(items) if item.guidance == scale]
        some = [items[i] for i in index]
        sampler = replace(model.sampler, guidance=scale) if scale else None
        seeds = [item.seed for item in some]
        with dropping(model, seeds) if task.draws_with_dropout else nullcontext():
            parts.append(model.sample(task.inputs(some), seeds, sampler=sampler))
        places += index
    return torch.cat(parts)[torch.tensor(places, device=parts[0].device).argsort()] if len(parts) > 1 else parts[0]
