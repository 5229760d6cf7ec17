"""The model interface that methods and metrics use: noise predictor, noise schedule and conditioning."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unlearnbench.diffusion.microbatches import in_microbatches
from unlearnbench.diffusion.noise import START, gaussian_noise, noise_keys
from unlearnbench.diffusion.sampler import Sampler, Stops, ddim_step, timesteps
from unlearnbench.errors import Unsupported
from unlearnbench.training import replaying, split_size

Hook = Callable[[int, int, Tensor], None]
"""Called as `hook(i, t, x_t)` before step i at timestep t."""


class Condition(NamedTuple):
    """An embedded condition of the denoiser."""

    states: Tensor
    """(B, D) class embeddings or (B, L, D) text states."""
    pooled: Tensor | None = None
    """(B, D) pooled text states, for models that use them."""
    extra: dict[str, Tensor] | None = None
    """Further named inputs, (B, ...)."""
    ids: Tensor | None = None
    """(B,) labels or (B, L) tokens, for losses that need positions."""

    def join(self, other: Condition) -> Condition:
        """Concatenate along the batch, this one first. Missing tokens of one side become -1."""
        known, pair = self.ids if self.ids is not None else other.ids, [self, other]
        if known is not None:
            row = torch.full_like(known[:1], -1)
            pair = [e if e.ids is not None else e._replace(ids=row.expand(len(e.states), *row.shape[1:])) for e in pair]
        return _map(lambda *values: torch.cat(values), *pair)

    def where(self, mask: Tensor, other: Condition) -> Condition:
        """Row b of this condition where mask[b] is true, else of the other."""
        return _map(lambda a, b: torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b), self, other)

    def rows(self, some: slice) -> Condition:
        """Some rows of the batch."""
        return _map(lambda value: value[some], self)


def _map(function: Any, *conditions: Condition) -> Condition:
    def one(values: tuple[Any, ...]) -> Any:
        if any(value is None for value in values):
            return None
        if isinstance(values[0], dict):
            return {key: function(*(value[key] for value in values)) for key in values[0]}
        return function(*values)

    return Condition(*(one(values) for values in zip(*conditions, strict=True)))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode within this block, and every module back in its own mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Batch(NamedTuple):
    """Images and their conditions."""

    x0: Tensor
    """(B, C, H, W) in [-1, 1]: pixels or scaled latents."""
    y: Tensor
    """Integers: class labels (B,) or token ids (B, L)."""


class Diffusion(nn.Module, ABC):
    """The interface that every method is written against.

    `alpha_bar` (T,) is the cumulative product of the noise schedule's alphas; `shape` (C, H, W) is that of x_t; `clip`
    says whether x0 lies in [-1, 1] (pixels); `prediction` names what the network predicts.
    """

    alpha_bar: Tensor

    def __init__(self, alpha_bar: Tensor, shape: tuple[int, int, int], prediction: str = "epsilon", clip: bool = False):
        super().__init__()
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction={prediction!r} is none of epsilon, v_prediction, sample")
        self.register_buffer("alpha_bar", alpha_bar.float(), persistent=False)
        self.shape, self.prediction, self.clip = shape, prediction, clip
        self.guidance, self.sampler = Guidance(), Sampler()
        self.average: dict[str, Tensor] | None = None
        """Pretraining's moving average, by parameter, where these weights are the ones that it averaged."""

    @abstractmethod
    def embed(self, y: Tensor) -> Condition:
        """Embed integers y as a condition, differentiable with respect to the embedding."""

    @abstractmethod
    def null(self, n: int) -> Condition:
        """The null condition of classifier-free guidance, n rows."""

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's raw output (B, C, H, W) for x_t, timesteps t (B,) and a condition."""

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parts by the papers' names; "full" is the denoiser."""

    def decode(self, x: Tensor) -> Tensor:
        """Decode samples to images (B, C, H, W) in about [-1, 1]. Pixel models return them unchanged."""
        return x

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | Condition) -> Tensor:
        """`forward` with hooks; in micro-batches where the runner asks for them, with the same result to rounding."""
        call: Callable[..., Tensor] = super().__call__
        size = split_size(len(x_t))
        if size is None:
            return call(x_t, t, y)
        condition = y if isinstance(y, Condition) else self.embed(y)
        return in_microbatches(
            lambda some: call(x_t[some], t[some] if t.dim() else t, condition.rows(some)), self, x_t, size
        )

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | Condition) -> Tensor:
        """The network's raw output (B, C, H, W); y are integers or a Condition."""
        if replaying():
            return torch.zeros_like(x_t)
        return self.predict(x_t, t, y if isinstance(y, Condition) else self.embed(y))

    def signal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), each (B, 1, 1, 1)."""
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def eps(self, x_t: Tensor, t: Tensor, y: Tensor | Condition) -> Tensor:
        """Noise prediction (B, C, H, W), converted from whatever the network predicts."""
        output = self(x_t, t, y)
        if self.prediction == "epsilon":
            return output
        a, b = self.signal(t)
        return a * output + b * x_t if self.prediction == "v_prediction" else (x_t - a * output) / b

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The network's regression target: noise, v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0, or x0."""
        if self.prediction == "epsilon":
            return noise
        a, b = self.signal(t)
        return a * noise - b * x0 if self.prediction == "v_prediction" else x0

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) noise (Ho et al., NeurIPS 2020, eq. 4)."""
        a, b = self.signal(t)
        return a * x0 + b * noise

    def noised(
        self, x0: Tensor, generator: torch.Generator | None = None, paired: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw random timesteps (B,) and noise, and return them with x_t; uses the global generator unless one is
        given.

        With `paired` only the first B // 2 + 1 timesteps t are drawn, and the others are T - 1 - t of these, in order,
        as in the code of DDIM (Song et al., ICLR 2021) and those built on it.
        """
        T, n = len(self.alpha_bar), len(x0)
        t = torch.randint(T, (n // 2 + 1 if paired else n,), generator=generator, device=x0.device)
        t = torch.cat([t, T - 1 - t])[:n] if paired else t
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        return t, noise, self.add_noise(x0, noise, t)

    def condition(self, y: Tensor, drop: float, generator: torch.Generator | None = None) -> Condition:
        """Condition for integers y; each row becomes the null condition with probability `drop`."""
        condition = self.embed(y)
        if not drop:
            return condition
        kept = torch.rand(len(y), generator=generator, device=y.device) >= drop
        return condition.where(kept, self.null(len(y)))

    def loss(
        self, batch: Batch, generator: torch.Generator | None = None, drop: float = 0.0, paired: bool = False
    ) -> Tensor:
        """Denoising loss, a mean over all elements (not a sum over pixels: papers' weights differ by that factor).

        `drop` in [0, 1] is the share of conditions replaced by the null condition, for guidance; `paired` is as in
        `noised`.
        """
        t, noise, x_t = self.noised(batch.x0, generator, paired)
        condition = self.condition(batch.y, drop, generator)
        return (self(x_t, t, condition) - self.target(batch.x0, noise, t)).square().mean()

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
        """Sample images or latents (B, C, H, W) for conditions y, without dropout, in training too.

        Image b depends on seeds[b] only; see `sample`.
        """
        condition = y if isinstance(y, Condition) else self.embed(y)
        with evaluating(self):
            return sample(self, condition, seeds, sampler or self.sampler, start, until, hook)

    @torch.no_grad()
    def partway(self, y: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """Sample from the model itself, each image down to a random step; returns x_t (B, C, H, W) and t (B,)."""
        done = torch.randint(sampler.steps, y.shape[:1], device=y.device)  # steps taken before x_t
        seeds = torch.randint(2**62, y.shape[:1]).tolist()
        x_t = self.sample(y, seeds, sampler=sampler, until=sampler.steps - done)
        return x_t, self.timesteps(sampler)[done]

    def timesteps(self, sampler: Sampler | None = None) -> Tensor:
        """The sampler's timesteps (steps,), in decreasing order."""
        return torch.tensor(
            timesteps((sampler or self.sampler).steps, len(self.alpha_bar)), device=self.alpha_bar.device
        )

    def select(self, part: str) -> dict[str, nn.Parameter]:
        """Named parameters of one part. An unknown part raises `Unsupported` with the parts that this model has."""
        parts = self.parts()
        if part not in parts:
            raise Unsupported(f"this model has no part {part!r}: it has {', '.join(sorted(parts))}")
        wanted = {id(parameter) for parameter in parts[part]}
        return {name: parameter for name, parameter in self.named_parameters() if id(parameter) in wanted}

    def averages(self, parameters: Mapping[str, Tensor]) -> list[Tensor] | None:
        """Pretraining's average of these parameters, in order, copied to their device; None where it is not known."""
        if self.average is None:
            return None
        return [self.average[name].to(value, copy=True) for name, value in parameters.items()]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the weights are pretraining's average, where it is known."""
        if self.average is None:
            yield
            return
        before = {name: value.detach().clone() for name, value in self.state_dict().items()}
        self.load_state_dict({**before, **self.average})
        try:
            yield
        finally:
            self.load_state_dict(before)

    def frozen(self, part: str | None = None) -> Diffusion:
        """A frozen copy of the model, for use as a teacher.

        It has an embedding of its own, unless `part` (see `parts`) says that only this is trained: what lies outside,
        such as text encoders, is then shared with the model, and frozen there too. An autoencoder always is.
        """
        shared = {id(module): module for module in self.shared_with_teacher(part)}
        return copy.deepcopy(self, dict(shared)).requires_grad_(False).eval()

    def shared_with_teacher(self, part: str | None) -> list[nn.Module]:
        """Modules that training `part` (None: any) leaves as they are, and that compute the same in every mode."""
        return []


class Guidance:
    """Classifier-free guidance (Ho & Salimans, 2022) in the standard notation. Methods may replace it."""

    def start(self, n: int) -> None:
        """Called before sampling n images, to reset any state kept between steps."""

    def __call__(
        self, model: Diffusion, x_t: Tensor, t: Tensor, i: int, condition: Condition, null: Condition, w: float
    ) -> Tensor:
        """Guided noise prediction (B, C, H, W) at step i, timesteps t (B,)."""
        if w == 1:
            return model.eps(x_t, t, condition)
        eps_null, eps_c = model.eps(torch.cat([x_t, x_t]), torch.cat([t, t]), null.join(condition)).chunk(2)
        return eps_null + w * (eps_c - eps_null)


def sample(
    model: Diffusion,
    condition: Condition,
    seeds: Sequence[int],
    sampler: Sampler,
    start: tuple[Tensor, int] | None = None,
    until: int | Tensor = 0,
    hook: Hook | None = None,
) -> Tensor:
    """Run the sampler and return x (B, C, H, W) in the model's own range.

    `start=(x_t, t)` begins at the first of the sampler's timesteps that is not above t. `until` (int or (B,)) is the
    number of final steps to skip, for each image: 0 gives x0, k gives x_t at the k-th timestep from the end.
    """
    every = timesteps(sampler.steps, len(model.alpha_bar))
    after = [*every[1:], -1]
    device = model.alpha_bar.device
    keys = noise_keys(seeds, device)
    if start is None:
        x = gaussian_noise(keys, START, model.shape, device)
        first = 0
    else:
        x, first = start[0].to(device), next((i for i, t in enumerate(every) if t <= start[1]), len(every))
    stops = Stops(sampler.steps, until, len(seeds), device)
    null = model.null(len(seeds))
    model.guidance.start(len(seeds))
    one = torch.ones((), device=device)
    for i in range(first, stops.last):
        if hook:
            hook(i, every[i], x)
        t = torch.full((len(seeds),), every[i], device=device)
        eps = model.guidance(model, x, t, i, condition, null, sampler.guidance)
        now, prev = model.alpha_bar[every[i]], model.alpha_bar[after[i]] if after[i] >= 0 else one
        noisy = sampler.eta > 0 and after[i] >= 0
        noise = gaussian_noise(keys, every[i], model.shape, device).to(x) if noisy else None
        x = stops.after(i, ddim_step(x, eps, now, prev, sampler.eta, noise, model.clip), x)
    return x
