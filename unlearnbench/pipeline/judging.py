"""Judge samples and real images, block by block. Each block is kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from unlearnbench.compute.device import exact, trim
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.hashing import digest, state_hash
from unlearnbench.judges import Judge, Seen, Verdict, judge_all, look
from unlearnbench.judges.scorer import PairScorer, Testimony, Witness, asked
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.code_hashes import judge_code
from unlearnbench.pipeline.sampling import sample_images
from unlearnbench.reporting import track
from unlearnbench.storage.lazy_arrays import ArrayPart, Rows, Table, taken
from unlearnbench.storage.store import Made, Store
from unlearnbench.task import Plan, Task

WITNESSED = 100
"""Images that a scorer looks at together and that are kept in one entry."""
T = TypeVar("T")
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
    scorers: bool = True,
) -> tuple[Rows, Seen, ScoredBlocks]:
    """Sample and judge; returns samples, what the judge saw, and what the task's scorers said of blocks until then.

    On CUDA, whose work is queued, one thread judges and scores blocks while the next ones are sampled. What scorers
    have not said then is left to `witnessed`.
    """
    beside = cell.task.device == "cuda"
    witnesses = alone(cell.task.witnesses()) if beside and scorers else {}
    with Looking(judge, store, beside, witnesses, plan) as looking:
        samples = sample_images(cell, model, identity, plan, store, force, looking)
        return samples, looking.seen(), looking.said()


class Looking:
    """Gives a judge images as they come, in blocks of `BLOCK`; with `beside`, in a thread beside the sampler.

    Scorers, which are only for `beside`, get those of their groups in blocks of `WITNESSED`, in the same thread. The
    sampler waits while two blocks do, since memory would grow with their number.
    """

    def __init__(
        self,
        judge: Judge,
        store: Store,
        beside: bool = False,
        witnesses: Mapping[str, Witness] | None = None,
        plan: Sequence[Plan] = (),
    ):
        self.judge, self.store = judge, store
        self._waiting: list[Tensor] = []
        self._begun: list[Future[Looked]] = []
        self._pool = ThreadPoolExecutor(1) if beside else None
        self._queued: list[Future[Any]] = []
        self._stopped = Event()
        self._numbers = ExitStack()
        self._scorers = _Scorers(witnesses or {}, plan)
        self._said: list[Future[ScoredBlocks]] = []

    def __enter__(self) -> Looking:
        self._numbers.enter_context(exact())  # set before the second thread starts: the settings belong to the process
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._numbers.close()

    def __call__(self, images: Tensor) -> None:
        """Take images uint8 (n, 3, H, W); they are judged as soon as there are enough of them."""
        for block in self._scorers.take(images):
            self._said.append(self._submit(self._scored, block))
        self._waiting.append(images)
        if sum(map(len, self._waiting)) >= BLOCK:
            *blocks, rest = torch.cat(self._waiting).split(BLOCK)
            full = [*blocks, rest] if len(rest) == BLOCK else blocks
            self._waiting = [] if len(rest) == BLOCK else [rest.clone()]
            for block in full:
                self._begin(block)

    def _begin(self, block: Tensor) -> None:
        if self._pool:
            self._begun.append(self._submit(_judged, self.judge, block, self.store))
        else:
            done: Future[Looked] = Future()
            seen, part, _ = _judged(self.judge, block, self.store)
            done.set_result((seen, part, None))  # nothing else used memory: another try would not help
            self._begun.append(done)

    def _submit(self, work: Callable[..., T], *about: Any) -> Future[T]:
        """Queue work for the thread, as soon as no more than one piece waits before it."""
        assert self._pool is not None, "scorers are only for a thread beside the sampler"
        if len(self._queued) >= 2:
            self._queued[-2].result()
        done = self._pool.submit(work, *about)
        self._queued = [*self._queued[-1:], done]
        return done

    def _scored(self, block: _Block) -> ScoredBlocks:
        """What the scorers say of one block; what cannot be said is left to `witnessed`, which tries it again."""
        known: ScoredBlocks = {}
        for role, witness in block.witnesses.items():
            if self._stopped.is_set():
                break
            values, error = _testified(witness, block.images, block.prompts, self.store)
            if error is None:  # beside the sampler there may have been too little memory
                known[role, block.first] = values
        return known

    def said(self) -> ScoredBlocks:
        """What scorers said of the blocks that were full."""
        return {place: values for future in self._said for place, values in future.result().items()}

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


ScoredBlocks = dict[tuple[str, int], Tensor]
"""Values (n, C) of blocks, by the scorer's role and the position of the block's first image in the plan."""


class _Block(NamedTuple):
    """Images that some scorers look at together."""

    first: int
    """Position of the first one in the plan."""
    images: Tensor
    prompts: list[str]
    witnesses: Mapping[str, Witness]


class _Scorers:
    """Forms the blocks of `testimonies` out of images that come in the plan's order."""

    def __init__(self, witnesses: Mapping[str, Witness], plan: Sequence[Plan]):
        self.plan, self._taken = plan, 0
        self._kinds: dict[frozenset[str], dict[str, Witness]] = {}
        """Scorers of the same groups share their blocks."""
        for role, witness in witnesses.items():
            self._kinds.setdefault(witness.groups, {})[role] = witness
        self._waiting: dict[frozenset[str], list[tuple[int, Tensor]]] = {groups: [] for groups in self._kinds}

    def take(self, images: Tensor) -> Iterator[_Block]:
        """The blocks that these next images (n, 3, H, W) of the plan complete."""
        for place, image in enumerate(images, self._taken):
            for groups, waiting in self._waiting.items():
                if self.plan[place].group in groups:
                    waiting.append((place, image))
                if len(waiting) == WITNESSED:
                    places, some = zip(*waiting, strict=True)
                    waiting.clear()
                    prompts = [self.plan[i].prompt for i in places]
                    yield _Block(places[0], torch.stack(some), prompts, self._kinds[groups])
        self._taken += len(images)


