"""Judge samples and real images, block by block. Each block is kept in the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearnbench.compute.device import exact, trim
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.hashing import digest, state_hash
from unlearnbench.judges import Judge, Seen, Verdict, judge_all, look
from unlearnbench.judges.scorer import Testimony, Witness, asked
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.code_hashes import judge_code
from unlearnbench.pipeline.sampling import sample_images
from unlearnbench.reporting import track
from unlearnbench.storage.lazy_arrays import ArrayPart, Rows, Table
from unlearnbench.storage.store import Made, Store
from unlearnbench.task import Plan, Task

WITNESSED = 100
"""Images that a scorer looks at together and that are kept in one entry."""
BLOCK = 500
"""Images that are judged together and kept in one entry: a chunk of CIFAR-10."""


def observed(
    cell: Cell,
    judge: Judge,
    model: Diffusion,
    identity: dict[str, Any],
    plan: list[Plan],
    store: Store,
    force: bool = False,
) -> tuple[Rows, Seen]:
    """Sample and judge. On CUDA, whose work is queued, a block is judged while the next one is sampled."""
    with Looking(judge, store, beside=cell.task.device == "cuda") as looking:
        samples = sample_images(cell, model, identity, plan, store, force, looking)
        return samples, looking.seen()


class Looking:
    """Gives a judge images as they come, in blocks of `BLOCK`; with `beside`, in a thread beside the sampler."""

    def __init__(self, judge: Judge, store: Store, beside: bool = False):
        self.judge, self.store = judge, store
        self._waiting: list[Tensor] = []
        self._begun: list[Future[Looked]] = []
        self._pool = ThreadPoolExecutor(1) if beside else None
        self._numbers = ExitStack()

    def __enter__(self) -> Looking:
        self._numbers.enter_context(exact())  # set before the second thread starts: the settings belong to the process
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._numbers.close()

    def __call__(self, images: Tensor) -> None:
        """Take images uint8 (n, 3, H, W); they are judged as soon as there are enough of them."""
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
            done.set_result((seen, part, None))  # nothing else used memory: another try would not help
            self._begun.append(done)

    def seen(self) -> Seen:
        """All verdicts and features, in order. If features of any image are missing, there are none."""
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
    """Results of each of the task's scorers on the samples of its groups, kept block by block."""
    return testimonies(task.witnesses(), samples, plan, store)


def testimonies(
    witnesses: Mapping[str, Witness], samples: Table, plan: list[Plan], store: Store
) -> dict[str, Testimony]:
    """Results of each of these scorers on the samples of its groups, kept block by block."""
    found = {}
    for role, witness in witnesses.items():
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

            asked_for = digest(prompts)  # hashed: otherwise prompts of unsafe tasks would survive `purge`
            parts = {"images": state_hash({"images": images}), "prompts": asked_for, "witness": who}
            parts["code"] = judge_code(witness)
            tensors, facts = store.stage("witnessed", parts, make, keep=lambda made: made[1]["error"] is None)
            values[block], error = tensors["values"], error or facts["error"]
        found[role] = Testimony(values, witness.columns, witness.threshold, error)
        trim()
    return found


def judged(judge: Judge, images: Iterable[Tensor], store: Store) -> Seen:
    """Judge real images that come some at a time; from an expensive judge, only features are taken."""
    with Looking(_Features(judge) if getattr(judge, "costly", False) else judge, store) as looking:
        for some in images:
            looking(some)
            trim()
        return looking.seen()


class _Features(Judge):
    """A judge without verdicts, for images of which only features are needed."""

    def __init__(self, judge: Judge):
        self.judge, self.classes = judge, judge.classes
        self.name, self.version, self.hash = f"{judge.name}-features", judge.version, judge.hash  # type: ignore[misc]
        self.threshold = judge.threshold

    def __call__(self, images: Tensor) -> Verdict:
        return Verdict(torch.zeros(len(images), self.classes), torch.ones(len(images), dtype=torch.bool))

    def features(self, images: Tensor) -> Tensor:
        return self.judge.features(images)


Looked = tuple[Seen, ArrayPart | None, Tensor | None]
"""Result on a block, where its features lie, and the block itself if the judge failed on it."""


def _judged(judge: Judge, images: Tensor, store: Store) -> Looked:
    """Judge one block; the result is kept only if the judge never failed."""

    def make() -> Made:
        verdict, features, error, _ = look(judge, images)
        return {**verdict._asdict(), "features": features[:]}, {"error": error}

    who = [judge.name, judge.version, judge.hash, judge.threshold]
    parts = {"images": state_hash({"images": images}), "judge": who, "code": judge_code(judge)}
    made = store.stage("judged", parts, make, keep=lambda made: made[1]["error"] is None)
    (tensors, facts), n = made, len(images)
    part = ArrayPart(n, store.reader("judged", parts, "features", made)) if len(tensors["features"]) == n else None
    verdict = Verdict(tensors["probabilities"], tensors["refused"])
    seen = Seen(verdict, torch.zeros(0, 0), facts["error"], judge.domains)
    return seen, part, images if seen.error else None
