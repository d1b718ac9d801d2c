"""A sanitizer for Triton's interpreter: faults that break on a GPU, but not in the interpreter.

Inside `sanitized()`:
- Each tensor argument of a kernel has its own addresses, far from every other tensor. A pointer
  outside its tensor, or between its rows, is out of bounds even if it would hit another tensor.
- Two programs of a launch that access one element, one of them storing, are a race; so are a store
  and another program's atomic. A store of several values to one element is refused too.
- A masked load must specify `other`.
- torch.empty and similar functions return memory filled with a specific NaN, or a huge negative
  integer. A kernel must not load it, and no tensor alive at the end may contain it.

Descriptors use the same masked loads and stores: their boxes may extend beyond the edges.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

# Addresses of an argument: its index above these bits, its first element in the middle of the range
# below. The lowest bits are those of the real address, because descriptors need alignment.
NUMBER_BITS = 40
MIDDLE = 1 << NUMBER_BITS - 1
ALIGNMENT = 4096
# Marks a byte that several programs touched.
MANY = -1
CONFLICTS = {
    "load": ("store", "atomic"),
    "store": ("load", "store", "atomic"),
    "atomic": ("load", "store"),
}
# Bit pattern of unwritten memory; narrower types have no spare value.
UNWRITTEN = {
    torch.float64: (tl.float64, torch.int64, 0x7FFA_5A5A_5A5A_5A5A),
    torch.float32: (tl.float32, torch.int32, 0x7FDA_5A5A),
    torch.bfloat16: (tl.bfloat16, torch.int16, 0x7FDA),
    torch.float16: (tl.float16, torch.int16, 0x7E5A),
    torch.int64: (tl.int64, torch.int64, -0x5A5A_5A5A_5A5A_5A5B),
    torch.int32: (tl.int32, torch.int32, -0x5A5A_5A5B),
}
UNWRITTEN_BITS = {kind: bits for kind, _, bits in UNWRITTEN.values()}


class Fault(AssertionError):
    """A fault of a kernel that the sanitizer detected."""


def active_lanes(mask: Any, shape: Sequence[int]) -> np.ndarray:
    """A mask as an array; some versions of Triton pass a handle, some the array itself."""
    return np.broadcast_to(np.asarray(mask.data), shape)


class Storage:
    """Which program touched each byte in this launch: 0 none, p + 1 program p, or MANY."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.start = storage.data_ptr()
        self.touched = {kind: np.zeros(storage.nbytes(), np.int32) for kind in CONFLICTS}


@dataclass(frozen=True)
class Argument:
    """A tensor argument of a kernel.

    Attributes:
        name: of the kernel's parameter.
        tensor: the tensor.
        base: the address that the kernel sees.
        start: byte offset in the storage.
        inside: for each byte of its span, whether it belongs to an element.
        storage: shared by all arguments in the same memory.
    """

    name: str
    tensor: Tensor
    base: int
    start: int
    inside: np.ndarray
    storage: Storage

    def __str__(self) -> str:
        return f"{self.name} {tuple(self.tensor.shape)} with strides {self.tensor.stride()}"


@dataclass(frozen=True)
class Allocation:
    """A tensor returned by torch.empty; does not keep its memory alive."""

    storage: StorageWeakRef
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Lanes:
    """The active lanes of an access to one argument: which lanes, and which bytes."""

    argument: Argument
    chosen: np.ndarray
    bytes: np.ndarray


def bytes_inside(shape: Sequence[int], strides: Sequence[int], size: int) -> np.ndarray:
    """Which bytes from the first element to the last belong to an element."""
    if 0 in shape:
        return np.zeros(0, bool)
    span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    inside = np.zeros((span, size), bool)
    steps = (*(stride * size for stride in strides), 1)
    np.lib.stride_tricks.as_strided(inside, (*shape, size), steps)[...] = True
    return inside.reshape(-1)


def names_of(function: Any, args: Sequence[Any], keywords: dict[str, Any]) -> dict[int, str]:
    """Map addresses to parameter names, for all tensors of a launch."""
    signature = inspect.signature(function)
    known = {name: value for name, value in keywords.items() if name in signature.parameters}
    names: dict[int, str] = {}
    for name, value in signature.bind_partial(*args, **known).arguments.items():
        for part in value if isinstance(value, tuple) else (value,):
            tensor = getattr(part, "base", part) if hasattr(part, "block_shape") else part
            if hasattr(tensor, "data_ptr"):
                names.setdefault(tensor.data_ptr(), name)
    return names


