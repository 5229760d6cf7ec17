"""Speed at real size: `python -m tests.studies.throughput` on a GPU measures a Stable Diffusion v1.4 with random
weights.

Images a second as a run draws and keeps them (`pipeline.sampling.sample_images`) beside diffusers' own pipeline, in
fp32 and fp16, peak memory, and one step of ESD, EraseDiff and SalUn as a run takes it (`pipeline.unlearning.unlearn`);
written to results/throughput-sd14-<card>.md. `--size cifar10` measures the papers' network on CIFAR-10 beside a plain
loop (`tests.studies.throughput_cifar`); the tiny sizes try the same paths anywhere in seconds.
"""

from __future__ import annotations

import argparse
import itertools
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.support import tiny_sd
from tests.support.tiny_text import TinyText
from unlearnbench import Batch
from unlearnbench.compute.device import pick_device
from unlearnbench.compute.environment import Meter, describe_environment
from unlearnbench.compute.precision import Resources
from unlearnbench.diffusion.schedulers import Scheduled
from unlearnbench.methods.erasediff import EraseDiff
from unlearnbench.methods.esd import ESD
from unlearnbench.methods.original import Original
from unlearnbench.methods.salun import SalUn
from unlearnbench.models.loading import as_pipeline
from unlearnbench.models.stable_diffusion import StableDiffusion
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.sampling import sample_images
from unlearnbench.pipeline.unlearning import unlearn
from unlearnbench.storage.store import Store
from unlearnbench.task import Plan

ROUNDS = 3
DEFAULTS = {"sd14": (4, 50), "tiny": (4, 50), "cifar10": (500, 20), "cifar10-tiny": (8, 4)}
"""Images at once, and steps. CIFAR-10's protocol takes 100, in which a plain loop needs most of an hour."""
METHODS = {
    "ESD-x": lambda batch: ESD(steps=1, batch_size=batch, part="xattn", sampler_steps=4),
    "EraseDiff": lambda batch: EraseDiff(steps=1, batch_size=batch),
    "SalUn": lambda batch: SalUn(steps=1, batch_size=batch),
}
PROMPT = "a photo of a cat"


class Row(NamedTuple):
    """One thing that was timed."""

    what: str
    seconds: float
    images: int | None
    """Drawn, or trained on."""
    memory: float | None
    """Peak in GiB."""
    failed: str | None = None
    """Why there are no seconds."""


def sd14(tokens: Any) -> StableDiffusion:
    """The published configuration of v1.4 (U-Net of 860 M weights), drawn at random; the tokenizer is a small one."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    widths = (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        eos_token_id=tokens.eos_token_id,
    )
    return StableDiffusion(unet, vae, [CLIPTextModel(text)], [tokens], tiny_sd.SCHEDULE)


class Sized(TinyText):
    """The tiny task's words on a network of any size: random latents, as many as one batch."""

    def __init__(self, folder: Path, model: StableDiffusion | None, device: str):
        super().__init__(folder, device=device)
        self.original = (model or self.original).to(device).eval()

    def data(self, which: str) -> Batch:
        y = self.captions("forget" if which == "forget" else "retain").cpu()
        return Batch(torch.randn(len(y), *self.original.shape), y)

    def inputs(self, items: list[Plan]) -> torch.Tensor:
        return self.original.tokens([item.prompt for item in items])

    def to_uint8(self, x: torch.Tensor) -> torch.Tensor:
        return uint8(x)


