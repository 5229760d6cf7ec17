"""Small trained modules that several methods add to a frozen network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.diffusion.model import Diffusion
from unlearnbench.method import TextMethod

NAME = "adapter"


@dataclass(frozen=True)
class Adapted(TextMethod):
    """Base of methods that add small modules to a network."""


class LowRank(nn.Module):
    """gate * (alpha / rank) * up(down(x)), zero at first, for a linear layer or a convolution.

    `gate` is a number, or a tensor (B,) with one value for each row of x; methods set it at inference. `down` is drawn
    by `kaiming_uniform_` with `slope`, its parameter a.
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float | None = None, slope: float = 1.0):
        super().__init__()
        if isinstance(layer, nn.Linear):
            self.down: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
            self.up: nn.Module = nn.Linear(rank, layer.out_features, bias=False)
        elif isinstance(layer, nn.Conv2d):
            shape: dict[str, Any] = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding")}
            self.down = nn.Conv2d(layer.in_channels, rank, bias=False, **shape)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            raise TypeError(f"{type(layer).__name__} is neither a linear layer nor a convolution")
        nn.init.kaiming_uniform_(self.down.weight, a=slope)
        nn.init.zeros_(self.up.weight)
        self.scale = (rank if alpha is None else alpha) / rank
        self.gate: Tensor | float = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """For the layer's input (B, ...), what is added to its output (B, ...)."""
        added = self.scale * self.up(self.down(x))
        if isinstance(self.gate, float):
            return self.gate * added
        return self.gate.to(added).view(-1, *[1] * (added.dim() - 1)) * added


def attach(layer: nn.Module, adapter: nn.Module, after: bool = False) -> None:
    """Add adapter(x) to the layer's output for x; with `after`, adapter(layer(x)).

    The layer's own weights keep their names, so that checks can see that they do not change.
    """
    reference = next(layer.parameters())
    layer.add_module(NAME, adapter.to(reference.device, reference.dtype))
    layer.register_forward_hook(_follow if after else _join)


def _join(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output + getattr(layer, NAME)(args[0])


def _follow(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output + getattr(layer, NAME)(output)


def adapters(model: nn.Module) -> dict[str, nn.Module]:
    """Return every attached adapter by the name of its layer, in the order of the network."""
    return {name: getattr(layer, NAME) for name, layer in model.named_modules() if NAME in layer._modules}


def trained(model: Diffusion) -> dict[str, nn.Parameter]:
    """Return the adapters' parameters, by name."""
    return {name: value for name, value in model.named_parameters() if f".{NAME}." in f".{name}"}


def switch(model: nn.Module, gate: Tensor | float) -> None:
    """Set every adapter's gate: 0.0 turns them off, a tensor (B,) sets one value for each row."""
    for adapter in adapters(model).values():
        adapter.gate = torch.as_tensor(gate) if isinstance(gate, Tensor) else float(gate)  # type: ignore[assignment]
