"""Flow matching (Lipman et al., ICLR 2023; Liu et al., ICLR 2023): models that predict a velocity, and Euler sampling.

Stable Diffusion 3 (Esser et al., ICML 2024) and FLUX.1 are such models. In the notation of diffusers,
x_t = (1 - sigma) x0 + sigma noise, and the network predicts the velocity v = noise - x0.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unlearnbench.diffusion.model import Condition, Diffusion, Hook, evaluating
from unlearnbench.diffusion.noise import START, gaussian_noise, noise_keys
from unlearnbench.diffusion.sampler import Sampler, Stops

Density = Literal["uniform", "logit_normal"]
"""How training draws a place u in (0, 1) on the path, before `FlowSchedule.shifted` makes a sigma of it."""


@dataclass(frozen=True)
class FlowSampler(Sampler):
    """Euler steps along the velocity: the number of steps, and two scales of guidance.

    `guidance` is that of classifier-free guidance, as in every `Sampler`; diffusers calls it `true_cfg_scale` for FLUX,
    where the pipeline's `guidance_scale` is another number: see `embedded_guidance`. The defaults are those of
    `StableDiffusion3Pipeline` (huggingface/diffusers at 0.42.1,
    src/diffusers/pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py:782).
    """

    steps: int = 28
    guidance: float = 7.0
    embedded_guidance: float = 3.5
    """The guidance scale that a guidance-distilled network is told, as FLUX.1 [dev]; other networks do not read it."""


@dataclass(frozen=True)
class FlowSchedule:
    """The levels of noise that a model samples at: a diffusers `FlowMatchEulerDiscreteScheduler` by its configuration.

    A shift moves steps towards the noise: sigma = s u / (1 + (s - 1) u). It is one number (`shift`), or grows with the
    number of image tokens (`use_dynamic_shifting`), since more pixels need more noise to hide the same content.
    """

    config: Mapping[str, Any]
    """The content of scheduler_config.json."""
    whole_grid: bool = True
    """Whether unshifted steps divide the way from sigma 1 to the least sigma of training (SD3), or go from 1 to
    1 / steps (FLUX)."""

    @property
    def length(self) -> int:
        """The number T of training timesteps; timestep t means sigma = t / T."""
        return int(self._setting("num_train_timesteps"))

    def sigmas(self, steps: int, tokens: int) -> Tensor:
        """The decreasing sigmas (steps + 1,) of `steps` Euler steps, the last one 0, for images of so many tokens.

        They are those that diffusers' pipelines of SD3 and FLUX set in their scheduler.
        """
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(self.config))
        shift = {"mu": self._mu(tokens)} if self._setting("use_dynamic_shifting") else {}
        if self.whole_grid:
            scheduler.set_timesteps(steps, **shift)
        else:
            scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).tolist(), **shift)
        return scheduler.sigmas

    def shifted(self, u: Tensor) -> Tensor:
        """The sigma of a place u in [0, 1] in training: with the schedule's fixed shift, without one that is dynamic.

        diffusers' training scripts do this: they read the sigmas of a scheduler whose steps are not set
        (huggingface/diffusers at 5700e52, examples/dreambooth/train_dreambooth_lora_sd3.py and _lora_flux.py).
        """
        s = 1.0 if self._setting("use_dynamic_shifting") else float(self._setting("shift"))
        return s * u / (1 + (s - 1) * u)

    def _mu(self, tokens: int) -> float:
        """The logarithm of the dynamic shift: linear in the number of tokens, as `calculate_shift` in diffusers."""
        low, high = (float(self._setting(name)) for name in ("base_shift", "max_shift"))
        few, many = (int(self._setting(name)) for name in ("base_image_seq_len", "max_image_seq_len"))
        return low + (high - low) / (many - few) * (tokens - few)

    def _setting(self, name: str) -> Any:
        """A key of the configuration, or the scheduler's default."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        default = inspect.signature(FlowMatchEulerDiscreteScheduler).parameters[name].default
        return self.config.get(name, default)


class Flow(Diffusion):
    """A model that predicts the velocity noise - x0 on the straight path x_t = (1 - sigma) x0 + sigma noise.

    A timestep t is T sigma, T the length of the schedule (1,000), and need not be a whole number. `eps` is derived:
    x_t + (1 - sigma) v. At sigma 1, where sampling starts, it is x_t whatever the network says. So errors of noise
    predictions are those of velocities times 1 - sigma, and guidance acts on velocities while images are drawn, as in
    diffusers' pipelines. `alpha_bar[t]` is that of the diffusion with the same ratio of signal to noise:
    (1 - sigma)^2 / ((1 - sigma)^2 + sigma^2).
    """

    def __init__(self, schedule: FlowSchedule, shape: tuple[int, int, int], density: Density = "uniform"):
        sigma = torch.arange(schedule.length) / schedule.length
        super().__init__((1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2), shape)
        self.prediction = "velocity"
        self.flow_schedule, self.density = schedule, density
        self.sampler: Sampler = FlowSampler()
        self.embedded_guidance = FlowSampler.embedded_guidance

    @property
    @abstractmethod
    def image_tokens(self) -> int:
        """The number of tokens that an image of `shape` is for the network, which a dynamic shift depends on."""

    # ---- the path ----------------------------------------------------------------------------------------------------

    def signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 - sigma and sigma, each (B, 1, 1, 1)."""
        sigma = (t.to(self.alpha_bar) / len(self.alpha_bar)).view(-1, 1, 1, 1)
        return 1 - sigma, sigma

    def eps(self, x_t: Tensor, t: Tensor, y: Tensor | Condition) -> Tensor:
        """Noise prediction (B, C, H, W): x_t + (1 - sigma) v."""
        return x_t + self.signal(t)[0] * self(x_t, t, y)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity noise - x0, the same at every timestep."""
        return noise - x0

    def noised(
        self, x0: Tensor, generator: torch.Generator | None = None, paired: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Diffusion.noised`, with timesteps (B,) that are no whole numbers.

        Places u on the path are drawn uniformly, or as the logistic function of a normal number (SD3, section 3.1), and
        shifted by the schedule. With `paired` only the first B // 2 + 1 are drawn, and the others are 1 - u of these.
        """
        n = len(x0)
        of: dict[str, Any] = {"generator": generator, "device": x0.device}
        count = (n // 2 + 1 if paired else n,)
        u = torch.rand(count, **of) if self.density == "uniform" else torch.randn(count, **of).sigmoid()
        u = torch.cat([u, 1 - u])[:n] if paired else u
        t = len(self.alpha_bar) * self.flow_schedule.shifted(u)
        noise = torch.randn(x0.shape, dtype=x0.dtype, **of)
        return t, noise, self.add_noise(x0, noise, t)

    # ---- sampling ----------------------------------------------------------------------------------------------------

    def sigmas(self, steps: int) -> Tensor:
        """The sampler's sigmas (steps + 1,), decreasing to 0, for images of `shape`."""
        return self.flow_schedule.sigmas(steps, self.image_tokens).to(self.alpha_bar.device)

    def timesteps(self, sampler: Sampler | None = None) -> Tensor:
        """The sampler's timesteps (steps,), in decreasing order; they are no whole numbers."""
        return len(self.alpha_bar) * self.sigmas((sampler or self.sampler).steps)[:-1]

    def sample(
        self,
        y: Tensor | Condition,
        seeds: Sequence[int],
        *,
        sampler: Sampler | None = None,
        start: tuple[Tensor, int] | None = None,
        until: int | Tensor = 0,
        hook: Hook | None = None,
    ) -> Tensor:
        """Sample images or latents (B, C, H, W) for conditions y by Euler steps; image b depends on seeds[b] only.

        `start`, `until` and `hook` are those of `diffusion.model.sample`; the hook gets timesteps that are no whole
        numbers. Raises `ValueError` for a sampler with an eta: Euler steps have no noise.
        """
        chosen = sampler or self.sampler
        if chosen.eta:
            raise ValueError(f"eta={chosen.eta}: Euler steps of a flow draw no noise: give 0")
        condition = y if isinstance(y, Condition) else self.embed(y)
        with evaluating(self), self._told(chosen):
            return euler(self, condition, seeds, chosen, start, until, hook)

    @contextmanager
    def _told(self, sampler: Sampler) -> Iterator[None]:
        """Within this block a guidance-distilled network is told the sampler's scale."""
        before = self.embedded_guidance
        self.embedded_guidance = getattr(sampler, "embedded_guidance", before)
        try:
            yield
        finally:
            self.embedded_guidance = before


class _Velocities:
    """A flow whose `eps` is its velocity, for guidance: that adds up predictions, and at sigma 1 noise predictions say
    nothing of the image. All else is the model's.
    """

    def __init__(self, model: Flow):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def eps(self, x_t: Tensor, t: Tensor, y: Tensor | Condition) -> Tensor:
        """The velocity (B, C, H, W)."""
        return self._model(x_t, t, y)


def euler(
    model: Flow,
    condition: Condition,
    seeds: Sequence[int],
    sampler: Sampler,
    start: tuple[Tensor, int] | None = None,
    until: int | Tensor = 0,
    hook: Hook | None = None,
) -> Tensor:
    """Follow the guided velocity from noise to x0: x <- x + (sigma_next - sigma) v. See `Flow.sample`."""
    device, n = model.alpha_bar.device, len(seeds)
    sigmas = model.sigmas(sampler.steps)
    every = (len(model.alpha_bar) * sigmas[:-1]).tolist()
    if start is None:
        x, first = gaussian_noise(noise_keys(seeds, device), START, model.shape, device), 0
    else:
        x, first = start[0].to(device), next((i for i, t in enumerate(every) if t <= start[1]), len(every))
    stops = Stops(sampler.steps, until, n, device)
    null = model.null(n)
    model.guidance.start(n)
    view: Any = _Velocities(model)
    for i in range(first, stops.last):
        if hook:
            hook(i, every[i], x)
        t = torch.full((n,), every[i], device=device)
        v = model.guidance(view, x, t, i, condition, null, sampler.guidance)
        x = stops.after(i, x + (sigmas[i + 1] - sigmas[i]) * v, x)
    return x