class Sanitizer:
    """State of the running launch, and of the memory allocated so far.

    Attributes:
        kernels: the names of all kernels launched so far.
    """

    def __init__(self) -> None:
        self.kernels: list[str] = []
        self._names: dict[int, str] = {}
        self._arguments: dict[int, Argument] = {}
        self._storages: dict[int, Storage] = {}
        self._fault: Fault | None = None
        self._allocated: list[Allocation] = []
        self._writers: dict[int, str] = {}

    def fail(self, what: str) -> None:
        program = interpreter.interpreter_builder.grid_idx
        self._fault = Fault(f"kernel {self.kernels[-1]}, program {program}: {what}")
        raise self._fault

    # launches

    def launch(self, run: Callable[..., Any], executor: Any, args: Any, keywords: Any) -> Any:
        """Run a kernel; unwrap a fault from the interpreter's exception."""
        self.kernels.append(executor.fn.__name__)
        self._names = names_of(executor.fn, args, keywords)
        self._arguments, self._storages, self._fault = {}, {}, None
        try:
            return run(executor, *args, **keywords)
        except InterpreterError:
            if self._fault is None:
                raise
            raise self._fault from None

    def register(self, argument: Any) -> int:
        """Register a tensor; return the address that the kernel sees."""
        tensor = interpreter._unwrap_tensor(argument)
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in self._storages:
            self._storages[memory.data_ptr()] = Storage(memory)
        storage = self._storages[memory.data_ptr()]
        number = len(self._arguments) + 1
        address = tensor.data_ptr()
        base = (number << NUMBER_BITS) + MIDDLE + address % ALIGNMENT
        self._arguments[number] = Argument(
            name=self._names.get(address, "a tensor"),
            tensor=tensor,
            base=base,
            start=address - storage.start,
            inside=bytes_inside(tensor.shape, tensor.stride(), tensor.element_size()),
            storage=storage,
        )
        return base

    # memory

    def access(self, kind: str, pointers: TensorHandle, mask: Any) -> tuple[Any, list[Lanes]]:
        """Check a program's access; return the real pointers, and the arguments accessed."""
        active = active_lanes(mask, pointers.data.shape)
        seen = pointers.data[active]
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        real = np.zeros(seen.shape, np.uint64)
        numbers = seen >> np.uint64(NUMBER_BITS)
        touched = []
        for number in np.unique(numbers):
            chosen = numbers == number
            argument = self._arguments.get(int(number))
            if argument is None:
                self.fail(f"{kind} out of bounds in {chosen.sum()} lanes: no tensor is near")
                continue
            offsets = (seen[chosen] - np.uint64(argument.base)).view(np.int64)
            self.check_bounds(kind, argument, offsets, width)
            lanes = Lanes(argument, chosen, offsets + argument.start)
            self.check_races(kind, lanes)
            real[chosen] = (lanes.bytes + argument.storage.start).astype(np.uint64)
            touched.append(lanes)
        pointers_there = np.zeros(pointers.data.shape, np.uint64)
        pointers_there[active] = real
        return TensorHandle(pointers_there, pointers.dtype), touched

    def check_bounds(self, kind: str, argument: Argument, offsets: np.ndarray, width: int) -> None:
        good = (offsets >= 0) & (offsets + width <= argument.inside.size)
        near = offsets[good]
        good[good] = argument.inside[near] & argument.inside[near + width - 1]
        if not good.all():
            first = offsets[~good][0] // width
            self.fail(
                f"{kind} out of bounds in {(~good).sum()} of {good.size} lanes, "
                f"first at element {first} of {argument}"
            )

    def check_races(self, kind: str, lanes: Lanes) -> None:
        builder = interpreter.interpreter_builder
        (x, y, z), (_, columns, layers) = builder.grid_idx, builder.grid_dim
        me = 1 + (x * columns + y) * layers + z
        name, at, touched = lanes.argument.name, lanes.bytes, lanes.argument.storage.touched
        if kind == "store":
            repeated = at.size - np.unique(at).size
            if repeated:
                self.fail(f"{repeated} lanes store to elements of {name} that other lanes store to")
            self._writers[lanes.argument.storage.start] = f"{self.kernels[-1]} as {name}"
        for other in CONFLICTS[kind]:
            before = touched[other][at]
            clash = (before != 0) & (before != me)
            if clash.any():
                self.fail(
                    f"race: {kind} of {clash.sum()} elements of {name} that meets "
                    f"another program's {other}"
                )
        before = touched[kind][at]
        touched[kind][at] = np.where((before == 0) | (before == me), me, MANY)

    def check_loaded(self, loaded: TensorHandle, mask: Any, touched: list[Lanes]) -> None:
        bits = UNWRITTEN_BITS.get(loaded.dtype.scalar)
        if bits is None:
            return
        active = active_lanes(mask, loaded.data.shape)
        values = loaded.data[active]
        unwritten = values.view(f"i{values.itemsize}") == bits
        for lanes in touched:
            count = unwritten[lanes.chosen].sum()
            if count:
                self.fail(f"load of {count} elements of {lanes.argument} that nobody has written")

    # allocations

    def poison(self, tensor: Tensor) -> Tensor:
        """Fill a tensor from torch.empty with the pattern, and remember it."""
        plain = type(tensor) is Tensor and tensor.device.type == "cpu"
        if plain and tensor.dtype in UNWRITTEN and tensor.numel():
            _, integer, bits = UNWRITTEN[tensor.dtype]
            tensor.detach().view(integer).fill_(bits)
            storage = tensor.untyped_storage()
            self._writers.pop(storage.data_ptr(), None)
            self._allocated.append(
                Allocation(StorageWeakRef(storage), tensor.shape, tensor.stride(), tensor.dtype)
            )
        return tensor

    def check_written(self) -> None:
        """Fail if a live tensor contains unwritten memory."""
        for made in self._allocated:
            storage = torch.UntypedStorage._new_with_weak_ptr(made.storage.cdata)
            if storage is None:
                continue
            _, integer, bits = UNWRITTEN[made.dtype]
            whole = torch.empty(0, dtype=integer).set_(storage, 0, made.shape, made.strides)
            left = (whole == bits).nonzero()
            if len(left):
                writer = self._writers.get(storage.data_ptr())
                raise Fault(
                    f"{len(left)} of {whole.numel()} elements of a {tuple(made.shape)} "
                    f"{made.dtype} output are unwritten, first {tuple(left[0].tolist())}; "
                    + (f"kernel {writer} wrote the others" if writer else "no kernel wrote to it")
                )


