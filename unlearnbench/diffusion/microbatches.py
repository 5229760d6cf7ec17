"""Let a network see a batch in smaller parts, so that memory depends on their size; the gradient stays the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom
from torch.utils.checkpoint import checkpoint


def in_microbatches(network: Callable[[slice], Tensor], modules: nn.Module, x: Tensor, size: int) -> Tensor:
    """The network's output (B, ...) for a batch x (B, ...), computed for at most `size` rows at a time.

    `network` maps some rows of the batch to their output. With gradient, nothing but its output is kept for a part:
    the backward pass computes the part again, and adds its gradient to that of the others. So any loss of the output
    has the gradient of the whole batch, to rounding, at the price of one more forward pass. Dropout in `modules` draws
    the masks of the whole batch.
    """
    n, outputs = len(x), []
    dropouts = [module for module in modules.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    dropouts = [module for module in dropouts if module.training]
    random = _random_state(x) if dropouts else None
    for start in range(0, n, size):
        some = slice(start, min(n, start + size))
        if random is not None:
            _set_random_state(x, random)  # every part draws the same masks, and takes its rows of them

        def part(_: Tensor, some: slice = some) -> Tensor:
            with _masks_of(dropouts, some, n):
                return network(some)

        if torch.is_grad_enabled():
            outputs.append(checkpoint(part, x, use_reentrant=False))
        else:
            outputs.append(part(x))
    return torch.cat(outputs)


@contextmanager
def _masks_of(dropouts: list[nn.Dropout], some: slice, n: int) -> Iterator[None]:
    """Let these modules drop what they would drop in these rows if they saw all n."""

    def dropped(x: Tensor, p: float) -> Tensor:
        each = len(x) // (some.stop - some.start)  # attention may fold its heads into the batch
        whole = torch.ones((n * each, *x.shape[1:]), dtype=x.dtype, device=x.device)
        if x.dim() == 4 and not x.is_contiguous():
            whole = whole.contiguous(memory_format=torch.channels_last)  # masks are drawn in the order of memory
        with torch.no_grad():
            mask = F.dropout(whole, p)[some.start * each : some.stop * each].clone()
        return x * mask

    for module in dropouts:
        module.forward = lambda x, p=module.p: dropped(x, p)  # type: ignore[method-assign, misc]
    try:
        yield
    finally:
        for module in dropouts:
            del module.forward


def _random_state(x: Tensor) -> Any:
    return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()


def _set_random_state(x: Tensor, state: Any) -> None:
    if x.is_cuda:
        torch.cuda.set_rng_state(state, x.device)
    else:
        torch.set_rng_state(state)
