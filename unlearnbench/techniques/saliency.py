"""Saliency maps: which weights the gradients of a loss point to, summed over steps of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from unlearnbench.training import Parameters, gradients


def zero_sums(parameters: Parameters, prefix: str = "sum of ") -> dict[str, Tensor]:
    """A zero tensor for each parameter, by its name behind the prefix, which tells the two apart in `others` of
    `minimise`.
    """
    return {prefix + name: torch.zeros_like(value) for name, value in parameters.items()}


def counted_gradients(
    losses: Iterable[Tensor], parameters: Parameters, sums: Mapping[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of each loss, after it was added to `sums`, which are in the parameters' order.

    A method that resumes names the sums in `others` of `minimise`.
    """
    for loss in losses:
        found = gradients(loss, parameters)
        for total, grad in zip(sums.values(), found.values(), strict=True):
            total += grad
        yield found


def largest_share(values: Tensor, share: float, largest: bool = True) -> Tensor:
    """Mask, shaped as the values, of the `share` in [0, 1] of them that is largest in magnitude, or smallest.

    Their number is rounded down.
    """
    order = values.abs().flatten().argsort(descending=largest)[: int(values.numel() * share)]
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    mask[order] = True
    return mask.view_as(values)
