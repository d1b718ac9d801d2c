"""The patched interpreter's bf16 against torch."""

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

from tests.interpreter import bf16

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="kernels run on the device itself"
)
BLOCK = 4096
REFUSED = re.compile("bf16 in [^:]+: the interpreter cannot; cast to float32 first")


@pytest.fixture(autouse=True)
def installed() -> None:
    bf16.install()


@triton.jit
def cast_kernel(x, y, total, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < total, other=0.0)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=at < total)


@triton.jit
def store_kernel(x, y, total, BLOCK: tl.constexpr):
    """The store does the cast."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < total, other=0.0), mask=at < total)


@triton.jit
def dot_kernel(a, b, y, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + m[:, None] * K + k[None, :])
    right = tl.load(b + n[:, None] * K + k[None, :])
    total = tl.dot(left, right.T, input_precision="ieee")
    tl.store(y + m[:, None] * N + n[None, :], total.to(y.dtype.element_ty))


@triton.jit
def arithmetic_kernel(x, y, KIND: tl.constexpr):
    value = tl.load(x + tl.arange(0, 16))
    low = tl.full((16,), -3.0, value.dtype)
    high = tl.full((16,), 2.0, value.dtype)
    if KIND == "constant":
        value = tl.full((16,), 1.00390625, value.dtype)
    elif KIND == "add":
        value = value + value
    elif KIND == "add a number":
        value = value + 1.0
    elif KIND == "compare":
        value = tl.where(value > low, value, low)
    elif KIND == "negate":
        value = -value
    elif KIND == "maximum":
        value = tl.maximum(value, low)
    elif KIND == "fma":
        value = tl.fma(value, value, value)
    elif KIND == "clamp":
        value = tl.clamp(value, low, high, tl.PropagateNan.ALL)
    elif KIND == "sum":
        value = tl.sum(value, 0)
    elif KIND == "largest":
        value = tl.max(value, 0)
    elif KIND == "cumsum":
        value = tl.cumsum(value, 0)
    tl.store(y + tl.arange(0, 16), value)


def run(kernel: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    y = torch.full_like(x, float("nan"), dtype=dtype)
    kernel[(triton.cdiv(len(x), BLOCK),)](x, y, len(x), BLOCK)
    return y


def patterns() -> Tensor:
    """All bf16 values."""
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def same_bits(got: Tensor, wanted: Tensor) -> bool:
    """Equal bits, except for NaN payloads, in which devices differ."""
    assert got.dtype == wanted.dtype
    assert torch.equal(got.isnan(), wanted.isnan())
    kind = torch.int32 if got.dtype == torch.float32 else torch.int16
    number = ~got.isnan()
    return torch.equal(got.view(kind)[number], wanted.view(kind)[number])


def hard_numbers(seed: int) -> Tensor:
    """fp32: random bits, ties and their neighbours, both ends of the range, subnormals."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randint(-(2**31), 2**31, (150_000,), generator=generator)
    upper = torch.arange(2**16) << 16
    near_ties = [upper + lower for lower in (0, 0x7FFF, 0x8000, 0x8001)]
    bits = torch.cat([random, *near_ties, torch.arange(4096), torch.arange(4096) << 8])
    bits = torch.where(bits >= 2**31, bits - 2**32, bits)
    return bits.to(torch.int32).view(torch.float32)


def test_widening_is_exact() -> None:
    x = patterns()
    assert same_bits(run(cast_kernel, x, torch.float32), x.float())


@pytest.mark.parametrize("kernel", [cast_kernel, store_kernel])
def test_narrowing_rounds_to_nearest_even(kernel: Any, seed: int) -> None:
    x = hard_numbers(seed)
    assert x.isnan().any()
    assert x.isinf().any()
    assert same_bits(run(kernel, x, torch.bfloat16), x.bfloat16())


def test_narrowing_overflows_to_infinity() -> None:
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([largest, -largest, 3.3961776e38, 3.3961773e38])
    got = run(cast_kernel, x, torch.bfloat16).tolist()
    assert got == [float("inf"), float("-inf"), float("inf"), torch.finfo(torch.bfloat16).max]


def test_fp16_and_bf16_meet_in_fp32(seed: int) -> None:
    half = torch.randn(5000, generator=torch.Generator().manual_seed(seed)).half()
    assert same_bits(run(cast_kernel, half, torch.bfloat16), half.bfloat16())
    assert same_bits(run(cast_kernel, half.bfloat16(), torch.float16), half.bfloat16().half())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dot(dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, 64, generator=generator).to(dtype) for n in (16, 32))
    y = torch.full((16, 32), float("nan"))
    dot_kernel[(1,)](a, b, y, 16, 32, 64)
    torch.testing.assert_close(y.double(), a.double() @ b.double().T, rtol=1e-5, atol=1e-5)


# Expected result of each operation on x; some versions of Triton cast to fp32 in places.
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda x: x + x,
    "add a number": lambda x: x + 1,
    "compare": lambda x: x.clamp(-3),
    "negate": lambda x: -x,
    "maximum": lambda x: x.clamp(-3),
    "fma": lambda x: x * x + x,
    "clamp": lambda x: x.clamp(-3, 2),
    "sum": lambda x: x.sum().expand(16),
    "largest": lambda x: x.max().expand(16),
    "cumsum": lambda x: x.cumsum(0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_arithmetic_is_right_or_refused(kind: str) -> None:
    x = torch.arange(-8.0, 8.0)
    y = torch.full_like(x, float("nan"))
    arithmetic_kernel[(1,)](x, y, kind)
    assert torch.equal(y, KINDS[kind](x))
    z = torch.full_like(x, float("nan")).bfloat16()
    try:
        arithmetic_kernel[(1,)](x.bfloat16(), z, kind)
    except InterpreterError as error:
        said = str(error)
    else:
        said = ""
    assert REFUSED.search(said) if said else torch.equal(z, y.bfloat16())


def test_sums_are_refused() -> None:
    """Fails on versions that cast everywhere, where the test above would prove nothing."""
    with pytest.raises(InterpreterError, match=REFUSED):
        arithmetic_kernel[(1,)](torch.ones(16).bfloat16(), torch.ones(16).bfloat16(), "sum")


def test_a_constant_is_rounded() -> None:
    y = torch.full((16,), float("nan")).bfloat16()
    arithmetic_kernel[(1,)](torch.ones(16).bfloat16(), y, "constant")
    assert y.tolist() == [1.0] * 16


def test_a_second_time_changes_nothing() -> None:
    before = dict(vars(bf16.InterpreterBuilder))
    bf16.install()
    assert dict(vars(bf16.InterpreterBuilder)) == before
