"""Sparse autoencoders: activations as sums of few learnt features, and networks in which some of these are changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unlearnbench.training import Gradients, gradients, norm, replaying


class SparseAutoencoder(nn.Module):
    """x ~ sum_i f_i(x) d_i + b, with f the `k` largest of relu(W (x - b) + w), and d_i of length 1.

    As in SAeUron (Cywinski and Deja, ICML 2025), whose training is BatchTopK (Bussmann et al., 2024): there the k B
    largest of a batch of B vectors are kept, rather than k of each.
    """

    unused: Tensor
    """How many vectors of the training came since each feature was used last (features,)."""

    def __init__(self, width: int, features: int, k: int):
        super().__init__()
        self.k = min(k, features)
        self.encoder = nn.Linear(width, features)
        nn.init.zeros_(self.encoder.bias)
        self.decoder = nn.Parameter(normalize(self.encoder.weight.detach().clone(), dim=1))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("unused", torch.zeros(features, dtype=torch.long), persistent=False)

    def responses(self, x: Tensor) -> Tensor:
        """Responses (..., features) to vectors x (..., width), before all but the largest are set to zero."""
        return torch.relu(self.encoder(x - self.bias))

    def features(self, x: Tensor) -> Tensor:
        """f(x) (..., features) for x (..., width)."""
        found = self.responses(x)
        top = found.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(found).scatter(-1, top.indices, top.values)

    def decode(self, f: Tensor) -> Tensor:
        """sum_i f_i d_i + b (..., width)."""
        return f @ self.decoder + self.bias

    def loss(self, x: Tensor, dead: Tensor, aux_weight: float) -> tuple[Tensor, Tensor]:
        """The share of the variance of x (B, width) that is not explained, and which features were used (features,).

        Where features are `dead` (a mask), `aux_weight` times a second share is added: of the error, in terms of the
        best of them (Gao et al., ICLR 2025).
        """
        every = self.responses(x)
        f = largest_only(every, self.k * len(x))
        error = self.decode(f) - x
        variance = (x - x.mean(dim=0)).square().sum()
        loss, number, most = error.square().sum() / variance, int(dead.sum()) if aux_weight else 0, x.shape[1] // 2
        if number:
            again = self.decode(largest_only(every.masked_fill(~dead, -torch.inf), min(most, number) * len(x)))
            loss = loss + aux_weight * min(number / most, 1.0) * (again - error).square().sum() / variance
        return loss, (f > 0).any(dim=0)

    def updates(
        self, x: Tensor, steps: Iterator[int], batch_size: int, aux_weight: float, dead_after: int
    ) -> Iterator[Gradients]:
        """Yield the gradients of each step on random rows of x (N, width), with a joint norm of at most 1.

        Decoder vectors are scaled to length 1 before each step, and their gradients have no part along them. The bias
        starts as the geometric median of the first batch. A feature is dead when the last `dead_after` vectors did not
        use it. A method that resumes names `unused` in `others` of `minimise`.
        """
        weights, device = dict(self.named_parameters()), self.bias.device
        self.unused.zero_()
        for step in steps:
            index = torch.randint(len(x), (batch_size,))
            if replaying():
                yield {name: torch.zeros_like(value) for name, value in weights.items()}
                continue
            rows = x[index].to(device, self.bias.dtype)
            with torch.no_grad():
                if step == 0:
                    self.bias.copy_(geometric_median(rows))
                self.decoder.copy_(normalize(self.decoder, dim=1))
            loss, used = self.loss(rows, self.unused > dead_after, aux_weight)
            self.unused.add_(len(rows)).masked_fill_(used, 0)
            found = gradients(loss, weights)
            scale = (1 / (norm(found) + 1e-6)).clamp(max=1)
            found = {name: scale * grad for name, grad in found.items()}
            along = (found["decoder"] * self.decoder.detach()).sum(dim=1, keepdim=True)
            found["decoder"] = found["decoder"] - along * self.decoder.detach()
            yield found


def largest_only(values: Tensor, number: int) -> Tensor:
    """A tensor's `number` largest values in their places, zeros elsewhere."""
    top = values.flatten().topk(number, sorted=False)
    return torch.zeros_like(values.flatten()).scatter(0, top.indices, top.values).view_as(values)


def geometric_median(points: Tensor, rounds: int = 100, tolerance: float = 1e-5) -> Tensor:
    """The point (D,) with the least sum of distances to points (N, D), by Weiszfeld's iteration from their mean."""
    guess = points.mean(dim=0)
    for _ in range(rounds):
        before, weights = guess, 1 / (points - guess).norm(dim=1).clamp(min=1e-12)
        guess = (weights[:, None] * points).sum(dim=0) / weights.sum()
        if (guess - before).norm() < tolerance:
            break
    return guess


class Rescaled(nn.Module):
    """What is added to a feature map so that some of its features are rescaled where they are strong.

    f_i becomes scale_i f_i where feature i is `chosen` and f_i > `above`_i. All three are (steps, features) and belong
    to the sampler's `timesteps` (steps,); other timesteps take those of the nearest. What the autoencoder does not
    explain stays as it is. At first nothing is chosen.
    """

    t: Tensor
    """Timesteps (B,) of the present call of the model; `rescale` sees to them."""
    timesteps: Tensor
    """The sampler's timesteps (steps,)."""
    chosen: Tensor
    """Which features are rescaled (steps, features)."""
    scale: Tensor
    """What they are multiplied by (steps, features)."""
    above: Tensor
    """Above what they are strong (steps, features)."""

    def __init__(self, autoencoder: SparseAutoencoder, timesteps: Tensor):
        super().__init__()
        self.autoencoder = autoencoder
        shape = (len(timesteps), len(autoencoder.decoder))
        self.register_buffer("timesteps", timesteps.clone(), persistent=False)
        self.register_buffer("chosen", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("above", torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """For feature maps x (B, C, H, W), what is added to them."""
        t = self.t.to(x.device).expand(len(x))
        near = (self.timesteps - t[:, None]).abs().argmin(dim=1)
        f = self.autoencoder.features(x.permute(0, 2, 3, 1).flatten(1, 2))
        chosen, scale, above = (values[near][:, None] for values in (self.chosen, self.scale, self.above))
        change = torch.where(chosen & (f > above), (scale - 1) * f, 0.0).to(x.dtype)
        added = change @ self.autoencoder.decoder.to(x.dtype)
        return added.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


NAME = "rescaled"


def rescale(model: Any, block: Any, added: Rescaled) -> None:
    """Add its output to a transformer block's, which is a tuple, and tell it the timesteps of each call."""
    reference = next(block.parameters())
    block.add_module(NAME, added.to(reference.device, reference.dtype))
    block.register_forward_hook(_joined)
    model.register_forward_pre_hook(_tell_timesteps)


def _joined(block: Any, args: Any, output: Any) -> Any:
    return (output[0] + getattr(block, NAME)(output[0]), *output[1:])


def _tell_timesteps(model: Any, args: Any) -> None:
    for module in model.modules():
        if isinstance(module, Rescaled):
            module.t = args[1]
