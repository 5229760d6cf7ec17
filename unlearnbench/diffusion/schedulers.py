"""Sampling with diffusers' schedulers, for models whose papers use them. The noise depends only on the image's seed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from unlearnbench.diffusion.model import Hook
from unlearnbench.diffusion.noise import START, gaussian_noise, noise_keys
from unlearnbench.diffusion.sampler import Sampler, Stops

if TYPE_CHECKING:
    from unlearnbench.diffusion.model import Condition, Diffusion

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}


NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
"""Keys of a scheduler's configuration that say what noise the model was trained with."""
SAMPLING: dict[str, dict[str, Any]] = {
    "ddim": {
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
        "thresholding": False,
    },
    "lms": {"timestep_spacing": "linspace"},
    "dpm++": {"timestep_spacing": "linspace"},
}
"""How each scheduler samples, whoever saved the model: what v1.4's own configuration makes of it (diffusers' defaults
where that has no key), as in the papers' scripts. A model's own keys for this would change what a protocol means."""


@dataclass(frozen=True)
class Scheduled(Sampler):
    """A `Sampler` that uses a diffusers scheduler with the timesteps of `SAMPLING` and the model's noise schedule."""

    steps: int = 50
    guidance: float = 7.5
    scheduler: Literal["ddim", "lms", "dpm++"] = "ddim"


@dataclass(frozen=True)
class Repeating(Scheduled):
    """A `Scheduled` that starts from the same noise as the papers' scripts, so that their images can be reproduced."""

    generator: Literal["torch-cpu"] = "torch-cpu"
    """The random generator: torch's on the CPU, seeded for each image separately."""


def scheduler_for(config: Mapping[str, Any], sampler: Scheduled) -> Any:
    """Return the scheduler with its timesteps set. It takes noise predictions, whatever the network predicts."""
    import diffusers

    cls = getattr(diffusers, SCHEDULERS[sampler.scheduler])
    noise = {key: config[key] for key in NOISE if key in config}
    scheduler = cls.from_config({**noise, **SAMPLING[sampler.scheduler], "prediction_type": "epsilon"})
    scheduler.set_timesteps(sampler.steps)
    return scheduler


def size_of(scheduler: Any, i: int) -> float:
    """Factor between the scheduler's x_t at step i and sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise: LMS uses sigma
    space.
    """
    return float((scheduler.sigmas[i] ** 2 + 1) ** 0.5) if type(scheduler).__name__ == SCHEDULERS["lms"] else 1.0


def starting_noise(seeds: Sequence[int], sampler: Scheduled, shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal noise (B, *shape), float32; image b depends only on seeds[b]."""
    if not isinstance(sampler, Repeating):
        return gaussian_noise(seeds, START, shape, device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=each) for each in generators]).to(device)


def sample_latents(
    model: Diffusion,
    condition: Condition,
    seeds: Sequence[int],
    sampler: Scheduled,
    config: Mapping[str, Any],
    start: tuple[Tensor, int] | None = None,
    until: int | Tensor = 0,
    hook: Hook | None = None,
) -> Tensor:
    """As `model.sample`: latents x (B, C, H, W), or x_t if `until` skips steps.

    x_t is taken and returned as sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise, also for schedulers in sigma space.
    """
    scheduler = scheduler_for(config, sampler)
    every = scheduler.timesteps
    device = model.alpha_bar.device
    if start is None:
        first = 0
        x = starting_noise(seeds, sampler, model.shape, device) * scheduler.init_noise_sigma
    else:
        first = next((i for i, t in enumerate(every.tolist()) if t <= start[1]), len(every))
        x = start[0].to(device) * size_of(scheduler, min(first, len(every) - 1))
        if hasattr(scheduler, "set_begin_index"):  # DDIM does not count its steps
            scheduler.set_begin_index(first)
    stops, timesteps = Stops(len(every), until, len(seeds), device), every.to(device)
    null = model.null(len(seeds))
    model.guidance.start(len(seeds))
    noisy = sampler.eta > 0 and "eta" in inspect.signature(scheduler.step).parameters
    keys = noise_keys(seeds, device) if noisy else None
    result = x / size_of(scheduler, first) if first < len(every) else x
    for i in range(first, stops.last):
        x_t = scheduler.scale_model_input(x, every[i])
        if hook:
            hook(i, int(every[i]), x_t)
        t = timesteps[i].expand(len(seeds))
        eps = model.guidance(model, x_t, t, i, condition, null, sampler.guidance)
        extra: dict[str, Any] = {}
        if keys is not None:
            noise = gaussian_noise(keys, int(every[i]), model.shape, device).to(x)
            extra = {"eta": sampler.eta, "variance_noise": noise}
        x = scheduler.step(eps, every[i], x, return_dict=False, **extra)[0]
        after = x / size_of(scheduler, i + 1) if i + 1 < len(every) else x
        result = stops.after(i, after.to(torch.promote_types(after.dtype, result.dtype)), result)
    return result
