"""Planted faults of every kind are caught, and correct kernels pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.interpreter.sanitizer import UNWRITTEN, Fault, sanitized

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="kernels run on the device itself"
)


@triton.jit
def copy_kernel(x, y, rows, width, stride_x, stride_y, R: tl.constexpr, C: tl.constexpr):
    """y = x for the given rows and columns, R rows per program."""
    r = tl.program_id(0) * R + tl.arange(0, R)
    c = tl.arange(0, C)
    mask = (r < rows)[:, None] & (c < width)[None, :]
    value = tl.load(x + r[:, None] * stride_x + c[None, :], mask=mask, other=0.0)
    tl.store(y + r[:, None] * stride_y + c[None, :], value, mask=mask)


@triton.jit
def shift_kernel(x, y, by, BLOCK: tl.constexpr):
    """y[i] = x[i + by]; a program takes BLOCK elements."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at + by))


@triton.jit
def store_kernel(y, step, SPREAD: tl.constexpr):
    """Programs write four elements each, `step` apart; SPREAD 0 writes one element four times."""
    at = tl.program_id(0) * step + tl.arange(0, 4) * SPREAD
    tl.store(y + at, tl.arange(0, 4).to(tl.float32))


@triton.jit
def count_kernel(x, total, WAY: tl.constexpr):
    """Every program adds to one counter, and may then read it or store to it."""
    tl.atomic_add(total, 1)
    if WAY == "read":
        tl.store(x + tl.program_id(0), tl.load(total))
    elif WAY == "write":
        tl.store(total, 0)
    elif WAY == "swap":
        tl.atomic_cas(total, 0, 0)


