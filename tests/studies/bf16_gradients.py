"""What bf16 leaves of each method's gradients: `python -m tests.studies.bf16_gradients` writes results/gpu.md's table.

Every method that trains takes `STEPS` updates on a CPU, twice: in float32, and under the autocast of `--precision
bf16`. It does so with the trained model of `digits-text`, whose predictions change much with the prompt, and with a
tiny untrained Stable Diffusion, whose predictions hardly do. The second run gets the weights that each step of the
first left, the same random numbers, what was prepared in float32, and samples drawn in float32, so that its gradients
differ by rounding alone. They are compared as one vector over all trained weights.
"""

from __future__ import annotations

import argparse
import copy
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from tests.support import tiny_sd
from tests.support.tiny_text import TinyText
from unlearnbench import Task, registry, training
from unlearnbench.compute.precision import Resources
from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import Unsupported
from unlearnbench.hashing import seed_of
from unlearnbench.method import Method, run_prepare, run_unlearn
from unlearnbench.tasks.digits_text import DigitsText
from unlearnbench.training import seeded

STEPS = 8
WORLDS = ("trained", "untrained")
QUICK = {"sampler_steps": 5, "images": 16, "surrogate_images": 16, "replay_images": 16, "fisher_samples": 4}
QUICK |= {"fisher_timesteps": 4, "blind_steps": 2, "outer": 4, "attack_steps": 2}
"""Settings of how long a method prepares, which gradients do not depend on."""
BEGIN, END = "<!-- bf16 -->", "<!-- /bf16 -->"


class Enough(BaseException):
    """`STEPS` updates are known: the rest of a run is left out. No method may catch it."""


class Trace(NamedTuple):
    """The updates of one run, in order."""

    gradients: list[Tensor]
    weights: list[list[Tensor]]
    """After each update of a run whose weights are not given."""


@contextmanager
def traced(given: Trace | None = None) -> Iterator[Trace]:
    """Keep the gradients of `minimise`; with a trace that is `given`, its weights take the place of each update."""
    trace = Trace([], [])

    def followed(base: Any) -> Any:
        class Followed(base):
            def step(self, closure: Any = None) -> None:
                values = [value for group in self.param_groups for value in group["params"]]
                trace.gradients.append(torch.cat([value.grad.detach().float().flatten() for value in values]))
                if given is None:
                    super().step()
                else:
                    with torch.no_grad():
                        for value, known in zip(values, given.weights[len(trace.gradients) - 1], strict=True):
                            value.copy_(known)
                if given is None:
                    trace.weights.append([value.detach().clone() for value in values])
                if len(trace.gradients) == STEPS:
                    raise Enough

        return Followed

    real = Diffusion.sample

    def in_float32(self: Diffusion, *args: Any, **settings: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return real(self, *args, **settings)

    chosen = {name: followed(base) for name, base in training.OPTIMISERS.items()}
    with patch.object(training, "OPTIMISERS", chosen), patch.object(Diffusion, "sample", in_float32):
        yield trace


def quick(name: str) -> Method:
    """A method with its settings for this task, and little to prepare."""
    cls = registry.load_method(name)
    method = cls.configured(cls.preset("default", "digits-text"))
    known = {field.name for field in fields(method)}
    return replace(method, **{key: value for key, value in QUICK.items() if key in known})


def worlds(folder: Path) -> dict[str, Callable[[], Task]]:
    """What makes each task."""
    with seeded(0):
        tiny_sd.save(folder / "model", "sd1")
    return {
        "trained": lambda: DigitsText("seven", limit=STEPS),
        "untrained": lambda: TinyText(folder / "model", limit=STEPS),
    }


@torch.no_grad()
def told_apart(task: Task) -> float:
    """|| eps(x_t, c) - eps(x_t, null) || / || eps(x_t, null) || of noise at random timesteps, c the task's concept."""
    model: Any = task.pretrained().eval()
    with seeded(0):
        y = task.names("forget")[:1].expand(64, -1)
        t, x_t = torch.randint(len(model.alpha_bar), (64,)), torch.randn(64, *model.shape)
        null = model.eps(x_t, t, model.null(64))
        return float((model.eps(x_t, t, y) - null).norm() / null.norm())


def compared(name: str, make: Callable[[], Task]) -> list[float]:
    """Cosines of the gradients in bf16 and in float32, step by step; none where a method trains nothing."""
    traces: list[Trace] = []
    prepared: Any = None
    for precision in ("fp32", "bf16"):
        task, method = make(), quick(name)
        with seeded(seed_of("structure", 0) >> 1):
            model = method.wrap(task.starting(), task)
        if not traces:
            with seeded(seed_of("preparing", 0) >> 1):
                prepared = run_prepare(method, model, task)
        with (
            seeded(seed_of("unlearning", 0) >> 1),
            Resources(precision).training("cpu"),  # type: ignore[arg-type]
            traced(traces[0] if traces else None) as trace,
            suppress(Enough),
        ):
            run_unlearn(method, model, task, copy.deepcopy(prepared))
        traces.append(trace)
    pairs = zip(traces[0].gradients, traces[1].gradients, strict=True)
    return [float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0)) for a, b in pairs if a.any()]


def trained() -> list[str]:
    """Methods that train, but from scratch."""
    every = {name: registry.load_method(name) for name in registry.methods()}
    return [name for name, cls in every.items() if cls.trains and "training recipe" not in cls.requires]


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """The rows, lowest median first."""
    lines = ["| method | " + " | ".join(f"{world}: median (lowest)" for world in WORLDS) + " |"]
    lines.append("| --- |" + " --- |" * len(WORLDS))
    for name, by_world in sorted(found.items(), key=lambda item: min(map(median, item[1].values()))):
        cells = (by_world.get(world) for world in WORLDS)
        lines.append(
            f"| {name} | "
            + " | ".join(f"{median(each):.4f} ({min(each):.4f})" if each else "-" for each in cells)
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", help="these alone, without writing")
    parser.add_argument("--out", type=Path, default=Path("results/gpu.md"))
    asked = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        every = worlds(Path(folder))
        for world, make in every.items():
            print(world, f"told apart {told_apart(make()):.3f}", flush=True)
        for name in asked.methods or trained():
            for world, make in every.items():
                try:
                    cosines = compared(name, make)
                except Unsupported as error:
                    print(world, name, error, flush=True)
                    continue
                if cosines:
                    found.setdefault(name, {})[world] = cosines
                    print(world, name, *(f"{value:.4f}" for value in cosines), flush=True)
    if not asked.methods:
        text = asked.out.read_text(encoding="utf-8")
        whole = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
        asked.out.write_text(whole.sub(f"{BEGIN}\n\n{table(found)}\n\n{END}", text), encoding="utf-8")


if __name__ == "__main__":
    main()
