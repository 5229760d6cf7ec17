"""How much memory unlearning takes on a GPU, from a table of shapes: before anything is fetched or tried."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from unlearnbench.compute.precision import Resources
from unlearnbench.errors import Unsupported
from unlearnbench.method import Method
from unlearnbench.task import Task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GIB = 2**30
CARDS = (12, 16, 24, 40, 80)
"""Memory of common GPUs in GiB, by which vendors name them."""
CONTEXT = 0.5
"""GiB that CUDA itself takes on a card."""
BYTES = 4
"""Of a weight, gradient or moment: training keeps them in float32 under every --precision."""
COMMON = 24
"""GiB of the card for which runs choose savings themselves."""
LADDER: tuple[tuple[str, ...], ...] = (
    (),
    ("checkpointing",),
    ("checkpointing", "microbatches"),
    ("adam8bit", "checkpointing", "microbatches"),
)
"""Savings of --memory, from none to all that training knows, in the order in which they cost time or exactness."""


@cache
def cost_table() -> dict[str, dict[str, Any]]:
    """Read costs.toml and networks.toml: models, methods and files."""
    files = [Path(__file__).parent / name for name in ("costs.toml", "networks.toml")]
    table, networks = (tomllib.loads(path.read_text(encoding="utf-8")) for path in files)
    shapes = table.pop("network")
    table["model"] = {
        name: {**entry, **({"network": shapes[name]} if name in shapes else {})} for name, entry in networks.items()
    }
    return table


def model_costs(task: Task | type[Task], given: Path | None = None) -> dict[str, Any] | None:
    """The table's entry of a task's model; None if there is none, or the user gave a model of their own (`given`)."""
    if not isinstance(task, type):
        given = given or getattr(task, "checkpoint", None) or getattr(task, "weights", None)
    if given is not None and given.is_dir():
        return None
    found: dict[str, Any] | None = cost_table()["model"].get(getattr(task, "model_folder", task.name))
    return found


def whole_model(model: Mapping[str, Any]) -> int:
    """Parameters of all networks of a model."""
    return int(model["denoiser"] + model["vae"] + model["text_encoders"])


class Uncounted(Exception):
    """The table lacks a shape; the message says which."""


def peak_of_unlearning(model: Mapping[str, Any] | None, method: Method, precision: str, savings: Iterable[str]) -> int:
    """Peak bytes while a method unlearns a model, by the formula at the head of costs.toml.

    Raises `Uncounted` with the shape that the table lacks.
    """
    entry, savings = cost_table()["method"].get(method.name), {*savings}
    if model is None:
        raise Uncounted("no shape of this model")
    if entry is None:
        raise Uncounted("no shape of this method")
    settings = method.settings()
    part = entry.get("adapts") or settings.get("part") or entry.get("part") or "full"
    if part != "adapters" and part not in model["parts"]:
        raise Uncounted(f"no shape of part {part}")
    images = _images(entry, settings)
    if "microbatches" in savings and images > 1:
        if entry.get("whole"):
            raise Uncounted("its batches cannot be split: no shape with micro-batches")
        images = 1
    copies = BYTES * model["parts"].get(part, 0)
    teacher = model["denoiser"] + (model["text_encoders"] if part == "text_encoder" else 0)
    moments = 1.5 if "adam8bit" in savings else 0.0  # two moments of 1 byte in place of 4
    mean = 1 if settings.get("ema") is not None and "step" in entry else 0
    backward, step = (max(0.0, entry.get(name, 0) - moments + mean) for name in ("backward", "step"))
    resident = BYTES * (whole_model(model) + entry.get("models", 0) * teacher)
    at_once = max(
        copies * backward + _activations(model, entry, images, precision, savings) + _rows(model, entry, settings),
        copies * step,
        _drawing(model, _images(entry, settings, "draws")),
    )
    return int(resident + at_once)


def _rows(model: Mapping[str, Any], entry: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    """Bytes of the features of a batch of vectors, as many times as they are there at once."""
    copies, size = entry.get("rows", (0, ""))
    if not copies:
        return 0
    if "features" not in model:
        raise Uncounted("no number of features of this model")
    return int(BYTES * copies * model["features"] * settings[size])


def _drawing(model: Mapping[str, Any], images: int) -> int:
    """Bytes of guided sampling of so many images at once, beyond weights."""
    if not images:
        return 0
    if "drawing" not in model:
        raise Uncounted("no sampling of this model")
    fixed, each = model["drawing"]
    return int(fixed + each * images)


def _images(entry: Mapping[str, Any], settings: Mapping[str, Any], which: str = "images") -> int:
    """Images in one graph: the sum of the settings that the table names; a product where it names several with *.

    With `which` "draws": images that are drawn at once beforehand.
    """
    total = 0
    for term in entry.get(which, ()):
        factors = [settings.get(name) for name in term.split("*")]
        whole = [factor for factor in factors if isinstance(factor, int)]
        if len(whole) < len(factors):
            raise Uncounted(f"no number of images in {term}")
        total += prod(whole)
    return total


def _activations(
    model: Mapping[str, Any], entry: Mapping[str, Any], images: int, precision: str, savings: set[str]
) -> int:
    if not images:
        return 0
    kept = model.get("activations", {}).get("bf16" if precision == "bf16" else "fp32", {})
    kind = "maps" if entry.get("maps") else "checkpointing" if "checkpointing" in savings else "plain"
    if kind not in kept:
        raise Uncounted(f"no activations of this model with {kind}")
    fixed, each = kept[kind]
    return int(fixed + each * images)


def require_splittable(method: Method, resources: Resources) -> None:
    """Raise `Unsupported` where micro-batches are asked for and the table says that the method takes whole batches."""
    entry = cost_table()["method"].get(method.name, {})
    if "microbatches" in resources.memory and entry.get("whole") and _images(entry, method.settings()) > 1:
        raise Unsupported(
            f"--memory microbatches: the loss of {method.name} reads a whole batch inside the network, so that it "
            "cannot be split: leave it out, or give --set batch_size=1"
        )


def smallest_card(memory: int) -> int | None:
    """The smallest of `CARDS` that holds so many bytes; None if none does."""
    return next((size for size in CARDS if memory / GIB + CONTEXT <= size), None)


class MemoryPlan(NamedTuple):
    """Peak bytes of a method's unlearning on a task."""

    peaks: dict[tuple[str, tuple[str, ...]], int | None]
    """By precision and savings of `LADDER`; None where they cannot be had."""
    uncounted: str | None
    """Which shape the table lacks; None where memory is counted."""

    def savings_for(self, gib: float, precision: str = "fp32") -> tuple[str, ...] | None:
        """The first savings of `LADDER` with which it fits a card of so many GiB; None if none is enough."""
        fits = {savings: peak for (kind, savings), peak in self.peaks.items() if kind == precision and peak is not None}
        return next((savings for savings in LADDER if savings in fits and _fits(fits[savings], gib)), None)


