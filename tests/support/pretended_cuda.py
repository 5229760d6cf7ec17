"""A CUDA device that is pretended on the CPU, to run the code that is for one where there is none.

Within `PretendedCuda()` torch has one CUDA device: `torch.cuda` answers, and tensors can be moved to it and made on it.
Their numbers are real ones of the CPU; that they are on the card is noted at their storage, so views, parameters and
gradients of them are there too. Three things are as on a card:

* An operation on tensors of both places fails. Exceptions are those of torch: a CPU tensor without dimensions in
  elementwise operations ("CUDA semantics" in torch's notes), CPU indices into a tensor on the card, and `copy_`.
* What makes the host wait for the card is noted with its line: values read (`item`, `bool`, `tolist`, copies to the
  CPU), results whose size depends on values (`nonzero`, boolean indices), and copies to the card from memory that is
  not pinned. These are what `torch.cuda.set_sync_debug_mode` reports.
* Random numbers on the card come from a generator of its own, and memory on it is counted.

What is not: speed, the kernels' last bits, which operations autocast casts (the CPU's lists serve), and compilation.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[2]
CARD = torch.device("cuda", 0)
CPU = torch.device("cpu")
NAME = "Pretended CUDA device"
WHOLE = 80 * 2**30
"""Bytes of its memory, if no less are given."""

aten = torch.ops.aten
WAITING = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "_linalg_check_errors", "multinomial", "_linalg_svd", "linalg_lstsq",
}  # fmt: skip
"""Operations after which the host has read a value of the card. `multinomial` checks its probabilities."""
LENIENT = {"masked_fill", "masked_fill_", "where", "fill", "fill_", "clamp", "clamp_", "lerp", "lerp_", "linalg_pinv"}
"""Operations without torch's tag for elementwise ones that take CPU tensors without dimensions beside the card's.
`linalg_pinv` makes one of its tolerance, on a card there."""
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
"""Here indices may be on the CPU, and values too if they have no dimensions."""
COMPOSED = torch._C.DispatchKey.CompositeImplicitAutograd
FACTORIES = [
    "tensor", "zeros", "ones", "empty", "full", "rand", "randn", "randint", "randperm", "arange", "linspace",
    "logspace", "eye", "empty_strided", "normal", "scalar_tensor", "zeros_like", "ones_like", "empty_like", "full_like",
    "rand_like", "randn_like", "randint_like", "hann_window", "tril_indices", "triu_indices", "complex", "bernoulli",
]  # fmt: skip
NEW = ["new_tensor", "new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided"]


class Wait(NamedTuple):
    """The host waited for the card."""

    kind: str
    """"read": a value, or a copy to the CPU; "upload": a copy to the card."""
    operation: str
    file: str
    """The innermost file of this project, from its root."""
    line: int


class _Held:
    """Memory on the card, as long as the storage that it is noted at."""

    def __init__(self, device: PretendedCuda, size: int):
        self.device, self.size = device, size
        device.held += size
        device.peak = max(device.peak, device.held)

    def __del__(self) -> None:
        self.device.held -= self.size


def _storage(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # a tensor without storage, such as a sparse one
        return None


def _on_card(tensor: Tensor) -> bool:
    try:
        held = tensor.untyped_storage().__dict__.get("held")
    except (NotImplementedError, RuntimeError):
        return False
    return held is not None and held.device is PretendedCuda.current


def _is_card(device: Any) -> bool:
    if device is None or isinstance(device, int):
        return False
    return (device if isinstance(device, torch.device) else torch.device(device)).type == "cuda"


def _tensors(values: Any) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


@cache
def _of_ours(file: str) -> str | None:
    """The path of a file of this checkout in it; None for others, and for this one."""
    return str(Path(file).relative_to(ROOT)) if file.startswith(str(ROOT)) and file != __file__ else None


class _About(NamedTuple):
    """What is to be known of an operation."""

    name: str
    composed: bool
    elementwise: bool
    random: bool


@cache
def _about(func: Any) -> _About:
    name = func._schema.name.partition("::")[2]
    composed = func._can_decompose() and func.has_kernel_for_dispatch_key(COMPOSED)
    elementwise = torch.Tag.pointwise in func.tags or name in LENIENT or name.startswith("_foreach")
    return _About(name, composed, elementwise, torch.Tag.nondeterministic_seeded in func.tags)


class _Mode(TorchDispatchMode):
    """Sees every operation of one thread, those of backward passes included."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the wrapper against that takes time in each operation

    def __init__(self, device: PretendedCuda):
        super().__init__()
        self.pretended = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _about(func).composed:
            with self:  # in inference mode composed operations arrive whole
                return func.decompose(*args, **kwargs)
        return self.pretended._dispatched(func, args, kwargs)