@triton.jit
def no_other_kernel(x, y, width, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    tl.store(y, tl.sum(tl.load(x + c, mask=c < width), 0))


@triton.jit
def read_twice_kernel(x, y, BLOCK: tl.constexpr):
    """All programs read the same elements; each writes its own elements twice."""
    c = tl.arange(0, BLOCK)
    value = tl.sum(tl.load(x + c), 0)
    tl.store(y + tl.program_id(0), 0.0)
    tl.store(y + tl.program_id(0), value + tl.load(y + tl.program_id(0)))


@triton.jit
def last_kernel(x, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    value = tl.load(x + c)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        tl.store(x + c, value)


@triton.jit
def box_kernel(x, y, row, column, BLOCK: tl.constexpr):
    """Descriptors: copy one box from x to the same position of y."""
    r = row + tl.program_id(0) * BLOCK
    y.store([r, column], x.load([r, column]))


@triton.jit
def device_box_kernel(x, y, rows, width, stride, BLOCK: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [rows, width], [stride, 1], [BLOCK, BLOCK])
    r = tl.program_id(0) * BLOCK
    at = (r + tl.arange(0, BLOCK))[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(y + at, source.load([r, 0]))


@triton.jit
def helper(pointer):
    """A helper that a kernel calls."""
    return tl.load(pointer)


@triton.jit
def nested_kernel(x, y):
    tl.store(y, helper(x + 7))


def describe(x: Tensor) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(x, [4, 4])


def padded(rows: int, width: int, stride: int) -> Tensor:
    """A matrix with strided rows."""
    return torch.arange(float(rows * stride)).view(rows, stride)[:, :width]


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


def shift_within(memory: Tensor, source: int, to: int) -> None:
    """Two programs copy four elements each from one part of a storage to another."""
    shift_kernel[(2,)](memory[source:], memory[to:], 0, 4)


SOUND: dict[str, Callable[[], Any]] = {
    "a copy": lambda: copy_kernel[(3,)](ones(9, 5), ones(9, 5), 9, 5, 5, 5, 4, 8),
    "padded rows": lambda: copy_kernel[(3,)](padded(9, 5, 7), padded(9, 5, 6), 9, 5, 7, 6, 4, 8),
    "a column": lambda: shift_kernel[(1,)](ones(8)[::2], ones(1), 0, 1),
    "nothing": lambda: copy_kernel[(2,)](ones(0, 5), ones(0, 5), 0, 5, 5, 5, 4, 8),
    "one place each": lambda: store_kernel[(3,)](ones(12), 4, 1),
    "twice by one program": lambda: read_twice_kernel[(3,)](ones(8), ones(3), 8),
    "in place": lambda: shift_kernel[(2,)](*[ones(8)] * 2, 0, 4),
    "atomics": lambda: count_kernel[(5,)](ones(5), torch.zeros(1, dtype=torch.int32), "swap"),
    "a box over the edge": lambda: box_kernel[(3,)](
        describe(padded(9, 6, 8)), describe(padded(9, 6, 8)), 0, 4, 4
    ),
    "a box before the edge": lambda: box_kernel[(1,)](
        describe(padded(9, 6, 8)), describe(padded(9, 6, 8)), -3, -4, 4
    ),
    "a box made in the kernel": lambda: device_box_kernel[(2,)](
        padded(5, 3, 8), ones(8, 4), 5, 3, 8, 4
    ),
}
FAULTY: dict[str, tuple[Callable[[], Any], str]] = {
    "a read behind the end": (
        lambda: shift_kernel[(2,)](ones(8), ones(8), 2, 4),
        "kernel shift_kernel, program (1, 0, 0): load out of bounds in 2 of 4 lanes, "
        "first at element 8 of x (8,) with strides (1,)",
    ),
    "a read before the start": (
        lambda: shift_kernel[(2,)](ones(8), ones(8), -1, 4),
        "kernel shift_kernel, program (0, 0, 0): load out of bounds in 1 of 4 lanes, "
        "first at element -1 of x",
    ),
    "a read of a neighbour in memory": (
        lambda: shift_kernel[(1,)](*ones(32).split(4)[::2][:2], 6, 4),
        "load out of bounds in 4 of 4 lanes, first at element 6 of x (4,)",
    ),
    "a read of nothing": (
        lambda: shift_kernel[(1,)](ones(0), ones(4), 0, 4),
        "load out of bounds in 4 of 4 lanes, first at element 0 of x (0,)",
    ),
    "a read far away": (
        lambda: shift_kernel[(1,)](ones(4), ones(4), 2**42, 4),
        "load out of bounds in 4 lanes: no tensor is near",
    ),
    "a read between padded rows": (
        lambda: copy_kernel[(1,)](padded(4, 5, 7), ones(4, 8), 4, 6, 7, 8, 4, 8),
        "load out of bounds in 4 of 24 lanes, first at element 5 of x (4, 5) with strides (7, 1)",
    ),
    "a write behind the end": (
        lambda: copy_kernel[(3,)](ones(12, 5), ones(9, 5), 12, 5, 5, 5, 4, 8),
        "kernel copy_kernel, program (2, 0, 0): store out of bounds in 15 of 20 lanes, "
        "first at element 45 of y (9, 5)",
    ),
    "a write between padded rows": (
        lambda: copy_kernel[(1,)](ones(4, 6), padded(4, 5, 7), 4, 6, 6, 7, 4, 8),
        "store out of bounds in 4 of 24 lanes, first at element 5 of y (4, 5)",
    ),
    "an atomic behind the end": (
        lambda: count_kernel[(1,)](ones(1), torch.ones(0, dtype=torch.int32), ""),
        "atomic out of bounds in 1 of 1 lanes, first at element 0 of total (0,)",
    ),
    "a descriptor larger than its tensor": (
        lambda: box_kernel[(1,)](
            describe(padded(3, 6, 8)),
            TensorDescriptor(padded(3, 6, 8), [4, 6], [8, 1], [4, 4]),
            0,
            0,
            4,
        ),
        "kernel box_kernel, program (0, 0, 0): store out of bounds in 4 of 16 lanes, "
        "first at element 24 of y (3, 6)",
    ),
    "a descriptor that a kernel makes too wide": (
        lambda: device_box_kernel[(2,)](padded(5, 3, 8), ones(8, 4), 5, 4, 8, 4),
        "load out of bounds in 4 of 16 lanes, first at element 3 of x (5, 3)",
    ),
    "two programs store one element": (
        lambda: store_kernel[(2,)](ones(8), 3, 1),
        "kernel store_kernel, program (1, 0, 0): race: store of 1 elements of y that meets "
        "another program's store",
    ),
    "boxes that overlap": (
        lambda: box_kernel[(2,)](describe(ones(8, 8)), describe(ones(8, 8)), 0, 0, 3),
        "race: store of 4 elements of y that meets another program's store",
    ),
    "one reads what another has written": (
        lambda: shift_within(ones(12), 0, 4),
        "kernel shift_kernel, program (1, 0, 0): race: load of 4 elements of x that meets "
        "another program's store",
    ),
    "one writes what another has read": (
        lambda: shift_within(ones(12), 4, 0),
        "kernel shift_kernel, program (1, 0, 0): race: store of 4 elements of y that meets "
        "another program's load",
    ),
    "the last one writes what all have read": (
        lambda: last_kernel[(3,)](ones(4), 4),
        "kernel last_kernel, program (2, 0, 0): race: store of 4 elements of x that meets "
        "another program's load",
    ),
    "one lane stores what another does": (
        lambda: store_kernel[(1,)](ones(8), 4, 0),
        "kernel store_kernel, program (0, 0, 0): 3 lanes store to elements of y that other lanes "
        "store to",
    ),
    "a counter that is read": (
        lambda: count_kernel[(2,)](ones(2), torch.zeros(1, dtype=torch.int32), "read"),
        "kernel count_kernel, program (1, 0, 0): race: atomic of 1 elements of total that meets "
        "another program's load",
    ),
    "a counter that is overwritten": (
        lambda: count_kernel[(2,)](ones(2), torch.zeros(1, dtype=torch.int32), "write"),
        "race: atomic of 1 elements of total that meets another program's store",
    ),
    "a masked load without other": (
        lambda: no_other_kernel[(1,)](ones(5), ones(1), 5, 8),
        "kernel no_other_kernel, program (0, 0, 0): a load with 3 lanes behind its mask does not "
        "say their `other`",
    ),
    "a fault in a function that a kernel calls": (
        lambda: nested_kernel[(1,)](ones(7), ones(1)),
        "kernel nested_kernel, program (0, 0, 0): load out of bounds in 1 of 1 lanes",
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_kernels_pass(name: str) -> None:
    with sanitized() as sanitizer:
        SOUND[name]()
    assert len(sanitizer.kernels) == 1


@pytest.mark.parametrize("name", FAULTY)
def test_faults_are_caught(name: str) -> None:
    run, message = FAULTY[name]
    with pytest.raises(Fault, match=re.escape(message)), sanitized():
        run()


def test_values_are_unchanged(seed: int) -> None:
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(seed))
    y = padded(9, 5, 6)
    with sanitized():
        copy_kernel[(3,)](x, y, 9, 5, 5, 6, 4, 8)
    assert torch.equal(x, y)
    total = torch.zeros(1, dtype=torch.int32)
    with sanitized():
        count_kernel[(5,)](ones(5), total, "")
    assert total.item() == 5
    x, whole = padded(9, 6, 8), torch.zeros(9, 8)
    y = whole[:, :6]
    with sanitized():
        box_kernel[(3,)](describe(x), describe(y), 0, 4, 4)
    assert torch.equal(x[:, 4:], y[:, 4:])
    assert whole.count_nonzero() == 18


def test_the_patches_end_with_the_context() -> None:
    """Faulty kernels pass again, and fresh memory is torch's."""
    before = torch.empty, Tensor.new_empty
    with pytest.raises(Fault), sanitized():
        shift_kernel[(2,)](ones(8), ones(8), 2, 4)
    assert (torch.empty, Tensor.new_empty) == before
    shift_kernel[(2,)](ones(12), ones(8), 2, 4)
    store_kernel[(2,)](ones(8), 3, 1)


def test_other_errors_keep_their_name() -> None:
    with pytest.raises(InterpreterError, match="aligned"), sanitized():
        box_kernel[(1,)](describe(ones(8, 8)), describe(ones(8, 8)), 0, 1, 4)


# Ways in which a wrapper may allocate its result.
FRESH: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.empty": lambda x: torch.empty(x.shape, dtype=x.dtype),
    "torch.empty_like": lambda x: torch.empty_like(x),
    "torch.empty_strided": lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype),
    "new_empty": lambda x: x.new_empty(x.shape),
    "new_empty_strided": lambda x: x.new_empty_strided(x.shape, x.stride()),
}


def copy_part(name: str, rows: int, width: int) -> None:
    """A wrapper that copies a part of (9, 5)."""
    x = ones(9, 5)
    with sanitized():
        y = FRESH[name](x)
        copy_kernel[(3,)](x, y, rows, width, 5, 5, 4, 8)
    assert torch.equal(x, y)


@pytest.mark.parametrize("name", FRESH)
def test_a_partly_written_output(name: str) -> None:
    copy_part(name, 9, 5)
    message = (
        "17 of 45 elements of a (9, 5) torch.float32 output are unwritten, first (0, 4); "
        "kernel copy_kernel as y wrote the others"
    )
    with pytest.raises(Fault, match=re.escape(message)):
        copy_part(name, 7, 4)


@pytest.mark.parametrize("dtype", UNWRITTEN)
def test_an_unwritten_output(dtype: torch.dtype) -> None:
    kept = []
    message = f"3 of 3 elements of a (3,) {dtype} output are unwritten, first (0,); no kernel wrote"
    with pytest.raises(Fault, match=re.escape(message)), sanitized():
        kept.append(torch.empty(3, dtype=dtype))
    assert kept[0].isnan().all() if dtype.is_floating_point else (kept[0] < -(2**30)).all()


def test_freed_memory_may_stay_unwritten() -> None:
    with sanitized():
        torch.empty(8)
        y = torch.empty(8).zero_()
    assert not y.any()


def read_fresh(dtype: torch.dtype, written: int) -> None:
    """Load eight elements, some of them written."""
    y = torch.zeros(8, dtype=dtype)
    with sanitized():
        x = torch.empty(8, dtype=dtype)
        x[:written] = 1
        shift_kernel[(2,)](x, y, 0, 4)
    assert y.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32])
def test_unwritten_memory_is_not_read(dtype: torch.dtype) -> None:
    read_fresh(dtype, 8)
    message = (
        "kernel shift_kernel, program (1, 0, 0): load of 3 elements of x (8,) with strides (1,) "
        "that nobody has written"
    )
    with pytest.raises(Fault, match=re.escape(message)):
        read_fresh(dtype, 5)
