"""Read what records say that torch computed with: `numerics` of a run's environment and of its attacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CASTS: dict[str, tuple[str | None, str | None]] = {
    "float32": (None, None),
    "bf16": ("bfloat16", "bfloat16"),
    "fp16": (None, "float16"),
}
"""By a record's precision: what autocast casts to where gradients are computed, and where images are drawn."""
DRAWING = "sampling"
"""The stage that draws; every other one computes gradients."""


def describe_numerics(stages: Any) -> str:
    """Say it in words, such as `unlearning float32 without TF32, sampling float16`; "" where it is not known."""
    known = stages if isinstance(stages, Mapping) else {}
    return ", ".join(f"{stage} {_words(how)}" for stage, how in known.items() if isinstance(how, Mapping))


def _words(how: Mapping[str, Any]) -> str:
    cast, rounded = how.get("autocast"), how.get("tf32")
    if cast is not None:
        return str(cast)
    if rounded is None:
        return "float32"
    return f"float32 with TF32 {' and '.join(map(str, rounded))}" if rounded else "float32 without TF32"


def trained_in_tf32(environment: Mapping[str, Any]) -> bool:
    """Whether convolutions or products in float32 were rounded to TF32 in training; records from before did not say."""
    if environment.get("device_type") != "cuda" or environment.get("precision") == "bf16":
        return False
    stages = environment.get("numerics")
    if not isinstance(stages, Mapping):
        return True  # torch's default, which training did not change then
    training = stages.get("unlearning")
    return isinstance(training, Mapping) and bool(training.get("tf32")) and not training.get("autocast")


def check_numerics(stages: Any, precision: str, recipe: bool = False) -> Iterator[str]:
    """Yield what cannot be: another shape than runs write, or another autocast than the precision has.

    A training `recipe` may cast by itself.
    """
    if stages is None:
        return
    if not isinstance(stages, Mapping) or not all(_sound(how) for how in stages.values()):
        yield "its numerics are not as runs write them"
        return
    if precision not in CASTS:
        return
    for stage, how in stages.items():
        meant = CASTS[precision][stage == DRAWING]
        if how.get("autocast") != meant and not (recipe and stage != DRAWING):
            yield f"its precision is {precision}, but {stage} was computed in {how.get('autocast') or 'float32'}"


def _sound(how: Any) -> bool:
    if not isinstance(how, Mapping) or not set(how) <= {"autocast", "tf32"}:
        return False
    cast, rounded = how.get("autocast"), how.get("tf32")
    return isinstance(cast, str | None) and (
        rounded is None or (isinstance(rounded, list) and all(isinstance(name, str) for name in rounded))
    )