class _Move(torch.autograd.Function):
    """A differentiable copy to the other place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, device: PretendedCuda, card: bool) -> Tensor:
        ctx.device, ctx.card = device, card
        return device._copied(x, card)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Move.apply(grad, ctx.device, not ctx.card), None, None


class PretendedCuda:
    """The device; as a context manager it is there within the block. `memory` are its bytes.

    `waits` are noted from the start, or from the last `waits.clear()`.
    """

    current: PretendedCuda | None = None

    def __init__(self, memory: int = WHOLE):
        self.memory, self.held, self.peak = memory, 0, 0
        self.waits: list[Wait] = []
        self.random = torch.Generator().manual_seed(0)
        self._thread = threading.local()
        self._patch = pytest.MonkeyPatch()
        self._mode = _Mode(self)

    # ---- what tests ask --------------------------------------------------------------------------------------------

    def counted(self, kind: str | None = None) -> int:
        """How often the host waited."""
        return sum(kind in (None, wait.kind) for wait in self.waits)

    def lines(self, waits: list[Wait] | None = None) -> Counter[str]:
        """How often in each line, of these or of all: `kind file:line operation`."""
        every = self.waits if waits is None else waits
        return Counter(f"{wait.kind} {wait.file}:{wait.line} {wait.operation}" for wait in every)

    # ---- where tensors are -----------------------------------------------------------------------------------------

    def _put(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        if storage is None or _on_card(tensor):
            return
        size = storage.nbytes()
        if self.held + size > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB.")
        storage.held = _Held(self, size)

    def _copied(self, x: Tensor, card: bool) -> Tensor:
        with self._making(card):
            return x.detach().clone()

    @contextmanager
    def _making(self, card: bool | None) -> Iterator[None]:
        """Within this block new tensors are made there; None: where their operands are."""
        before = getattr(self._thread, "card", None)
        self._thread.card = card
        try:
            yield
        finally:
            self._thread.card = before

    def _moved(self, x: Tensor, card: bool, waits: bool = True) -> Tensor:
        if waits:
            self._wait("upload" if card else "read", "to" if card else "cpu")
        if x.requires_grad and torch.is_grad_enabled():
            return _Move.apply(x, self, card)
        return self._copied(x, card)

    def _wait(self, kind: str, operation: str) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None and (where := _of_ours(frame.f_code.co_filename)) is None:
            frame = frame.f_back
        where, line = (where, frame.f_lineno) if frame else ("?", 0)
        self.waits.append(Wait(kind, operation, where, line))

    # ---- operations ------------------------------------------------------------------------------------------------

    def _dispatched(self, func: Any, args: Any, kwargs: Any) -> Any:
        name, _, elementwise, random = _about(func)
        given = _tensors((*args, *kwargs.values()))
        places = [_on_card(tensor) for tensor in given]
        wanted = getattr(self._thread, "card", None)
        card = any(places) if wanted is None else wanted
        if any(places) and not all(places):
            self._require_one_place(func, elementwise, args, given, places)
        if any(places):
            self._note(name, args, kwargs, given, places)
        generator = kwargs.get("generator")
        if generator is not None and card != (generator._cdata in _Generator.of_card):
            here, there = (f"'{place}'" for place in (("cuda", "cpu") if card else ("cpu", "cuda")))
            raise RuntimeError(f"Expected a {here} device type for generator but found {there}")
        if card and generator is None and random:
            result = self._with_own_generator(func, args, kwargs)
        else:
            result = func(*args, **kwargs)
        if card:
            before = [_storage(tensor) for tensor, there in zip(given, places, strict=True) if not there]
            for tensor in _tensors((result,)):
                if not before or not any(_storage(tensor) is own for own in before):
                    self._put(tensor)
        return result

    def _require_one_place(
        self, func: Any, elementwise: bool, args: Any, given: list[Tensor], places: list[bool]
    ) -> None:
        """Refuse tensors of both places, unless torch takes them."""
        name = _about(func).name
        here = [tensor for tensor, there in zip(given, places, strict=True) if not there]
        if name in ("copy_", "copy", "_to_copy", "set_", "is_same_size", "is_set_to"):
            return
        if name in INDEXED and places[0]:
            values = [args[2]] if len(args) > 2 else []
            here = [value for value in values if not _on_card(value) and value.dim()]
        elif elementwise:
            out = [value for value in args[:1] if name.endswith("_") and isinstance(value, Tensor)]
            here = [tensor for tensor in here if tensor.dim() or any(tensor is value for value in out)]
        if here:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({func})"
            )

    def _note(self, name: str, args: Any, kwargs: Any, given: list[Tensor], places: list[bool]) -> None:
        """Note what makes the host wait for the card."""
        if name == "copy_" and places[0] != places[1]:
            if not (len(args) > 2 and args[2]):
                self._wait("upload" if places[0] else "read", name)
        elif name in INDEXED:
            indices = [index for index in args[1] if index is not None]
            masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
            filled = name != "index" and len(indices) == len(masks) == 1 and args[2].numel() == 1
            if masks and not (filled and not _on_card(args[2])):
                self._wait("read", f"{name} by a mask")
            for index in indices:
                if not _on_card(index):
                    self._wait("upload", f"{name} by CPU indices")
        elif name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self._wait("read", name)

    def _with_own_generator(self, func: Any, args: Any, kwargs: Any) -> Any:
        before = torch.get_rng_state()
        torch.set_rng_state(self.random.get_state())
        try:
            return func(*args, **kwargs)
        finally:
            self.random.set_state(torch.get_rng_state())
            torch.set_rng_state(before)

    # ---- torch's functions -----------------------------------------------------------------------------------------

    def __enter__(self) -> PretendedCuda:
        if PretendedCuda.current is not None:
            raise RuntimeError("there is one pretended device at a time")
        from torch.utils import _device

        _device._device_constructors()  # remembers torch's functions, so before they are replaced
        torch.optim.SGD([torch.zeros(1)], lr=1.0)  # imports what would remember them too
        PretendedCuda.current = self
        for owner, replaced in self._replacements():
            for name, value in replaced.items():
                self._patch.setattr(owner, name, value, raising=False)
        torch.serialization.register_package(0, self._tagged, self._restored)
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*(error or (None, None, None)))
        self._patch.undo()
        for entry in [entry for entry in torch.serialization._package_registry if entry[1] == self._tagged]:
            torch.serialization._package_registry.remove(entry)
        PretendedCuda.current = None

    def _tagged(self, storage: Any) -> str | None:
        return "cuda:0" if getattr(storage, "held", None) is not None else None

    def _restored(self, storage: Any, location: str) -> Any:
        if not location.startswith("cuda"):
            return None
        storage.held = _Held(self, storage.nbytes())
        return storage

    def _replacements(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        yield torch.Tensor, self._methods()
        yield torch, {name: self._factory(getattr(torch, name)) for name in FACTORIES}
        yield torch.Tensor, {name: self._new(getattr(torch.Tensor, name)) for name in NEW}
        yield torch, {"as_tensor": self._as_tensor(torch.as_tensor), "asarray": self._as_tensor(torch.asarray)}
        yield torch, {"Generator": _Generator}
        yield torch.cuda, self._cuda()
        yield torch.accelerator, {"current_stream": lambda *args: SimpleNamespace(is_capturing=lambda: False)}
        yield torch, {"autocast": _Autocast}
        yield torch.amp, {"autocast": _Autocast}
        yield torch._C._nn, {"_parse_to": self._parsed(torch._C._nn._parse_to)}
        for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled", "set_autocast_dtype"):
            yield torch, {name: _of_cpu(getattr(torch, name))}
        yield threading.Thread, {"run": self._in_thread(threading.Thread.run)}

    def _in_thread(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(thread: threading.Thread) -> Any:
            if PretendedCuda.current is not self:
                return run(thread)
            with _Mode(self):
                return run(thread)

        return wrapped

    def _methods(self) -> dict[str, Any]:
        plain = {name: getattr(torch.Tensor, name) for name in ("to", "tolist", "numpy", "__array__", "__deepcopy__")}
        device = torch.Tensor.device

        def to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            where, dtype, more = _wanted(args, kwargs)
            card = _on_card(x) if where is None else _is_card(where)
            if where is not None and not card and torch.device(where).type != "cpu":
                return plain["to"](x, *args, **kwargs)
            kind = dtype or x.dtype
            if card != _on_card(x):
                x = self._moved(x, card, waits=not more.pop("non_blocking", False))
                more.pop("copy", None)
            more.pop("non_blocking", None)
            return plain["to"](x, kind, **more)

        def tolist(x: Tensor) -> Any:
            if _on_card(x):
                self._wait("read", "tolist")
            return plain["tolist"](x)

        def refusing(name: str) -> Callable[..., Any]:
            def refuse(x: Tensor, *args: Any, **kwargs: Any) -> Any:
                if _on_card(x):
                    if not kwargs.get("force"):
                        raise TypeError(
                            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
                            "host memory first."
                        )
                    self._wait("read", name)
                return plain[name](x, *args, **kwargs)

            return refuse

        def deepcopy(x: Tensor, memo: Any) -> Tensor:
            made = plain["__deepcopy__"](x, memo)
            if _on_card(x):
                self._put(made)
            return made

        return {
            "device": property(lambda x: CARD if _on_card(x) else device.__get__(x)),
            "is_cuda": property(_on_card),
            "is_cpu": property(lambda x: device.__get__(x).type == "cpu" and not _on_card(x)),
            "get_device": lambda x: 0 if _on_card(x) else -1,
            "to": to,
            "cuda": lambda x, device=None, non_blocking=False, **more: to(x, CARD, non_blocking=non_blocking, **more),
            "cpu": lambda x, **more: to(x, CPU, **more),
            "type_as": lambda x, other: to(x, other),
            "tolist": tolist,
            "numpy": refusing("numpy"),
            "__array__": refusing("__array__"),
            "__deepcopy__": deepcopy,
            "pin_memory": lambda x, *args: x,
            "is_pinned": lambda x, *args: False,
        }

    def _parsed(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """For `Module.to`, which may be given a tensor on the card."""

        def parse(*args: Any, **kwargs: Any) -> Any:
            device, *rest = plain(*args, **kwargs)
            if any(_on_card(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)):
                device = CARD
            return device, *rest

        return parse

    def _factory(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        uploads = plain is torch.tensor

        def make(*args: Any, **kwargs: Any) -> Any:
            where = kwargs.get("device")
            if PretendedCuda.current is not self:
                return plain(*args, **kwargs)
            if where is None:
                where = _default_device()
            if where is None or not (_is_card(where) or torch.device(where).type == "cpu"):
                return plain(*args, **kwargs)
            card = _is_card(where)
            if card and uploads:
                self._wait("upload", "tensor")
            with self._making(card):
                made = plain(*args, **{**kwargs, "device": CPU})
            if card:
                self._put(made)
            return made

        return make

    def _new(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def make(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            where = kwargs.pop("device", None)
            card = _on_card(x) if where is None else _is_card(where)
            if card and plain.__name__ == "new_tensor":
                self._wait("upload", "new_tensor")
            with self._making(card):
                made = plain(x, *args, **kwargs)
            if card:
                self._put(made)
            return made

        return make

    def _as_tensor(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def make(data: Any, *args: Any, **kwargs: Any) -> Tensor:
            where = kwargs.pop("device", None)
            where = _default_device() if where is None and not isinstance(data, Tensor) else where
            if where is not None and not _is_card(where) and torch.device(where).type != "cpu":
                return plain(data, *args, device=where, **kwargs)
            made = (
                plain(data, *args, **kwargs) if isinstance(data, Tensor) else plain(data, *args, device=CPU, **kwargs)
            )
            return made if where is None else made.to(where)

        return make

    def _cuda(self) -> dict[str, Any]:
        def of(value: Any) -> Callable[..., Any]:
            return lambda *args, **kwargs: value

        def get_state(device: Any = "cuda") -> Tensor:
            return self.random.get_state()

        def set_state(state: Tensor, device: Any = "cuda") -> None:
            self.random.set_state(state)

        def seed(value: int) -> None:
            self.random.manual_seed(value)

        def reset(device: Any = None) -> None:
            self.peak = self.held

        about = SimpleNamespace(name=NAME, total_memory=self.memory, major=9, minor=0, multi_processor_count=1)
        return {
            "is_available": of(True),
            "is_initialized": of(True),
            "init": of(None),
            "is_current_stream_capturing": of(False),
            "device_count": of(1),
            "current_device": of(0),
            "set_device": of(None),
            "device": lambda *args: nullcontext(),
            "synchronize": of(None),
            "empty_cache": of(None),
            "ipc_collect": of(None),
            "get_device_name": of(NAME),
            "get_device_properties": of(about),
            "get_device_capability": of((9, 0)),
            "is_bf16_supported": of(True),
            "memory_allocated": lambda *args: self.held,
            "memory_reserved": lambda *args: self.held,
            "max_memory_allocated": lambda *args: self.peak,
            "max_memory_reserved": lambda *args: self.peak,
            "reset_peak_memory_stats": reset,
            "mem_get_info": lambda *args: (self.memory - self.held, self.memory),
            "manual_seed": seed,
            "manual_seed_all": seed,
            "get_rng_state": get_state,
            "set_rng_state": set_state,
            "get_rng_state_all": lambda: [get_state()],
            "set_rng_state_all": lambda states: set_state(states[0]),
        }


def pytest_configure(config: pytest.Config) -> None:
    """As pytest's plugin (`-p tests.support.pretended_cuda`): there is one from the start, for tests marked `gpu`."""
    device = PretendedCuda()
    device.__enter__()
    config.add_cleanup(device.__exit__)


