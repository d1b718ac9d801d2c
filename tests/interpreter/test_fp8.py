"""The patched interpreter's e4m3 against torch."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.interpreter import fp8

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="kernels run on the device itself"
)
BLOCK = 4096
E4M3 = torch.float8_e4m3fn
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


@pytest.fixture(autouse=True)
def installed() -> None:
    fp8.install()


@triton.jit
def cast_kernel(x, y, total, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < total, other=0.0)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=at < total)


@triton.jit
def dot_kernel(a, b, y, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + m[:, None] * K + k[None, :])
    right = tl.load(b + n[:, None] * K + k[None, :])
    tl.store(y + m[:, None] * N + n[None, :], tl.dot(left, right.T))


def run(x: Tensor, dtype: torch.dtype) -> Tensor:
    # filled with a non-NaN code, so that both unwritten elements and stored NaN show
    y = torch.full((len(x),), 3.0).to(dtype)
    cast_kernel[(triton.cdiv(len(x), BLOCK),)](x, y, len(x), BLOCK)
    return y


def written_out(x: Tensor) -> Tensor:
    """fp32 rounded to the nearest even of all e4m3 values, from their definition, as fp64."""
    mantissa, subnormal = torch.arange(8).double(), torch.arange(8).double() * 2.0**-9
    normal = torch.cat([(1 + mantissa / 8) * 2.0 ** (e - 7) for e in range(1, 16)])
    numbers = torch.cat([subnormal, normal])[:-1]  # the last one is NaN
    places = torch.arange(len(numbers))
    size = x.double().abs().clamp(max=448.0)
    above = torch.searchsorted(numbers, size).clamp(max=len(numbers) - 1)
    below = (above - 1).clamp(min=0)
    low, high = size - numbers[below], numbers[above] - size
    # of two equally near values, the one with an even mantissa
    up = (high < low) | ((high == low) & (places[above] % 2 == 0))
    rounded = torch.where(up, numbers[above], numbers[below])
    return torch.where(x.isnan(), x.double(), rounded.copysign(x.double()))


def hard_numbers(seed: int) -> Tensor:
    """All magnitudes, ties and their neighbours, both ends of the range, subnormals."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp2(torch.randint(-14, 10, (50_000,), generator=generator).float())
    codes = fp8.CODES.float()
    exact = codes[codes.isfinite()].sort().values
    ties = (exact[1:] + exact[:-1]) / 2
    near = [ties, ties * (1 + 2.0**-20), ties * (1 - 2.0**-20), exact]
    ends = torch.tensor([464.0, 465.0, 480.0, 1e6, float("inf"), -float("inf"), float("nan")])
    return torch.cat([torch.randn(50_000, generator=generator) * size, *near, ends])


@FLOATS
def test_widening_is_exact(dtype: torch.dtype) -> None:
    got, wanted = run(fp8.CODES, dtype), fp8.CODES.to(dtype)
    assert wanted.isnan().sum() == 2
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.nan_to_num(7), wanted.nan_to_num(7))


@FLOATS
def test_narrowing_rounds_to_nearest_even(dtype: torch.dtype, seed: int) -> None:
    x = hard_numbers(seed).to(dtype)
    got, wanted = run(x, E4M3).float().double(), written_out(x)
    assert torch.equal(got.isnan(), x.isnan())
    assert torch.equal(got.nan_to_num(7), wanted.nan_to_num(7))
    assert torch.equal(got.signbit(), x.double().signbit())


def test_dot(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, 64, generator=generator).to(E4M3) for n in (16, 32))
    y = torch.full((16, 32), float("nan"))
    dot_kernel[(1,)](a, b, y, 16, 32, 64)
    wanted = a.float().double() @ b.float().double().T
    torch.testing.assert_close(y.double(), wanted, rtol=1e-6, atol=1e-6)


def test_a_second_time_changes_nothing() -> None:
    before = dict(vars(fp8.InterpreterBuilder))
    fp8.install()
    assert dict(vars(fp8.InterpreterBuilder)) == before
