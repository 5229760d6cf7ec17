"""Precision and memory options for devices that are too small, kept apart from what methods do."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, TypeVar, get_args

import torch

from unlearnbench.compute.device import exact, numerics, trim, without_tf32
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import OutOfMemory, UserError, message, one_line, unknown
from unlearnbench.reporting import tell
from unlearnbench.training import EIGHT_BIT, CannotSplit, MicroBatches, current_microbatches

Precision = Literal["fp32", "bf16", "fp16"]
SAVINGS = ("checkpointing", "adam8bit", "slices", "microbatches")
T = TypeVar("T")


@dataclass(frozen=True)
class Resources:
    """Precision and memory options. Results depend on them, so records and store keys name every non-default value."""

    precision: Precision = "fp32"
    """bf16: training and sampling under autocast; fp16: sampling only, since gradients would need scaling. What is not
    cast is computed in float32, never in TF32."""
    memory: tuple[str, ...] = ()
    """checkpointing: recompute the U-Net's activations; adam8bit: Adam's moments in eight bits (bitsandbytes);
    microbatches: the network sees image by image in training, and the gradient is the whole batch's to rounding;
    slices: the VAE decodes image by image."""
    compile: bool = False
    """Compile the network before sampling: this changes the last bits and takes a minute before the first image."""

    @classmethod
    def checked(cls, precision: str, memory: Sequence[str], device: str, compile: bool = False) -> Resources:
        """Build from command-line options. Raises `UserError` for what this device or installation cannot do."""
        if precision not in get_args(Precision):
            raise unknown("precision", precision, get_args(Precision))
        for word in memory:
            if word not in SAVINGS:
                raise unknown("memory saving", word, SAVINGS)
        if device == "cpu" and precision != "fp32":
            raise UserError(f"--precision {precision} is for CUDA (on CPUs it is many times slower): use fp32")
        if "adam8bit" in memory and device == "cpu":
            raise UserError("--memory adam8bit is for CUDA: leave it out")
        if "adam8bit" in memory and find_spec("bitsandbytes") is None:
            raise UserError("--memory adam8bit needs bitsandbytes: pip install 'unlearnbench[cuda]'")
        return cls(precision, tuple(sorted(set(memory))), compile)  # type: ignore[arg-type]

    def named(self, drawing: bool = False) -> dict[str, Any]:
        """The options that are not the default, for keys and records; for `drawing`, those that images depend on."""
        precision = self.precision if self.precision != "fp32" else None
        memory = [word for word in self.memory if word == "slices" or not drawing]
        changed = {"precision": precision, "memory": memory, "compile": self.compile}
        return {name: value for name, value in changed.items() if value}

    def equip(self, model: Diffusion) -> Diffusion:
        """Switch on the model's own memory savings and return it."""
        parts: Any = model
        if "checkpointing" in self.memory:
            parts.unet.enable_gradient_checkpointing()
        if "slices" in self.memory and hasattr(model, "vae"):
            parts.vae.enable_slicing()
        return model

    @contextmanager
    def compiled(self, model: Diffusion, must: bool = True) -> Iterator[Diffusion]:
        """Compile the U-Net within this block, if requested.

        If compilation fails, the U-Net runs uncompiled, or a `UserError` is raised if it `must` be compiled.
        """
        if not self.compile:
            yield model
            return
        import torch._dynamo

        parts: Any = model
        plain = parts.unet
        parts.unet = torch.compile(plain, dynamic=False)
        try:
            with torch._dynamo.config.patch(suppress_errors=not must):
                yield model
        except torch._dynamo.exc.TorchDynamoException as error:
            raise UserError(
                f"the network does not compile here ({one_line(error)[:160]}): leave out --compile"
            ) from error
        finally:
            parts.unet = plain

    @contextmanager
    def training(self, device: str) -> Iterator[None]:
        """Context for preparing, unlearning, and the searches of attacks."""
        token = EIGHT_BIT.set("adam8bit" in self.memory)
        micro = current_microbatches.set(
            MicroBatches(1) if "microbatches" in self.memory else current_microbatches.get()
        )
        bf16 = self.precision == "bf16"
        try:
            # No cache: autocast's copies of weights would outlive the optimiser's steps, up to the end of the outermost
            # block. Nor a block that casts nothing, or one within it, such as `retrain`'s, would not be the outermost.
            cast = torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False) if bf16 else nullcontext()
            with without_tf32(), cast:
                yield
        finally:
            EIGHT_BIT.reset(token)
            current_microbatches.reset(micro)

    @contextmanager
    def sampling(self, device: str) -> Iterator[None]:
        """Context for sampling images."""
        kind = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast(device, dtype=kind, enabled=self.precision != "fp32"):
            yield

    def drawing(self, device: str) -> AbstractContextManager[Any]:
        """Context for drawing images within `training`.

        In bf16 that is on already. A block of `sampling` within it would keep copies of weights that training changes.
        """
        return self.sampling(device) if self.precision == "fp16" else nullcontext()

    def numerics(self, device: str) -> dict[str, Any]:
        """What torch computes with in each stage (see `device.numerics`), for records."""
        with self.training(device):
            training = numerics(device)
        with exact(), self.sampling(device):
            return {"unlearning": training, "sampling": numerics(device)}


