"""Train the compact network over many sittings: a constant learning rate, and a decay that can begin at any step.

Step n draws its images, timesteps and noise from the seed and n alone, and the state holds everything else. A training
that was stopped therefore ends with the same weights, bit for bit, as one that was not (on one machine, at one
precision and number of threads).
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import Damaged, UserError
from unlearnbench.models.ddpm_train import TrainingImages, draw_batch
from unlearnbench.storage.files import flush, replace_file
from unlearnbench.training import Diverged

BATCH, RATE, BETAS, EMA, CLIP = 64, 6e-4, (0.9, 0.99), 0.999, 1.0
"""Of AdamW. A tenth of the classes is dropped, and half of the images are mirrored, by `ddpm_train.draw_batch`."""
WARMUP = 500
"""Steps over which the learning rate rises at first."""
LOGGED_EVERY = 100
"""Steps that a row of the log is the mean of."""
SAVED_EVERY = 300.0
"""Seconds after which the state is written."""
HEADER = "step,images,loss,rate,seconds"


class LogRow(NamedTuple):
    """One row of the log."""

    step: int
    images: int
    """Seen so far."""
    loss: float
    """Mean over the steps since the row before."""
    rate: float
    """Learning rate of the last step."""
    seconds: float
    """Spent on training so far, over all sittings."""

    def line(self) -> str:
        """As it stands in the file."""
        return f"{self.step},{self.images},{self.loss:.6f},{self.rate:.3e},{self.seconds:.1f}\n"


@dataclass(frozen=True)
class Decay:
    """The last phase: the learning rate falls linearly to zero within `steps` steps after step `start`."""

    start: int
    steps: int

    @property
    def end(self) -> int:
        """The step at which the training is complete."""
        return self.start + self.steps


def rate_at(step: int, decay: Decay | None) -> float:
    """Learning rate of a step, counted from 0: rising at first, then constant, then falling if a decay has begun."""
    rising = min(1.0, (step + 1) / WARMUP)
    falling = 1.0 if decay is None else min(1.0, max(0.0, (decay.end - step) / decay.steps))
    return RATE * rising * falling


def native_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; where it does not, autocast is many times slower than float32."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported is not None and supported())


def _fast_attention(device: str) -> AbstractContextManager[None]:
    """On CPU, attention by plain matrix products: over 64 positions the backward pass of the fused one is slower."""
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()


class CompactTraining:
    """Model, optimiser and running mean at one step; `advance` takes the next one."""

    def __init__(
        self, model: Diffusion, pictures: TrainingImages, seed: int, *, batch: int = BATCH, bf16: bool = False
    ):
        self.model, self.pictures, self.seed, self.batch, self.bf16 = model.train(), pictures, seed, batch, bf16
        self.values = dict(model.named_parameters())
        self.mean = {name: value.detach().clone() for name, value in self.values.items()}
        self.optimiser = torch.optim.AdamW(self.values.values(), lr=RATE, betas=BETAS)
        self.done, self.seconds = 0, 0.0
        self.decay: Decay | None = None
        self.rows: list[LogRow] = []
        self.since: list[float] = []
        """Losses since the last row of the log."""

    @property
    def complete(self) -> bool:
        """Whether the decay is over."""
        return self.decay is not None and self.done >= self.decay.end

    def advance(self) -> None:
        """Take one step; raises `Diverged` before anything is changed."""
        begun, step = time.perf_counter(), self.done
        device = self.model.alpha_bar.device.type
        batch, t, noise, shown = draw_batch(
            self.pictures, step, self.batch, self.seed, len(self.model.alpha_bar), device
        )
        x_t, target = self.model.add_noise(batch.x0, noise, t), self.model.target(batch.x0, noise, t)
        with _fast_attention(device), torch.autocast(device, dtype=torch.bfloat16, enabled=self.bf16):
            condition = self.model.embed(batch.y).where(shown, self.model.null(self.batch))
            output = self.model(x_t, t, condition)
        loss = (output.float() - target).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.values.values(), CLIP)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise Diverged(step, "the loss or its gradient")
        rate = rate_at(step, self.decay)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        kept = min(EMA, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.mean.values()), [value.detach() for value in self.values.values()], 1 - kept)
        self.done = step + 1
        self.seconds += time.perf_counter() - begun
        self.since.append(loss.item())
        if self.done % LOGGED_EVERY == 0 or self.complete:
            mean = sum(self.since) / len(self.since)
            self.rows.append(LogRow(self.done, self.done * self.batch, mean, rate, self.seconds))
            self.since = []

    def about(self) -> dict[str, int]:
        """What a state must share with this training to be continued by it."""
        return {"seed": self.seed, "batch": self.batch, "pictures": len(self.pictures.rows)}

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, and the log so far."""
        return {
            **self.about(),
            "done": self.done,
            "images": self.done * self.batch,
            "seconds": self.seconds,
            "decay": None if self.decay is None else (self.decay.start, self.decay.steps),
            "rows": [tuple(row) for row in self.rows],
            "since": list(self.since),
            "model": {name: value.detach() for name, value in self.values.items()},
            "mean": dict(self.mean),
            "optimiser": self.optimiser.state_dict(),
        }

    def load(self, state: dict[str, Any], path: Path) -> None:
        """Go back to a state that was read from `path`; `UserError` if it is of another training."""
        try:
            others = {name: state[name] for name, value in self.about().items() if state[name] != value}
            if others:
                raise UserError(f"{path} is of another training ({others}): name another folder with --out")
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            for name, value in self.mean.items():
                value.copy_(state["mean"][name])
            self.done, self.seconds, self.since = state["done"], state["seconds"], list(state["since"])
            self.decay = None if state["decay"] is None else Decay(*state["decay"])
            self.rows = [LogRow(*row) for row in state["rows"]]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise Damaged(f"{path} is no state of this training: move it away, and the training begins anew") from error