def uint8(x: torch.Tensor) -> torch.Tensor:
    """As tasks hand images over."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def drawn(cell: Cell, model: Any, folder: Path, plan: list[Plan]) -> Callable[[], Any]:
    """Drawing a plan as a run does: in exact float32 or under autocast, decoded, as uint8, kept in a store."""
    number = itertools.count()

    def work() -> Any:
        return sample_images(cell, model, {}, plan, Store(folder / f"store-{next(number)}"))

    return work


def seconds(work: Callable[[], Any], device: str) -> tuple[float, int | None]:
    """The least of a few rounds after a warm one, and peak memory in bytes."""
    work()
    meters = []
    for _ in range(ROUNDS):
        with Meter(device) as meter:
            work()
        meters.append(meter)
    return min(meter.seconds for meter in meters), meters[-1].memory


def measured(size: str, device: str, batch: int, steps: int) -> Iterator[Row]:
    """Rows of a Stable Diffusion, each as soon as it is measured."""
    with tempfile.TemporaryDirectory() as folder:
        task = Sized(Path(folder) / "sd", None, device)
        if size == "sd14":
            tokens = task.original.tokenizers[0]
            tokens.model_max_length = 77
            task.original = sd14(tokens).to(device).eval()
        model, sampler = task.original, Scheduled(steps, guidance=7.5)
        model.sampler, prompts = sampler, [PROMPT] * batch
        task.protocol = replace(task.protocol, sampler=sampler, chunk=batch)
        plan = [Plan("retain", "cat", 0, seed, PROMPT) for seed in range(batch)]
        kinds = ("fp32", "fp16") if device == "cuda" else ("fp32",)
        for kind in kinds:
            pipeline = as_pipeline(model).to(device)
            pipeline.set_progress_bar_config(disable=True)
            cell = Cell(Original(), task, resources=Resources(kind))  # type: ignore[arg-type]
            ours = drawn(cell, model, Path(folder) / kind, plan)

            def theirs(kind: str = kind, pipeline: Any = pipeline) -> Any:
                with torch.inference_mode(), Resources(kind).sampling(device):  # type: ignore[arg-type]
                    return pipeline(prompts, num_inference_steps=steps, guidance_scale=7.5, output_type="pt")

            for name, work in (("unlearnbench", ours), ("StableDiffusionPipeline", theirs)):
                took, memory = seconds(work, device)
                yield Row(f"{kind}, {name}: {batch} images of {steps} steps", took, batch, gib(memory))
        for name, make in METHODS.items():
            cost = unlearn(Cell(make(batch), task))[1]["cost"]
            took = cost["prepare_time"] + cost["unlearn_time"]
            yield Row(f"{name}: preparing and one step of {batch}", took, None, gib(cost["peak_memory"]))


def gib(memory: int | None) -> float | None:
    """Bytes in GiB."""
    return None if memory is None else memory / 2**30


def page(rows: list[Row], size: str, device: str, batch: int, steps: int) -> str:
    """Markdown, with the card's name; each plain loop is what the rows of its kind are held against."""
    facts = describe_environment(device)
    lines = [f"# Throughput on {facts['device']}", "", f"Size {size}, random weights, {batch} images at once, {steps} "]
    lines[-1] += f"sampling steps. Least of {ROUNDS} rounds; torch {facts['packages']['torch']}, diffusers "
    lines[-1] += f"{facts['packages']['diffusers']}."
    lines += ["", "| what | s | images/s | times the plain loop | peak GiB |", "|---|---:|---:|---:|---:|"]
    plain = {row.what.partition(",")[0]: row.seconds for row in rows if ", plain loop" in row.what}
    for row in rows:
        if row.failed is not None:
            lines.append(f"| {row.what}: {row.failed} | | | | |")
            continue
        rate = "" if row.images is None else f"{row.images / row.seconds:.2f}"
        least = plain.get(row.what.partition(",")[0])
        times = "" if least is None else f"{least / row.seconds:.2f}"
        memory = "" if row.memory is None else f"{row.memory:.2f}"
        lines.append(f"| {row.what} | {row.seconds:.3f} | {rate} | {times} | {memory} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=DEFAULTS, default="sd14")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = parser.parse_args()
    device = pick_device("auto")
    batch, steps = (own or usual for own, usual in zip((given.batch, given.steps), DEFAULTS[given.size], strict=True))
    if given.size.startswith("cifar10"):
        from tests.studies import throughput_cifar

        with tempfile.TemporaryDirectory() as folder:
            rows = list(throughput_cifar.measured(given.size, device, batch, steps, Path(folder)))
    else:
        rows = list(measured(given.size, device, batch, steps))
    text = page(rows, given.size, device, batch, steps)
    name = re.sub(r"[^a-z0-9]+", "-", str(describe_environment(device)["device"]).lower()).strip("-")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"throughput-{given.size}-{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
