"""`minimise`: the one optimisation loop, for methods that yield losses or gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from unlearnbench.errors import UserError

Parameters = Mapping[str, nn.Parameter]
Gradients = Mapping[str, Tensor]
OPTIMISERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
NEW_SEED = 67280421310721
"""Seed of torch's generators in a new process: pytorch/pytorch, c10/core/GeneratorImpl.h, default_rng_seed_val."""
EIGHT_BIT: ContextVar[bool] = ContextVar("EIGHT_BIT", default=False)
"""Whether Adam keeps its moments in eight bits. Set by the runner, never by a method."""
T = TypeVar("T")


class MicroBatches:
    """How many rows of a batch a network sees at once: `size`, or all of them where it is None.

    Losses and gradients stay those of the whole batch. `largest` is the most rows that a network was asked for.
    """

    def __init__(self, size: int | None = None):
        self.size, self.largest = size, 0


current_microbatches: ContextVar[MicroBatches | None] = ContextVar("microbatches", default=None)
"""Set by the runner, never by a method."""
_unsplit: ContextVar[str] = ContextVar("unsplit", default="")


class CannotSplit(UserError):
    """A batch cannot be split, since something depends on all of its rows inside the network; `reason` says what."""

    def __init__(self, rows: int, reason: str):
        super().__init__(
            f"a batch of {rows} cannot be split into micro-batches, because {reason}: leave out --memory microbatches, "
            "or give a smaller batch_size"
        )
        self.reason = reason


class Diverged(RuntimeError):
    """A loss or gradient is no longer finite; `step` counts from 0."""

    def __init__(self, step: int, what: str):
        super().__init__(f"{what} is not finite at step {step}")
        self.step, self.what = step, what


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators within this block and restore their state afterwards.

    A GPU that nothing has used yet is not asked for its state, which is that of a new process.
    """
    gpus, used = torch.cuda.device_count(), torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(list(range(gpus)) if used else []):
            if gpus or torch.accelerator.is_available():
                torch.manual_seed(seed)
            else:  # which would note the call stack for each kind of device that is not there
                torch.default_generator.manual_seed(seed)
            yield
    finally:
        if gpus and not used:
            torch.cuda.manual_seed_all(NEW_SEED)


def gradients(loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """d loss / d parameter, by name; zero where the loss does not depend on a parameter."""
    if replaying():
        return {name: torch.zeros_like(value) for name, value in parameters.items()}
    values = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, values, strict=True))


def inner(a: Gradients, b: Gradients) -> Tensor:
    """<a, b> over all parameters together."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def norm(a: Gradients) -> Tensor:
    """||a|| over all parameters together."""
    return inner(a, a).sqrt()


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest of values (n,), 1 <= k <= n: the least of the k largest, without a copy of these.

    On CUDA `topk` with half of a network's weights takes several times their memory. NaN is the largest.
    """
    return values.kthvalue(len(values) - k + 1).values


def saved(parameters: Parameters) -> list[Tensor]:
    """Copy the parameters' current values, in order; `restore` puts them back."""
    return [value.detach().clone() for value in parameters.values()]


@torch.no_grad()
def restore(parameters: Parameters, values: list[Tensor]) -> None:
    """Set the parameters to these values, in place."""
    for parameter, value in zip(parameters.values(), values, strict=True):
        parameter.copy_(value)


