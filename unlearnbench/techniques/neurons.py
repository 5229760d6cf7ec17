"""Which weights behind the neurons of feed-forward layers matter to some prompts and not to others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unlearnbench.diffusion.model import Diffusion
from unlearnbench.errors import Unsupported
from unlearnbench.training import computed


def feed_forward(model: Diffusion) -> dict[str, nn.Linear]:
    """The second linear layer of every transformer block's feed-forward network, by name; its inputs are the neurons.

    Raises `Unsupported` for a model without transformer blocks of diffusers.
    """
    found = {name: layer for name, layer in model.named_modules() if name.endswith(".ff.net.2")}
    linear = {name: layer for name, layer in found.items() if isinstance(layer, nn.Linear)}
    if not linear:
        raise Unsupported("this model has no transformer blocks, whose feed-forward neurons this method looks at")
    return linear


class Responses:
    """How strongly neurons respond at each step of a sampler: the norms of the columns of what enters layers.

    Each position's vector is scaled to length 1 first. All positions and rows count together, those of the null
    condition in guidance too.
    """

    def __init__(self, layers: Mapping[str, nn.Linear], steps: int):
        self.layers, self.step = layers, 0
        self.squares = {
            name: torch.zeros(steps, layer.in_features, device=layer.weight.device) for name, layer in layers.items()
        }

    def at(self, i: int, t: int, x_t: Tensor) -> None:
        """What comes next belongs to step i: the `hook` of `Diffusion.sample`."""
        self.step = i

    @contextmanager
    def recording(self) -> Iterator[Responses]:
        """Within this block the layers' inputs are counted. The hooks are removed when it ends."""
        with ExitStack() as hooks:
            hooks.enter_context(computed())
            for name, layer in self.layers.items():
                hooks.enter_context(layer.register_forward_pre_hook(self._counted(name)))
            yield self

    def _counted(self, name: str) -> Callable[[nn.Module, Any], None]:
        def count(_layer: nn.Module, inputs: Any) -> None:
            rows = normalize(inputs[0].detach().flatten(0, -2).float(), dim=1)
            self.squares[name][self.step] += rows.square().sum(dim=0)

        return count

    def norms(self) -> dict[str, Tensor]:
        """Norms (steps, neurons), by layer."""
        return {name: squares.sqrt() for name, squares in self.squares.items()}


def skilled(weight: Tensor, target: Tensor, base: Tensor, share: float) -> Tensor:
    """Mask (out, in) of the weights W (out, in) that matter more to the target than to the base.

    With S = |W| * norms (in,) of each side, which is the score of Wanda (Sun et al., ICLR 2024): those in the `share`
    of each row with the highest S of the target, at least one, whose S is above that of the base.
    """
    S, S_0 = weight.abs() * target, weight.abs() * base
    top = S.topk(max(1, int(share * S.shape[1])), dim=1).indices
    return torch.zeros_like(S, dtype=torch.bool).scatter_(1, top, True) & (S > S_0)
