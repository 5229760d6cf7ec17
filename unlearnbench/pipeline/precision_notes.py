"""What a user should know about the precision of a run before it begins."""

from __future__ import annotations

from unlearnbench.pipeline.cell import Cell
from unlearnbench.reporting import tell

LEAST = 0.99
"""Cosine of a gradient in bf16 and in float32 below which a method is warned of: an angle of 8 degrees."""
LOST: dict[str, float] = {"esd": 0.9883, "esd_u": 0.8969}
"""Methods below it, by the median cosine of their updates: the lower one of the two models in results/gpu.md, which
`python -m tests.studies.bf16_gradients` writes."""
_told: set[str] = set()


def tell_precision(cell: Cell) -> None:
    """Tell what speaks for another precision than the run's, each line once in a process."""
    for line in (slow_drawing(cell), lost_gradient(cell)):
        if line is not None and line not in _told:
            _told.add(line)
            tell(line)


def slow_drawing(cell: Cell) -> str | None:
    """What half precision would save; None where images are drawn in it, or quickly, or not on CUDA."""
    task = cell.task
    if task.device != "cuda" or cell.resources.precision != "fp32" or task.protocol.name == "smoke":
        return None
    from unlearnbench.tasks._sd.base import StableDiffusionTask  # it takes a moment to import

    if not isinstance(task, StableDiffusionTask):
        return None
    return (
        f"{task.name} is drawn in fp32, which takes about ten times as long as fp16 (by estimate 5 s and 0.5 s an "
        "image of Stable Diffusion 1 on an A100): --precision fp16 draws in it, bf16 also trains in bfloat16"
    )


def lost_gradient(cell: Cell) -> str | None:
    """Which method loses its gradient to bf16; None where none does."""
    name = cell.method.name
    if cell.resources.precision != "bf16" or name not in LOST:
        return None
    return (
        f"{name} in bf16: rounding turns its gradient, whose loss is a difference of close predictions (cosine "
        f"{LOST[name]:.3f} to that in float32 on a small model): --precision fp16 draws in half precision and trains "
        "in float32"
    )