def read_training_state(path: Path) -> dict[str, Any]:
    """The content of a state file; raises `Damaged` with the path where it cannot be read."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:  # a damaged file fails in any way there is
        raise Damaged(f"{path} cannot be read: move it away, and the training begins anew") from error


def write_state(training: CompactTraining, path: Path) -> None:
    """Put the state in place of the old one, which stays whole until the new one is on the disk."""
    new = path.with_name(f".new-{os.getpid()}-{path.name}")
    try:
        torch.save(training.state(), new)
        flush(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def open_training(training: CompactTraining, out: Path, decay_steps: int | None = None) -> Path:
    """Put the training where the files in `out` left it, and return the file that its state is to be written to.

    The constant phase is kept in `constant.pt`. With `decay_steps` a decay that was stopped goes on; where there is
    none, one begins from the end of the constant phase. It is kept in a file of its own, `decay-STEP.pt` after the step
    that it began from, so that the constant phase can be continued afterwards all the same.
    """
    constant = out / "constant.pt"
    if decay_steps is None:
        if constant.is_file():
            training.load(read_training_state(constant), constant)
        return constant
    for path in sorted(out.glob("decay-*.pt")):
        training.load(read_training_state(path), path)
        if not training.complete:
            return _of_length(training, decay_steps, path)
    if not constant.is_file():
        raise UserError(f"no {constant} that a decay could begin from: train without --decay-steps first")
    training.load(read_training_state(constant), constant)
    path = out / f"decay-{training.done}.pt"
    if path.is_file():
        training.load(read_training_state(path), path)
        return _of_length(training, decay_steps, path)
    training.decay = Decay(training.done, decay_steps)
    return path


def _of_length(training: CompactTraining, decay_steps: int, path: Path) -> Path:
    if training.decay is None or training.decay.steps != decay_steps:
        steps = None if training.decay is None else training.decay.steps
        raise UserError(f"{path} is of a decay of {steps} steps, not {decay_steps}: give its length, or move it away")
    return path


def train_compact(training: CompactTraining, path: Path, stop: Callable[[], bool]) -> None:
    """Take steps until the decay is complete or `stop()`, writing the state to `path` and the log beside it.

    The state is written every `SAVED_EVERY` seconds and at the end. The log, `path` with the ending .csv, is first put
    back to the rows that the state knows, so that no row stands there twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.with_suffix(".csv")
    replace_file(log, (HEADER + "\n" + "".join(row.line() for row in training.rows)).encode())
    written, saved = len(training.rows), time.monotonic()
    while not training.complete and not stop():
        training.advance()
        if len(training.rows) > written:
            with log.open("a", encoding="utf-8") as file:
                file.write(training.rows[-1].line())
            written = len(training.rows)
        if time.monotonic() - saved >= SAVED_EVERY:
            write_state(training, path)
            saved = time.monotonic()
    write_state(training, path)


@contextmanager
def told_to_stop() -> Iterator[Callable[[], bool]]:
    """Within this block SIGTERM and SIGINT no longer end the process; the function given says whether one has come."""
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