def patch_interpreter(sanitizer: Sanitizer, patch: pytest.MonkeyPatch) -> None:
    """Route the interpreter's memory accesses through the sanitizer."""
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    change, swap = InterpreterBuilder.create_atomic_rmw, InterpreterBuilder.create_atomic_cas
    convert, run = interpreter._implicit_cvt, GridExecutor.__call__

    def create_masked_load(
        builder: Any, pointers: TensorHandle, mask: Any, other: Any, *rest: Any, **options: Any
    ) -> TensorHandle:
        hidden = np.count_nonzero(~active_lanes(mask, pointers.data.shape))
        if other is None and hidden:
            sanitizer.fail(f"a load with {hidden} lanes behind its mask does not say their `other`")
        real, touched = sanitizer.access("load", pointers, mask)
        loaded = load(builder, real, mask, other, *rest, **options)
        sanitizer.check_loaded(loaded, mask, touched)
        return loaded

    def create_masked_store(
        builder: Any, pointers: TensorHandle, value: TensorHandle, mask: Any, *rest: Any
    ) -> Any:
        real, _ = sanitizer.access("store", pointers, mask)
        return store(builder, real, value, mask, *rest)

    def create_atomic_rmw(
        builder: Any, op: Any, pointers: TensorHandle, value: Any, mask: Any, *rest: Any
    ) -> Any:
        real, _ = sanitizer.access("atomic", pointers, mask)
        return change(builder, op, real, value, mask, *rest)

    def create_atomic_cas(builder: Any, pointers: TensorHandle, *rest: Any) -> Any:
        everywhere = TensorHandle(np.ones(pointers.data.shape, bool), tl.int1)
        real, _ = sanitizer.access("atomic", pointers, everywhere)
        return swap(builder, real, *rest)

    def implicit_cvt(value: Any) -> Any:
        converted = convert(value)
        if hasattr(value, "data_ptr"):
            converted.handle.data = np.array([sanitizer.register(value)], np.uint64)
        return converted

    def launch(executor: Any, *args: Any, **keywords: Any) -> Any:
        return sanitizer.launch(run, executor, args, keywords)

    for method in (create_masked_load, create_masked_store, create_atomic_rmw, create_atomic_cas):
        patch.setattr(InterpreterBuilder, method.__name__, method)
    patch.setattr(interpreter, "_implicit_cvt", implicit_cvt)
    patch.setattr(GridExecutor, "__call__", launch)


def patch_torch(sanitizer: Sanitizer, patch: pytest.MonkeyPatch) -> None:
    """Fill fresh memory with the pattern."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **options: sanitizer.poison(make(*args, **options))

    for name in ("empty", "empty_like", "empty_strided"):
        patch.setattr(torch, name, poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        patch.setattr(Tensor, name, poisoned(getattr(Tensor, name)))


@contextlib.contextmanager
def sanitized() -> Iterator[Sanitizer]:
    """Check every kernel that runs on CPU tensors here, and finally all live tensors."""
    sanitizer = Sanitizer()
    with pytest.MonkeyPatch.context() as patch:
        patch_interpreter(sanitizer, patch)
        patch_torch(sanitizer, patch)
        yield sanitizer
    gc.collect()  # what only a cycle refers to is not live
    sanitizer.check_written()
