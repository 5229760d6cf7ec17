"""Sequential unlearning: which concepts to forget next, and a task for each that starts from the current model.

A method that preserves other concepts with their data would relearn what is already gone, so that is removed from the
retain data.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from unlearnbench.data.wording import Wording
from unlearnbench.diffusion.model import Batch, Diffusion
from unlearnbench.errors import Unsupported
from unlearnbench.hashing import seed_of
from unlearnbench.method import Method, run_prepare, run_unlearn
from unlearnbench.task import Side, Task
from unlearnbench.training import seeded


def followers(task: Task, count: int = 2) -> list[str]:
    """The concepts to forget after a task's own; none if nothing would be left to retain.

    They are concepts that the task's plan retains, in the task's cyclic order from its own: first those an even number
    of positions on (2, 4, ...), then the odd ones, neighbours last. A concept is skipped if it is the substitute of one
    forgotten before, or has that one as its own substitute.
    """
    plan = task.plan()
    near = {item.concept for item in plan if item.group == "neighbours"}
    kinds = {item.concept for item in plan if item.group == "retain"} | {task.forget}
    order = [concept for concept in task.concepts if concept in kinds]
    if len(order) < count + 2:
        return []
    place = order.index(task.forget)
    round_ = order[place:] + order[:place]
    chosen = [task]
    for concept in sorted([*round_[2::2], *round_[1::2]], key=lambda other: other in near):
        if len(chosen) > count:
            break
        other = _plain(task, concept)
        if not any(_replaces(a, b) for one in chosen for a, b in ((one, other), (other, one))):
            chosen.append(other)
    return [one.forget for one in chosen[1:]]


def following(task: Task, concept: str, model: Diffusion, gone: Sequence[str]) -> Task:
    """A task for `concept` whose original is `model`, and whose retain data neither show nor name the `gone` concepts.

    Protocol, unlearning seed, device, files and limit are those of `task`, which is about one of the gone concepts.
    Images are recognised by content: an image that occurs in a gone concept's forget data, bit for bit, shows it,
    whatever its caption says. Batches mixed from both sides omit such images too, and are filled up to full size from
    the same stream.
    """
    kind: Any = types.new_class(f"Following{type(task).__name__}", (_Following, type(task)))
    later = _made(kind, task, concept)
    later.before, later.plain = model, _plain(task, concept)
    later.gone = [_plain(task, name) for name in gone]
    return later


def require_repeatable(method: Method | None, task: Task) -> Method:
    """Return the method if it can forget another concept in a model of its own making; else raise `Unsupported`."""
    if method is None:
        raise Unsupported("what made this model is not known: it cannot be made to forget more")
    if method.incomplete:
        raise Unsupported(f"{method.name} brings weights that are ready: it cannot forget a further concept")
    words: Wording = getattr(method, "wording", Wording())
    if named := [name for name in words.given if name not in ("replace_with", "keep")]:
        raise Unsupported(
            f"{method.name} has words of its own for what it erases ({', '.join(named)}): it cannot forget a further "
            "concept by them"
        )
    if type(method).wrap is not Method.wrap:
        raise Unsupported(
            f"{method.name} wraps the model, which it can do for one concept or several together, not one after "
            "another: --forget a+b"
        )
    if "training recipe" in method.requires and not _streamed(task):
        raise Unsupported(f"{method.name} trains {task.name} again from its files, hours for each further concept")
    return method


def unlearn_again(method: Method, task: Task) -> Diffusion:
    """Unlearn once more, from the unlearning seed as at the start of a run; returns the model ready for use."""
    task = method.worded(task)
    model = task.pretrained()
    with seeded(seed_of("unlearning", task.seed) >> 1):
        model = run_unlearn(method, model, task, run_prepare(method, model, task))
    return model.requires_grad_(False).eval()


class _Following:
    """Mixed in before a task's own class."""

    before: Diffusion
    """The current model."""
    plain: Any
    """The task of the same concept with the actual original and all its data."""
    gone: list[Task]

    def with_words(self, words: Wording) -> Any:
        """The task as a method sees it that has words of its own, which name no concept in particular."""
        worded: Any = super().with_words(words)  # type: ignore[misc]
        worded.plain = self.plain.with_words(words)
        return worded

    def pretrained(self) -> Diffusion:
        """The current model as methods receive it: reloaded, with all weights trainable."""
        model: Diffusion = self.plain.pretrained()
        model.load_state_dict(self.before.state_dict())
        return model

    def data(self, which: Side) -> Batch:
        """The task's data without images that show or name gone concepts, except on the forget side."""
        batch: Batch = self.plain.data(which)
        return batch if which == "forget" else _rows(batch, self.stays(batch))

    def count(self, which: Side) -> int:
        """Number of these images."""
        found: int = self.plain.count(which) if which == "forget" else len(self.data(which).x0)
        return found

    def names(self, which: Literal["forget", "retain"]) -> Tensor:
        """The task's names without those of gone concepts."""
        return self.unnamed(self.plain.names(which), which)

    def captions(self, which: Literal["forget", "retain"]) -> Tensor:
        """The task's captions without those that name gone concepts."""
        return self.unnamed(self.plain.captions(which), which)

    def unnamed(self, y: Tensor, which: Literal["forget", "retain"]) -> Tensor:
        """Conditions y (n, ...) of a side; on the retain side without those that ask for a gone concept."""
        return y if which == "forget" else y[~self.named(y)]

    def named(self, y: Tensor) -> Tensor:
        """Mask (n,) of the conditions that ask for a gone concept."""
        return torch.stack([task.forgotten(y) for task in self.gone]).any(dim=0)

    def stays(self, batch: Batch) -> Tensor:
        """Mask (B,) of the rows that neither show nor name a gone concept."""
        shown = [mark in self.shown for mark in _marks(batch.x0)] if self.shown else [False] * len(batch.x0)
        return ~(self.named(batch.y) | torch.tensor(shown, dtype=torch.bool, device=batch.y.device))

    @cached_property
    def shown(self) -> set[bytes]:
        """Hashes of the images that show a gone concept; empty if images are generated from prompts, which tell."""
        if hasattr(self.plain, "training_prompts"):
            return set()
        return {mark for task in self.gone for mark in _marks(task.data("forget").x0)}

    def _stream(self, side: Side, size: int, seed: int, *more: Any) -> Iterator[Batch]:
        stream: Iterator[Batch] = self.plain._stream(side, size, seed, *more)
        if side == "forget":
            yield from stream
        left: Batch | None = None
        for batch in stream:
            some = _rows(batch, self.stays(batch))
            left = Batch(*map(torch.cat, zip(left, some, strict=True))) if left else some
            while len(left.x0) >= size:
                yield _rows(left, slice(size))
                left = _rows(left, slice(size, None))


def _rows(batch: Batch, index: Any) -> Batch:
    return Batch(batch.x0[index], batch.y[index])


def _marks(x0: Tensor) -> list[bytes]:
    return [hashlib.sha256(row.numpy().tobytes()).digest() for row in x0.cpu()]


def _plain(task: Task, concept: str) -> Task:
    return _made(type(task), task, concept)


def _made(kind: Any, task: Any, concept: str) -> Any:
    """A task of this class for another concept, with the same settings."""
    settings = {"protocol": task.protocol.name, "seed": task.seed, "device": task.device, "weights": task.weights}
    if hasattr(task, "checkpoint"):
        settings |= {"data": task.folder, "checkpoint": task.checkpoint}
    made = kind(concept, limit=task.limit, **settings)
    made.protocol = task.protocol
    return made


def _replaces(one: Task, other: Task) -> bool:
    """Whether one task's forgotten concept has the other task's forgotten concept as its substitute."""
    return bool(other.forgotten(one.substitute(one.names("forget"))).any())


def _streamed(task: Task) -> bool:
    """Whether training from scratch draws its batches from the task's stream."""
    from unlearnbench.tasks.cifar10_class import Cifar10Class

    return not isinstance(task, Cifar10Class)