DEFAULT = Resources()


SHORTAGES = r"not enough memory|can't allocate memory|out of memory|ALLOC_FAILED|unable to find an engine"
"""Messages of CPUs, CUDA, cuBLAS and cuDNN that mean out of memory; the last is cuDNN's if no workspace fits."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that the device or machine ran out of memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or bool(
        isinstance(error, RuntimeError) and re.search(SHORTAGES, message(error))
    )


def in_fitting_parts(doing: str, work: Callable[[], T]) -> T:
    """Do the work; where memory ends, do it again with networks that see half as many rows at once, which is said.

    `work` must be able to start anew. It begins with the split that is in force (`splitting`), which then has the size
    that fitted. Raises the last error where not even one row fits, or rows cannot be split.
    """
    micro, shortage = current_microbatches.get() or MicroBatches(), ""
    while True:
        token = current_microbatches.set(micro)
        micro.largest = 0
        try:
            return work()
        except CannotSplit as error:
            if not shortage:
                raise
            raise OutOfMemory(f"{shortage}; smaller parts do not help, because {error.reason}") from error
        except Exception as error:
            rows = min(micro.largest, micro.size or micro.largest)
            if rows <= 1 or not (isinstance(error, OutOfMemory) or out_of_memory(error)):
                raise
            shortage = str(error)  # not the error itself, which holds on to the memory of its frames
        finally:
            current_microbatches.reset(token)
        give_memory_back()
        micro.size = (rows + 1) // 2
        tell(f"too little memory for {doing} with {rows} images at once: it starts again with {micro.size} at a time")


def give_memory_back() -> None:
    """Give memory that nothing uses any more back to the device and to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim()


def too_little(doing: str, error: BaseException, batch: int | None) -> OutOfMemory:
    """One line that suggests what may fit into memory."""
    asked = re.search(r"(?:allocate|allocated) (\d[\d.]* ?\w+)", message(error))
    size = f" ({asked[1]} more was asked for)" if asked else ""
    smaller = f"--set batch_size={max(1, batch // 2)} needs about half as much; " if batch and batch > 1 else ""
    return OutOfMemory(
        f"{doing} ran out of memory{size}{_held_by_others(error)}: {smaller}--memory checkpointing,slices, and on CUDA "
        "--precision bf16 and --memory adam8bit, save more; what is finished is kept"
    )


def _held_by_others(error: BaseException) -> str:
    """What torch says that other processes hold of the GPU: pytorch/pytorch, c10/cuda/CUDACachingAllocator.cpp."""
    others = re.findall(r"Process (\d+) has (\d[\d.]* \w+) memory in use", message(error))
    held = " and ".join(f"process {number} holds {size}" for number, size in others)
    return f"; {held} of this GPU, CUDA_VISIBLE_DEVICES names another" if others else ""
