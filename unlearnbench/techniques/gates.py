"""Gates: modules behind a layer that act only where its output looks like the concept, found without training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from unlearnbench.diffusion.model import Diffusion
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.techniques.adapters import switch

Use = Callable[[str, Tensor], None]
"""Called as `use(name, output)` with the name of a module and what it gave."""


class OutputMoments:
    """Mean and covariance of vectors (D,), summed in float64 as they come."""

    def __init__(self) -> None:
        self.count, self.total, self.outer = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Count vectors (..., D)."""
        x = x.detach().flatten(0, -2).double()
        self.count, self.total, self.outer = (
            self.count + len(x),
            self.total.to(x) + x.sum(0),
            self.outer.to(x) + x.T @ x,
        )

    @property
    def mean(self) -> Tensor:
        """The mean (D,)."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """The covariance (D, D), divided by the number of vectors."""
        return self.outer / self.count - torch.outer(self.mean, self.mean)


def principal_directions(matrix: Tensor, rank: int) -> Tensor:
    """The `rank` eigenvectors (rank, D) of a symmetric matrix (D, D) with the largest eigenvalues; at most D."""
    return torch.linalg.eigh(matrix).eigenvectors.mT.flip(0)[:rank]


def share_in_span(x: Tensor, origin: Tensor, basis: Tensor) -> Tensor:
    """How much of x - origin lies in the span of a basis (r, D): the squared cosine (...) of vectors x (..., D)."""
    return (normalize(x - origin, dim=-1) @ basis.mT).square().sum(dim=-1)


class ConceptGate(nn.Module):
    """s (eta (target + U D (x - source)) - x), to be added to a layer's output x: with s = 1, x is replaced.

    s = sigmoid(slope (h(x) - threshold)), h from `share_in_span`, is for each position. There are as many of all this
    as concepts; at each position that one acts whose s is the largest. Until they are set, s is 0. `gate` is 1, or a
    number that all is multiplied by, or one for each row (B,); see `act_late`.
    """

    basis: Tensor
    origin: Tensor
    threshold: Tensor
    slope: Tensor
    down: Tensor
    up: Tensor
    source: Tensor
    target: Tensor

    def __init__(self, width: int, concepts: int, gate_rank: int, rank: int, eta: float = 1.0):
        super().__init__()
        sizes: dict[str, tuple[int, ...]] = {"basis": (gate_rank, width), "down": (rank, width), "up": (rank, width)}
        sizes |= {"origin": (width,), "source": (width,), "target": (width,), "threshold": (), "slope": ()}
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(concepts, *size))
        self.threshold += 2  # no share is above 1
        self.slope += 1e4
        self.eta, self.gate = eta, torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        """For the layer's output x (B, positions, width), what is added to it."""
        best = added = None
        for k in range(len(self.basis)):
            alike = share_in_span(x, self.origin[k], self.basis[k])
            s = torch.sigmoid(self.slope[k] * (alike - self.threshold[k]))[..., None]
            replaced = self.eta * (self.target[k] + (x - self.source[k]) @ self.down[k].mT @ self.up[k])
            own = s * (replaced - x)
            if best is None or added is None:
                best, added = s, own
            else:
                best, added = torch.maximum(best, s), torch.where(s > best, own, added)
        assert added is not None
        gate = torch.as_tensor(self.gate).to(added)
        return gate.view(-1, *[1] * (added.dim() - 1)) * added


def act_late(model: Diffusion, start: float) -> None:
    """Let the model's adapters act only where t is below (1 - start) T: not in the first share `start` of sampling."""
    model.register_forward_pre_hook(_Late(start))


class _Late:
    """The hook, for calls model(x_t, t, y)."""

    def __init__(self, start: float):
        self.start = start

    def __call__(self, model: Any, args: tuple[Any, ...]) -> None:
        x_t, t, _ = args
        switch(model, (t < (1 - self.start) * len(model.alpha_bar)).to(x_t.dtype).expand(len(x_t)))


@contextmanager
def watched_outputs(modules: Mapping[str, nn.Module], use: Use) -> Iterator[None]:
    """Within this block call use(name, output) after each call of one of these modules; nothing is kept."""

    def hook(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: use(name, output)

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(hook(name)))
        yield


@torch.no_grad()
def watch_sampling(
    model: Diffusion,
    y: Tensor,
    seeds: Sequence[int],
    sampler: Sampler,
    steps: Sequence[int],
    modules: Mapping[str, nn.Module],
    use: Use,
) -> None:
    """Draw a prompt (1, ...) with each seed; at these steps, in order, call `use` with outputs of modules, once a
    step for all images.

    They are the outputs for the prompt alone, without those for the null condition.
    """
    condition = model.embed(y.repeat_interleave(len(seeds), dim=0))

    def look(i: int, t: int, x_t: Tensor) -> None:
        if i in steps:
            with watched_outputs(modules, use):
                model(x_t, torch.full(x_t.shape[:1], t, device=x_t.device), condition)

    model.sample(condition, seeds, sampler=sampler, until=max(0, sampler.steps - 1 - steps[-1]), hook=look)


def pooled(x: Tensor, shape: tuple[int, ...], levels: int) -> Iterator[Tensor]:
    """Outputs x (B, positions, D) as they are, and averaged over squares of 2, 4, … positions, `levels` in all at most.

    `shape` (C, H, W) is that of the latents, whose proportions the positions have.
    """
    image = x.mT.unflatten(2, (round(math.sqrt(x.shape[1] * shape[1] / shape[2])), -1))
    for _ in range(levels):
        yield image.flatten(2).mT
        if min(image.shape[2:]) < 2:
            break
        image = avg_pool2d(image, 2)