def _fits(memory: int, gib: float) -> bool:
    return memory / GIB + CONTEXT <= gib


def memory_plan(model: Mapping[str, Any] | None, method: Method) -> MemoryPlan:
    """Count every precision and every rung of `LADDER`."""
    peaks: dict[tuple[str, tuple[str, ...]], int | None] = {}
    reason = None
    for precision in ("fp32", "bf16"):
        for savings in LADDER:
            try:
                peaks[precision, savings] = peak_of_unlearning(model, method, precision, savings)
            except Uncounted as error:
                peaks[precision, savings] = None
                reason = reason or (str(error) if not savings else None)
    return MemoryPlan(peaks, reason)


def default_savings(
    task: type[Task], method: Method, protocol: str, precision: str, given: Path | None
) -> tuple[str, ...]:
    """The savings with which a run starts where none are asked for.

    Checkpointing, where training needs more than a common card without, and the table says that it helps. It leaves
    gradients as they are. Small models, and those of the user's own, train without.
    """
    model = model_costs(task, given)
    if model is None or protocol == "smoke":
        return ()
    peaks = {}
    for savings in LADDER[:2]:
        try:
            peaks[savings] = peak_of_unlearning(model, method, precision, savings)
        except Uncounted:
            return ()
    plain, saving = (peaks[savings] for savings in LADDER[:2])
    return ("checkpointing",) if not _fits(plain, COMMON) and saving < plain else ()


def with_defaults(resources: Resources, savings: Sequence[str]) -> Resources:
    """The resources with these savings beside their own."""
    return Resources(resources.precision, tuple(sorted({*resources.memory, *savings})), resources.compile)
