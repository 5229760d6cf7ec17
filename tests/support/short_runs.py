"""Settings that make any method short, for tests of what does not depend on how long it trains."""

from __future__ import annotations

import dataclasses

from unlearnbench import registry
from unlearnbench.method import Method

SHORT = {"steps": 2, "batch_size": 32, "images": 4, "surrogate_images": 4, "replay_images": 4}
SHORT |= {"fisher_samples": 2, "fisher_timesteps": 2, "sampler_steps": 3, "blind_steps": 2}
SHORT |= {"epochs": 1, "rounds": 1, "K": 1, "outer": 2, "batches": 2, "inner_steps": 1}
SHORT |= {"start_steps": 1, "search_steps": 1, "inversion_steps": 1}
SHORT |= {"attack_steps": 1, "attack_tokens": 2, "images_a_prompt": 1, "trajectories": 4}
SHORT |= {"mask_steps": 1, "mask_rounds": 1, "retain_images": 4}

ONE_STEP = {"steps": 1, "images": 2, "surrogate_images": 2, "replay_images": 2, "sampler_steps": 2, "blind_steps": 1}
"""Where a method need only come through: in the place of those."""


def changed(method: type[Method]) -> list[str]:
    """Those settings that a method has and that are not 0, as words of the command line."""
    known = method.configured({}).settings()
    return [word for name, value in SHORT.items() if known.get(name) for word in ("--set", f"{name}={value}")]


def short(name: str, **other: object) -> Method:
    """The method with them, or with others in their place."""
    cls = registry.load_method(name)
    known = cls.configured({}).settings()
    brief = {key: value for key, value in SHORT.items() if known.get(key)}  # what is off stays off
    return cls.configured(brief | {key: value for key, value in other.items() if key in known})


def shortened(method: Method, **others: int) -> Method:
    """The same method with them, or with others of their names."""
    known = {field.name for field in dataclasses.fields(method)}
    return dataclasses.replace(method, **{key: value for key, value in (SHORT | others).items() if key in known})
