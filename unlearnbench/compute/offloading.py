"""Networks beside the model, such as those of judges: on their device only from their first use until the model is
unlearned.
"""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import torch
from torch import nn

_on_device: weakref.WeakSet[Offloaded] = weakref.WeakSet()
_moving = threading.Lock()
"""Held while a network moves: judges work in threads beside the sampler."""


class Offloaded:
    """A network that stays on the CPU until it is used, and goes back there by `offload_networks`."""

    def __init__(self, network: nn.Module, device: str):
        self._network, self.device = network.cpu().eval(), device

    @property
    def network(self) -> Any:
        """The network on its device."""
        with _moving:
            if self not in _on_device:
                self._move(self.device)
                _on_device.add(self)
        return self._network

    @property
    def weights(self) -> Any:
        """The network where it happens to be, to read a weight of it."""
        return self._network

    def offload(self) -> None:
        """Take the network back to the CPU."""
        with _moving:
            self._move("cpu")
            _on_device.discard(self)

    def _move(self, device: str) -> None:
        with torch.inference_mode(False):  # otherwise the weights would be inference tensors for good
            self._network.to(device)


def offload_networks() -> None:
    """Take all such networks off their devices, and free the memory there that nothing uses any more."""
    for each in list(_on_device):
        each.offload()
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def networks_on_device() -> list[Offloaded]:
    """Those that were used since `offload_networks`."""
    return list(_on_device)
