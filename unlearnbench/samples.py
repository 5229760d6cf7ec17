"""Draw images and have them judged: the two stages whose results are kept chunk by chunk, and by image."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnbench.diffusion import Diffusion
from unlearnbench.hashing import source_hash, state_hash
from unlearnbench.judges import Judge, Seen, Verdict, look
from unlearnbench.progress import track
from unlearnbench.resources import out_of_memory, too_little
from unlearnbench.stages import Cell, engine_hash
from unlearnbench.store import Store
from unlearnbench.task import Plan


def draw(
    cell: Cell, model: Diffusion, identity: dict[str, Any], plan: list[Plan], store: Store, force: bool = False
) -> Tensor:
    """Images uint8 (N, 3, H, W) in chunks of the protocol's size, each kept by itself."""
    task, size = cell.task, cell.task.protocol.chunk
    chunks = [plan[start : start + size] for start in range(0, len(plan), size)]
    images = []
    for chunk in track(chunks, len(chunks), "sampling"):
        padded = chunk + [chunk[-1]] * (
            size - len(chunk)
        )  # one batch size always: results depend on it in the last bit

        def make(padded: list[Plan] = padded, n: int = len(chunk)) -> tuple[dict[str, Tensor], dict[str, Any]]:
            return {"images": _drawn(cell, model, padded)[:n]}, {}

        parts = {
            **identity,
            "task": task.name,
            "sampler": asdict(task.protocol.sampler),
            "images": [(item.prompt or item.label, item.seed) for item in padded],
            "engine": engine_hash(type(task)),
            "device": task.device,
            **cell.resources.named(),
        }
        images.append(store.stage("samples", parts, make, force)[0]["images"])
    return torch.cat(images)


def _drawn(cell: Cell, model: Diffusion, items: list[Plan]) -> Tensor:
    """Images of one chunk: at once, or where memory does not allow it in halves of halves, which is noted.

    Each image has noise of its own, so that parts give the same images but for the last bit.
    """
    task = cell.task
    size = int(cell.notes.get("sampling_batch", len(items)))
    while True:
        parts = []
        try:
            with torch.inference_mode(), cell.resources.sampling(task.device):
                for start in range(0, len(items), size):
                    some = items[start : start + size]
                    x = model.sample(task.inputs(some), [item.seed for item in some])
                    parts.append(task.to_uint8(model.decode(x)))
            return torch.cat(parts)
        except Exception as error:
            if not out_of_memory(error):
                raise
            if size == 1:
                raise too_little("drawing one image", error, None) from error
            size = cell.notes["sampling_batch"] = (size + 1) // 2


def judged(judge: Judge, images: Tensor, store: Store) -> Seen:
    """What the judge sees on images; kept only where it never failed."""

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        verdict, features, error, _ = look(judge, images)
        return {**verdict._asdict(), "features": features}, {"error": error}

    who = [judge.name, judge.version, judge.hash, judge.threshold]
    folder = Path(__file__).parent / "judges"
    code = source_hash([Path(inspect.getfile(type(judge))), folder / "__init__.py", folder / "fidelity.py"])
    parts = {"images": state_hash({"images": images}), "judge": who, "code": code}
    tensors, facts = store.stage("judged", parts, make, keep=lambda made: made[1]["error"] is None)
    verdict = Verdict(tensors["probabilities"], tensors["refused"])
    return Seen(verdict, tensors["features"], facts["error"], judge.domains)