def _optimiser(name: str, values: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if name == "sgd":
        return OPTIMISERS[name](values, lr=lr)
    if not EIGHT_BIT.get():
        # On CUDA the default makes temporary tensors of all parameters' size, the fused one none.
        fused = {"fused": True} if values and all(value.is_cuda for value in values) else {}
        return OPTIMISERS[name](values, lr=lr, **fused)
    import bitsandbytes

    return {"adam": bitsandbytes.optim.Adam8bit, "adamw": bitsandbytes.optim.AdamW8bit}[name](values, lr=lr)


# ---- checkpoints ---------------------------------------------------------------------------------------------------


class TrainingState(NamedTuple):
    """What `minimise` changes: all that has to be put back before training can go on from a step."""

    parameters: Parameters
    optimiser: torch.optim.Optimizer
    mean: list[Tensor] | None
    """The parameters' running mean, in order; None: no mean is taken."""
    others: Mapping[str, Tensor | torch.optim.Optimizer]
    """What else the stream changes from step to step, by name."""


class Checkpoints(Protocol):
    """Keeps the states of `minimise` while it works, and gives them back in a later process."""

    def begin(self, state: TrainingState) -> int | None:
        """The state's loop begins: how many steps of it an earlier process did; None: all of them."""

    def restore(self, state: TrainingState) -> None:
        """Put back what the earlier process left, random numbers included."""

    def reached(self, state: TrainingState, step: int) -> None:
        """So many steps are done, of this process and of earlier ones."""

    def end(self, state: TrainingState) -> None:
        """The loop has ended, before a running mean takes the parameters' place."""


class CannotResume(Exception):
    """A stream could not be brought to the step that an earlier process reached."""


current_checkpoints: ContextVar[Checkpoints | None] = ContextVar("checkpoints", default=None)
"""Set by the runner, never by a method."""
_replaying: ContextVar[bool] = ContextVar("replaying", default=False)


def replaying() -> bool:
    """Whether a stream is only being brought to a step: networks answer zeros then, and so does `gradients`."""
    return _replaying.get()


@contextmanager
def _set(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def computed() -> Iterator[None]:
    """Let networks answer within this block even while a stream is brought to a step."""
    with _set(_replaying, False):
        yield


@contextmanager
def unsplit(reason: str) -> Iterator[None]:
    """Within this block networks take whole batches: those that would have to be split raise `CannotSplit`."""
    with _set(_unsplit, reason):
        yield


@contextmanager
def splitting(size: int | None = None) -> Iterator[MicroBatches]:
    """Within this block networks see at most `size` rows at once; what it yields says how many in the end.

    Without a size, as many as in the block around it.
    """
    around = current_microbatches.get()
    micro = MicroBatches(around.size if size is None and around is not None else size)
    with _set(current_microbatches, micro):
        yield micro


@contextmanager
def own_batches() -> Iterator[None]:
    """Within this block no batch is split but by the caller's own hand."""
    with _set(current_microbatches, None):
        yield


def split_size(rows: int) -> int | None:
    """How many of so many rows a network may take at once; None: all of them.

    Raises `CannotSplit` where they may not be split.
    """
    micro = current_microbatches.get()
    if micro is None or replaying():
        return None
    micro.largest = max(micro.largest, rows)
    if micro.size is None or rows <= micro.size:
        return None
    if reason := _unsplit.get():
        raise CannotSplit(rows, reason)
    return micro.size


def _replay(items: Iterator[Any], steps: int) -> None:
    """Take `steps` items from a stream with hardly any computation.

    The first is computed, since a stream may prepare something before it. Raises `CannotResume` if the stream fails.
    """
    try:
        next(items)
        with torch.no_grad(), _set(_replaying, True):
            for _ in range(steps - 1):
                next(items)
    except Exception as error:
        raise CannotResume(f"{type(error).__name__}: {error}") from error


def _numbered(stream: Iterable[T], state: TrainingState) -> Iterator[tuple[int, list[T]]]:
    """Number the stream's items from 0, or from the step that an earlier process reached.

    Each comes alone in a list, from which it is taken: nothing here keeps gradients alive while the next are computed.
    """
    checkpoints = current_checkpoints.get()
    done = checkpoints.begin(state) if checkpoints is not None else 0
    if done is None:
        assert checkpoints is not None
        checkpoints.restore(state)
        return
    items = iter(stream)
    if done and checkpoints is not None:
        _replay(items, done)
        checkpoints.restore(state)
    for step in count(done):
        try:
            given = [next(items)]
        except StopIteration:
            break
        yield step, given
        if checkpoints is not None:
            checkpoints.reached(state, step + 1)
    if checkpoints is not None:
        checkpoints.end(state)


# ---- the loop ------------------------------------------------------------------------------------------------------


def _finite_norm(step: int, loss: Tensor | None, grads: Iterable[Tensor]) -> float:
    """The joint norm of the gradients; raises `Diverged` where it or the loss is not finite.

    Both are read together, since each time the host waits until a GPU has done all its work.
    """
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
    *before, found = torch.stack([norm] if loss is None else [loss.view(()), norm]).tolist()
    if not all(map(math.isfinite, before)):
        raise Diverged(step, "the loss")
    if not math.isfinite(found):
        raise Diverged(step, "the gradient")
    return float(found)


def minimise(
    stream: Iterable[Tensor | Gradients],
    parameters: Parameters,
    lr: float | Callable[[int], float],
    *,
    optimiser: Literal["adam", "adamw", "sgd"] = "adam",
    mask: Mapping[str, Tensor] | None = None,
    ema: float | None = None,
    average: list[Tensor] | None = None,
    clip: float | None = None,
    others: Mapping[str, Tensor | torch.optim.Optimizer] | None = None,
) -> None:
    """Take one optimiser step for each loss, or set of gradients, that the stream yields.

    The stream is consumed lazily, so that each loss is computed with the parameters that the previous step left. `lr`
    may be a function of the step. `clip` bounds the joint norm of the gradients before `mask` (1 = trained, 0 =
    untouched) is applied, in the order of SalUn's code. With `ema` the parameters end as their running mean, with decay
    min(ema, (1 + n) / (10 + n)) after n steps; with `average` too, which is pretraining's mean of them, that mean is
    continued with decay `ema`. Raises `Diverged` with the step when a loss or gradient is not finite.

    A method that can be resumed at a step (see `Method.resumes`) names in `others` the tensors and optimisers that the
    stream itself changes from step to step; they are kept and put back together with the parameters.
    """
    if replaying():  # within another stream that is only brought to a step
        for _ in stream:
            pass
        return
    values = list(parameters.values())
    rate = lr if callable(lr) else (lambda step: lr)
    engine = _optimiser(optimiser, values, rate(0))
    mean = [value.detach().clone() for value in average or values] if ema is not None else None
    # Only what decays, or is rounded to eight bits, changes parameters without gradient.
    decays = mask is not None and (optimiser == "adamw" or EIGHT_BIT.get())
    for step, given in _numbered(stream, TrainingState(parameters, engine, mean, others or {})):
        item, loss = given.pop(), None
        if isinstance(item, Tensor):
            loss, grads = item.detach(), gradients(item, parameters)
        else:
            grads = {name: item[name] for name in parameters}
        del item  # so that a gradient is freed where a scaled or masked one takes its place
        norm = _finite_norm(step, loss, grads.values())
        scale = min(1.0, clip / (norm + 1e-6)) if clip is not None else 1.0
        for name, value in parameters.items():
            grad = grads.pop(name)
            grad = grad * scale if scale != 1.0 else grad
            value.grad = grad * mask[name] if mask is not None else grad
            del grad
        before = {name: value.detach().clone() for name, value in parameters.items()} if decays else {}
        for group in engine.param_groups:
            group["lr"] = rate(step)
        engine.step()
        engine.zero_grad()
        if mask is not None and decays:
            with torch.no_grad():
                for name, value in parameters.items():
                    value.copy_(torch.where(mask[name] > 0, value, before[name]))
        del before
        if mean is not None and ema is not None:
            decay = ema if average else min(ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(mean, [value.detach() for value in values], 1 - decay)
    if mean is not None:
        with torch.no_grad():
            for value, final in zip(values, mean, strict=True):
                value.copy_(final)