class _Generator(torch.Generator):
    """A generator that knows where it belongs."""

    of_card: ClassVar[set[int]] = set()
    """Addresses of those of the card: operations see another Python object than was given."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls, "cpu")
        made.where = torch.device(device)
        if _is_card(device):
            cls.of_card.add(made._cdata)
        return made

    def __del__(self) -> None:
        self.of_card.discard(self._cdata)

    @property
    def device(self) -> torch.device:
        return CARD if _is_card(self.where) else self.where


class _Autocast(torch.amp.autocast_mode.autocast):
    """The card's autocast is the CPU's."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _of_cpu(plain: Callable[..., Any]) -> Callable[..., Any]:
    def asked(device: Any = "cuda", *args: Any) -> Any:
        return plain("cpu" if device == "cuda" else device, *args)

    return asked


def _default_device() -> Any:
    """That of a `with torch.device(...)` around; None without one."""
    if not torch._C._len_torch_function_stack():
        return None
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._device import DeviceContext

    modes = reversed(_get_current_function_mode_stack())
    return next((mode.device for mode in modes if isinstance(mode, DeviceContext)), None)


def _wanted(args: Any, kwargs: Any) -> tuple[Any, torch.dtype | None, dict[str, Any]]:
    """Device, type and the rest of what `Tensor.to` was given."""
    more = dict(kwargs)
    where, dtype, other = more.pop("device", None), more.pop("dtype", None), more.pop("other", None)
    flags = []
    for value in args:
        if isinstance(value, Tensor):
            other = value
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, bool):
            flags.append(value)
        elif value is not None:
            where = value
    if other is not None:
        where, dtype = other.device, other.dtype
    return where, dtype, {**dict(zip(("non_blocking", "copy"), flags, strict=False)), **more}
