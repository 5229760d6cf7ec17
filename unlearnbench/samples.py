"""Draw images and have them judged: the two stages whose results are kept chunk by chunk, and by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearnbench.codes import engine_hash, judge_code
from unlearnbench.diffusion import Diffusion
from unlearnbench.environment import exact, trim
from unlearnbench.hashing import digest, state_hash
from unlearnbench.judges import Judge, Seen, Verdict, judge_all, look
from unlearnbench.judges.witness import Testimony, asked
from unlearnbench.progress import tell, track
from unlearnbench.resources import out_of_memory, too_little
from unlearnbench.rows import Part, Rows, Table
from unlearnbench.stages import Cell
from unlearnbench.store import Made, Store
from unlearnbench.task import Plan, Task
from unlearnbench.training import Diverged

WITNESSED = 100
"""Images that a witness looks at together; kept in one entry."""
BLOCK = 500
"""Images that are judged together and kept in one entry: as many as a chunk of CIFAR-10's."""


def observed(
    cell: Cell,
    judge: Judge,
    model: Diffusion,
    identity: dict[str, Any],
    plan: list[Plan],
    store: Store,
    force: bool = False,
) -> tuple[Rows, Seen]:
    """Draw and judge; on CUDA, whose work waits in a queue, a block is judged while the next one is drawn."""
    with Looking(judge, store, beside=cell.task.device == "cuda") as looking:
        samples = draw(cell, model, identity, plan, store, force, looking)
        return samples, looking.seen()


def draw(
    cell: Cell,
    model: Diffusion,
    identity: dict[str, Any],
    plan: list[Plan],
    store: Store,
    force: bool = False,
    see: Callable[[Tensor], None] = lambda images: None,
    shard: tuple[int, int] = (0, 1),
) -> Rows:
    """Images uint8 (N, 3, H, W) in chunks of the protocol's size, each kept by itself, and shown to `see` in order.

    Of `shard` (i, n) every n-th chunk from the i-th on alone: what others draw meanwhile, and is the same for any n.
    """
    task, size = cell.task, cell.task.protocol.chunk
    chunks = [plan[start : start + size] for start in range(0, len(plan), size)][shard[0] :: shard[1]]
    drawn = []
    with exact(), cell.resources.compiled(model) as model:
        for chunk in track(chunks, len(chunks), "sampling"):
            padded = chunk + [chunk[-1]] * (
                size - len(chunk)
            )  # one batch size always: results depend on it in the last bit

            def make(padded: list[Plan] = padded, n: int = len(chunk)) -> Made:
                return {"images": _drawn(cell, model, padded)[:n]}, {}

            parts = {
                **identity,
                "task": task.name,
                "sampler": asdict(task.protocol.sampler),
                "images": [_asked(item) for item in padded],
                "engine": engine_hash(type(task)),
                "device": task.device,
                **cell.resources.named(),
            }
            made = store.stage("samples", parts, make, force)
            see(made[0]["images"])
            drawn.append(Part(len(chunk), store.reader("samples", parts, "images", made)))
            trim()
    return Rows(drawn)


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
    """Samples that are no images: their pixels would be read as black, in which no judge sees anything."""

    def __init__(self, lost: int, n: int):
        RuntimeError.__init__(
            self, f"{lost} of {n} samples are not finite: the weights, or --precision fp16, overflow; try bf16 or fp32"
        )
        self.step, self.what = None, "a sample"  # type: ignore[assignment]


def _decoded(task: Task, model: Diffusion, x: Tensor) -> Tensor:
    """Images of latents, in whole precision: autoencoders overflow in fp16."""
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
    """What the model makes of these; those of one scale of guidance together."""
    scales = list(dict.fromkeys(item.guidance for item in items))
    parts, places = [], []
    for scale in scales:
        index = [i for i, item in enumerate(items) if item.guidance == scale]
        some = [items[i] for i in index]
        sampler = replace(model.sampler, guidance=scale) if scale else None
        parts.append(model.sample(task.inputs(some), [item.seed for item in some], sampler=sampler))
        places += index
    return torch.cat(parts)[torch.tensor(places, device=parts[0].device).argsort()] if len(parts) > 1 else parts[0]


class Looking:
    """A judge that is shown images as they come, in blocks of `BLOCK`; `beside` the work of whoever shows them."""

    def __init__(self, judge: Judge, store: Store, beside: bool = False):
        self.judge, self.store = judge, store
        self._waiting: list[Tensor] = []
        self._begun: list[Future[Looked]] = []
        self._pool = ThreadPoolExecutor(1) if beside else None
        self._numbers = ExitStack()

    def __enter__(self) -> Looking:
        self._numbers.enter_context(exact())  # before there are two threads: the settings are the whole process's
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._numbers.close()

    def __call__(self, images: Tensor) -> None:
        """uint8 (n, 3, H, W); judged as soon as there are enough of them."""
        self._waiting.append(images)
        if sum(map(len, self._waiting)) >= BLOCK:
            *blocks, rest = torch.cat(self._waiting).split(BLOCK)
            full = [*blocks, rest] if len(rest) == BLOCK else blocks
            self._waiting = [] if len(rest) == BLOCK else [rest.clone()]
            for block in full:
                self._begin(block)

    def _begin(self, block: Tensor) -> None:
        if self._pool:
            if len(self._begun) >= 2:
                self._begun[-2].result()  # no more than two blocks wait, or memory would grow with their number
            self._begun.append(self._pool.submit(_judged, self.judge, block, self.store))
        else:
            done: Future[Looked] = Future()
            seen, part, _ = _judged(self.judge, block, self.store)
            done.set_result((seen, part, None))  # nothing else took memory: asking again would not help
            self._begun.append(done)

    def seen(self) -> Seen:
        """All that was seen, in order; where features of any image are missing, there are none."""
        if self._waiting:
            self._begin(torch.cat(self._waiting))
            self._waiting = []
        found = [future.result() for future in self._begun]
        for number, (_, _, failed) in enumerate(found):
            if failed is not None and self._pool:  # beside the sampler there may have been too little memory
                found[number] = _judged(self.judge, failed, self.store)
        if not found:
            return Seen(judge_all(self.judge, torch.zeros(0, 3, 1, 1))[0], Rows([]), None, self.judge.domains)
        verdict = Verdict(*(torch.cat(column) for column in zip(*(seen.verdict for seen, *_ in found), strict=True)))
        error = next((seen.error for seen, *_ in found if seen.error), None)
        parts = [part for _, part, _ in found if part]
        return Seen(verdict, Rows(parts if len(parts) == len(found) else []), error, self.judge.domains)


def witnessed(task: Task, samples: Table, plan: list[Plan], store: Store) -> dict[str, Testimony]:
    """What each of the task's witnesses says of the samples of its groups, kept block by block."""
    found = {}
    for role, witness in task.witnesses().items():
        index = [i for i, item in enumerate(plan) if item.group in witness.groups]
        values = torch.full((len(plan), len(witness.columns)), torch.nan)
        error: str | None = None
        who = [witness.name, witness.version, witness.hash, str(witness.threshold), list(witness.columns)]
        who += [list(witness.about)]
        blocks = [index[start : start + WITNESSED] for start in range(0, len(index), WITNESSED)]
        for block in track(blocks, len(blocks), witness.name):
            images, prompts = samples[np.array(block)], [plan[i].prompt for i in block]

            def make(images: Tensor = images, prompts: list[str] = prompts) -> Made:
                with exact():
                    numbers, failure = asked(witness, images, prompts)  # noqa: B023 - called within this turn
                return {"values": numbers}, {"error": failure}

            asked_for = digest(prompts)  # not in clear: prompts of unsafe tasks would outlive `purge`
            parts = {"images": state_hash({"images": images}), "prompts": asked_for, "witness": who}
            parts["code"] = judge_code(witness)
            tensors, facts = store.stage("witnessed", parts, make, keep=lambda made: made[1]["error"] is None)
            values[block], error = tensors["values"], error or facts["error"]
        found[role] = Testimony(values, witness.columns, witness.threshold, error)
        trim()
    return found


def judged(judge: Judge, images: Iterable[Tensor], store: Store) -> Seen:
    """What the judge sees on real images that come some at a time: of a costly one its features alone."""
    with Looking(_Features(judge) if getattr(judge, "costly", False) else judge, store) as looking:
        for some in images:
            looking(some)
            trim()
        return looking.seen()


class _Features(Judge):
    """A judge that gives no verdicts, for images whose features alone are asked for."""

    def __init__(self, judge: Judge):
        self.judge, self.classes = judge, judge.classes
        self.name, self.version, self.hash = f"{judge.name}-features", judge.version, judge.hash  # type: ignore[misc]
        self.threshold = judge.threshold

    def __call__(self, images: Tensor) -> Verdict:
        return Verdict(torch.zeros(len(images), self.classes), torch.ones(len(images), dtype=torch.bool))

    def features(self, images: Tensor) -> Tensor:
        return self.judge.features(images)


Looked = tuple[Seen, Part | None, Tensor | None]
"""What was seen on a block, where its features lie, and the block itself where the judge failed on it."""


def _judged(judge: Judge, images: Tensor, store: Store) -> Looked:
    """Have one block judged; kept only where that never failed."""

    def make() -> Made:
        verdict, features, error, _ = look(judge, images)
        return {**verdict._asdict(), "features": features[:]}, {"error": error}

    who = [judge.name, judge.version, judge.hash, judge.threshold]
    parts = {"images": state_hash({"images": images}), "judge": who, "code": judge_code(judge)}
    made = store.stage("judged", parts, make, keep=lambda made: made[1]["error"] is None)
    (tensors, facts), n = made, len(images)
    part = Part(n, store.reader("judged", parts, "features", made)) if len(tensors["features"]) == n else None
    verdict = Verdict(tensors["probabilities"], tensors["refused"])
    seen = Seen(verdict, torch.zeros(0, 0), facts["error"], judge.domains)
    return seen, part, images if seen.error else None
