"""Count the bytes of tensors that are alive, on networks of real size without their memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

BLOCK = 512
"""Bytes to which PyTorch's allocator on CUDA rounds up (pytorch/pytorch, c10/cuda/CUDACachingAllocator.cpp,
kMinBlockSize)."""
CAST_TO_FLOAT32 = ("group_norm", "layer_norm")
"""What autocast computes in float32 on CUDA, but not on the CPU (pytorch/pytorch, aten/src/ATen/autocast_mode.h)."""


class LiveBytes(TorchDispatchMode):
    """Within this block, `now` is what living tensors take in bytes and `peak` the most that they took.

    Tensors that were made before count once they are `add`ed. A number that the code asks a tensor for is 1, since
    tensors without memory have none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count these tensors too."""
        for tensor in tensors:
            self._track(tensor)

    def restart(self) -> None:
        """Forget the peak so far."""
        gc.collect()
        self.peak = self.now

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        if key in self._known:
            return

        def gone(_: Any) -> None:
            if self._known.pop(key, None) is not None:
                self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            return 1.0 if args[0].is_floating_point() else 1
        out = func(*args, **(kwargs or {}))
        self.add(value for value in tree_iter(out) if isinstance(value, Tensor))
        return out


@contextmanager
def sized_like_cuda() -> Iterator[None]:
    """Within this block tensors have sizes but no memory, and autocast keeps what it keeps on CUDA.

    `Module.to` does nothing: such tensors cannot be swapped, and neither device nor layout changes their size.
    """
    functional = torch.nn.functional

    def in_float32(name: str) -> Callable[..., Tensor]:
        plain = getattr(functional, name)
        return lambda x, *args, **more: plain(x.float(), *args, **more)

    with ExitStack() as stack:
        for name in CAST_TO_FLOAT32:
            stack.enter_context(mock.patch.object(functional, name, in_float32(name)))
        stack.enter_context(mock.patch.object(torch.nn.Module, "to", lambda self, *args, **more: self))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield
