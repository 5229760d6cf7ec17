"""Record the outputs of modules inside a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from unlearnbench.training import computed, unsplit


@contextmanager
def recorded_outputs(modules: Mapping[str, nn.Module]) -> Iterator[list[tuple[str, Tensor]]]:
    """Keep the output of each of these modules within this block, with its name, in the order of the calls.

    The outputs stay part of the graph, so that losses may use them. The hooks are removed when the block ends, even
    after an error.
    """
    kept: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: kept.append((name, output))

    with ExitStack() as hooks:
        hooks.enter_context(computed())
        hooks.enter_context(unsplit("the loss reads outputs of layers inside the network"))
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(keep(name)))
        yield kept
