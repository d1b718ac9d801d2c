"""The quick interpreter: what it remembers is what triton would compute anew."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.ops.cases import INTERPRETS

if not INTERPRETS:
    pytest.skip("triton is not interpreted here", allow_module_level=True)

import triton
import triton.language as tl
from triton.runtime import interpreter

from tests.interpreter import speed

speed.install()
SCALARS = (
    *(tl.int1, tl.int8, tl.uint16, tl.int32, tl.int64),
    *(tl.bfloat16, tl.float16, tl.float32, tl.float64, tl.float8e4nv),
    *(tl.pointer_type(tl.float32), tl.pointer_type(tl.bfloat16)),
)
SHAPES = ((4,), (8,), (4, 8), (8, 4), (1, 1), (1,))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_types_of_a_shape(shape: tuple[int, ...]) -> None:
    """Twice, because the second is made of the first; shapes may also be constants of a kernel."""
    anew = tl.block_type.__init__.__wrapped__
    for scalar in SCALARS:
        wanted = object.__new__(tl.block_type)
        anew(wanted, scalar, list(shape))
        for given in (list(shape), tl.tuple(shape), [tl.constexpr(size) for size in shape]):
            found = tl.block_type(scalar, given)
            assert found == wanted
            assert (found.name, found.numel) == (wanted.name, wanted.numel)
            assert [*found.shape] == [*shape]
            assert interpreter._get_np_dtype(found) == (
                interpreter._get_np_dtype.__wrapped__(wanted)
            )
        assert interpreter._get_np_dtype(scalar) == interpreter._get_np_dtype.__wrapped__(scalar)
    with pytest.raises(TypeError, match="0d"):
        tl.block_type(tl.int32, [])


def test_tensors_of_a_shape() -> None:
    anew = tl.tensor.__init__.__wrapped__
    for kind in (tl.int32, *(tl.block_type(tl.float16, [*shape]) for shape in SHAPES)):
        wanted = object.__new__(tl.tensor)
        anew(wanted, "handle", kind)
        for _ in range(2):
            found = tl.tensor("handle", kind)
            assert (found.handle, found.type, found.dtype) == ("handle", kind, kind.scalar)
            assert [size.value for size in found.shape] == [size.value for size in wanted.shape]
            assert found.numel.value == wanted.numel.value


@triton.jit
def broadcasting_kernel(x, y, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    places = rows * COLUMNS + columns
    found = tl.load(x + places) + rows + columns * 3 + 7
    # as many as there are columns, by the type of the places: numpy would broadcast their values
    count = tl.sum(tl.full(places.shape, 1, tl.int32), 1)
    tl.store(y + places, found + (tl.sum(found, 1) + count)[:, None])


@pytest.mark.parametrize("sizes", [(4, 8), (8, 4), (4, 4), (1, 4)], ids=str)
def test_broadcasting(sizes: tuple[int, int]) -> None:
    """Also of equal sides, whose rows and columns must not be taken for each other."""
    rows, columns = torch.arange(sizes[0])[:, None], torch.arange(sizes[1])
    x = torch.randint(99, sizes, dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    y = torch.full_like(x, -1)
    broadcasting_kernel[(1,)](x, y, *sizes)
    wanted = x + rows + columns * 3 + 7
    assert torch.equal(y, (wanted + wanted.sum(1, keepdim=True) + sizes[1]).int())


@triton.jit
def adding_kernel(x, y):
    tl.store(y, tl.load(x) + 1)


def test_overflow_is_refused_in_debug_mode_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without the patch, which skips the check where its answer is ignored."""
    x = torch.tensor([2**31 - 1], dtype=torch.int32)
    y = torch.zeros_like(x)
    adding_kernel[(1,)](x, y)
    assert y.item() == -(2**31)
    options = dataclasses.replace(interpreter.interpreter_builder.options, debug=True)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)
    with pytest.raises(Exception, match="int32 overflow detected for operation add"):
        adding_kernel[(1,)](x, y)
    adding_kernel[(1,)](x - 1, y)
    assert y.item() == 2**31 - 1