def alone(witnesses: Mapping[str, Witness]) -> dict[str, Witness]:
    """The scorers that need no image of the original."""
    return {role: witness for role, witness in witnesses.items() if not isinstance(witness, PairScorer)}


def witnessed(
    task: Task,
    samples: Table,
    plan: list[Plan],
    store: Store,
    known: ScoredBlocks | None = None,
    originals: Callable[[], Table] | None = None,
) -> dict[str, Testimony]:
    """Results of each of the task's scorers on the samples of its groups, kept block by block.

    Blocks that are `known` already are not looked at again. `originals` gives the original's images of the same plan;
    it is called only if a scorer compares with them, and without it such scorers are left out.
    """
    witnesses = task.witnesses()
    single = alone(witnesses)
    found = testimonies(single, samples, plan, store, known)
    pairs = {role: witness for role, witness in witnesses.items() if role not in single}
    if originals is not None and pairs:
        found |= testimonies(pairs, Paired(samples, originals()), plan, store)
    return found


class Paired:
    """Two tables of images (N, 3, H, W), read as one (N, 6, H, W)."""

    def __init__(self, first: Table, second: Table):
        self.first, self.second = first, second

    def __getitem__(self, index: np.ndarray) -> Tensor:
        """Read the rows of an index."""
        return torch.cat([taken(table, index)[:] for table in (self.first, self.second)], dim=1)


def testimonies(
    witnesses: Mapping[str, Witness],
    samples: Table | Paired,
    plan: list[Plan],
    store: Store,
    known: ScoredBlocks | None = None,
) -> dict[str, Testimony]:
    """Results of each of these scorers on the samples of its groups, kept block by block; see `witnessed`."""
    found, known = {}, known or {}
    for role, witness in witnesses.items():
        index = [i for i, item in enumerate(plan) if item.group in witness.groups]
        values = torch.full((len(plan), len(witness.columns)), torch.nan)
        error: str | None = None
        blocks = [index[start : start + WITNESSED] for start in range(0, len(index), WITNESSED)]
        for block in track(blocks, len(blocks), witness.name):
            if (role, block[0]) in known:
                values[block] = known[role, block[0]]
                continue
            prompts = [plan[i].prompt for i in block]
            values[block], failure = _testified(witness, samples[np.array(block)], prompts, store)
            error = error or failure
        found[role] = Testimony(values, witness.columns, witness.threshold, error)
        trim()
    return found


def _testified(witness: Witness, images: Tensor, prompts: list[str], store: Store) -> tuple[Tensor, str | None]:
    """What a scorer says of one block (n, C), and the first error; the result is kept only if it never failed."""

    def make() -> Made:
        with exact():
            numbers, failure = asked(witness, images, prompts)
        return {"values": numbers}, {"error": failure}

    who = [witness.name, witness.version, witness.hash, str(witness.threshold), list(witness.columns)]
    who += [list(witness.about)]
    asked_for = digest(prompts)  # hashed: otherwise prompts of unsafe tasks would survive `purge`
    parts = {"images": state_hash({"images": images}), "prompts": asked_for, "witness": who}
    parts["code"] = judge_code(witness)
    tensors, facts = store.stage("witnessed", parts, make, keep=lambda made: made[1]["error"] is None)
    return tensors["values"], facts["error"]


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
