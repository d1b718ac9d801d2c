"""The patched interpreter's `tl.dot`: order of sums, error bounds, and callers of numpy."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import TensorHandle

from tests.interpreter import bf16, dot, fp8
from tests.interpreter.sanitizer import sanitized

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="kernels run on the device itself"
)
E4M3 = torch.float8_e4m3fn
KINDS = pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, E4M3],
    ids=lambda dtype: str(dtype)[6:],
)


@pytest.fixture(autouse=True)
def installed() -> None:
    fp8.install()
    dot.install()


@triton.jit
def dot_kernel(
    a, b, d, y, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr = None
):
    """y = d + a bᵀ."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + m[:, None] * K + k[None, :])
    right = tl.load(b + n[:, None] * K + k[None, :])
    if KIND is not None:
        left, right = left.to(KIND), right.to(KIND)
    places = m[:, None] * N + n[None, :]
    total = tl.dot(left, right.T, tl.load(d + places), input_precision="ieee")
    tl.store(y + places, total)


@triton.jit
def batch_kernel(a, b, y, B: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """y = a b, one matmul per batch index."""
    i, m, n, k = tl.arange(0, B), tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + i[:, None, None] * M * K + m[None, :, None] * K + k[None, None, :])
    right = tl.load(b + i[:, None, None] * K * N + k[None, :, None] * N + n[None, None, :])
    total = tl.dot(left, right, input_precision="ieee")
    tl.store(y + i[:, None, None] * M * N + m[None, :, None] * N + n[None, None, :], total)


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def summed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def run(a: Tensor, b: Tensor, d: Tensor, kind: Any = None) -> Tensor:
    y = torch.full_like(d, 7 if d.dtype == torch.int32 else float("nan"))
    dot_kernel[(1,)](a, b, d, y, *d.shape, a.shape[1], kind)
    return y


def written_out(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matmul of (M, K) and (K, N), element by element, in their dtype."""
    out = np.full((len(a), b.shape[1]), np.nan, a.dtype)
    for i, j in np.ndindex(out.shape):
        terms = [x * y for x, y in zip(a[i], b[:, j], strict=True)]
        while len(terms) > 1:
            half = len(terms) // 2
            for k in range(half):
                terms[k] = terms[k] + terms[len(terms) - half + k]
            del terms[len(terms) - half :]
        out[i, j] = terms[0]
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("inner", [1, 2, 3, 7, 16, 64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (4, 1), (3, 5)])
def test_the_order(dtype: Any, inner: int, rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((rows, inner)), rng.standard_normal((inner, columns))
    got = dot.fold(a.astype(dtype), b.astype(dtype))
    assert got.dtype == dtype
    assert np.array_equal(got, written_out(a.astype(dtype), b.astype(dtype)))


@KINDS
def test_a_kernel_sums_in_this_order(dtype: torch.dtype, seed: int) -> None:
    """The accumulator is added last, for all operand dtypes."""
    wide = summed_in(dtype)
    a, b = draw(16, 32, seed=seed, dtype=dtype), draw(16, 32, seed=seed + 1, dtype=dtype)
    d = draw(16, 16, seed=seed + 2, dtype=wide)
    wanted = d + torch.from_numpy(written_out(a.to(wide).numpy(), b.to(wide).numpy().T))
    assert torch.equal(run(a, b, d), wanted)


def exact_difference(x: np.ndarray, y: np.ndarray, z: np.ndarray, got: np.ndarray) -> np.ndarray:
    """z + x yᵀ - got, rounded once."""
    left, right = ([[Fraction(v) for v in row] for row in t.tolist()] for t in (x, y))
    out = np.full(got.shape, np.nan)
    for i, j in np.ndindex(got.shape):
        total = sum((p * q for p, q in zip(left[i], right[j], strict=True)), Fraction(z[i, j]))
        out[i, j] = float(total - Fraction(got[i, j]))
    return out


@KINDS
@pytest.mark.parametrize("inner", [16, 128])
def test_values(dtype: torch.dtype, inner: int, seed: int) -> None:
    """Within the standard error bound of a sum (Higham 2002, section 4.2).

    A term takes part in log2 K additions and that of the accumulator, and its product is rounded if
    it is not exact in the dtype: n roundings in all, each by a factor of 1 + e, |e| <= u. So the
    error is at most n u / (1 - n u) times the sum of the magnitudes of all terms.
    """
    fits = dtype not in (torch.float32, torch.float64)
    wide = summed_in(dtype)
    a, b = draw(32, inner, seed=seed, dtype=dtype), draw(16, inner, seed=seed + 1, dtype=dtype)
    d = draw(32, 16, seed=seed + 2, dtype=wide)
    x, y, z = (t.to(wide).double().numpy() for t in (a, b, d))
    got = run(a, b, d).double().numpy()
    n = inner.bit_length() - 1 + 1 + (0 if fits else 1)
    u = torch.finfo(wide).eps / 2
    size = np.abs(x) @ np.abs(y).T + np.abs(z)
    error = np.abs(exact_difference(x, y, z, got))
    assert (error <= n * u / (1 - n * u) * size).all()


@KINDS
def test_a_row_has_the_same_bits_in_any_batch(dtype: torch.dtype, seed: int) -> None:
    """In tiles with any number of rows and columns, at any position."""
    wide = summed_in(dtype)
    a, b = draw(128, 64, seed=seed, dtype=dtype), draw(64, 64, seed=seed + 1, dtype=dtype)
    d = draw(128, 64, seed=seed + 2, dtype=wide)
    whole = run(a, b, d)
    assert whole.isfinite().all()
    for rows in (1, 2, 16, 32, 64):
        for columns in (1, 16, 32, 64):
            for first in (0, 128 - rows):
                part = slice(first, first + rows)
                got = run(a[part], b[:columns], d[part, :columns].contiguous())
                assert torch.equal(got, whole[part, :columns]), (rows, columns, first)


def test_layout_and_alignment_change_no_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((24, 48), (48, 40)))
    wanted = dot.fold(a, b)

    def shifted(x: np.ndarray, by: int) -> np.ndarray:
        memory = np.empty(x.nbytes + by, np.uint8)[by:].view(np.float32)
        memory[:] = x.reshape(-1)
        return memory.reshape(x.shape)

    layouts: list[Callable[[np.ndarray], np.ndarray]] = [
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x[::-1].copy()[::-1],
        *(lambda x, by=by: shifted(x, by) for by in (4, 8, 20, 36)),
    ]
    for left in layouts:
        for right in layouts:
            assert np.array_equal(dot.fold(left(a), right(b)), wanted)


def test_a_batch_of_products(seed: int) -> None:
    a, b = draw(4, 16, 32, seed=seed), draw(4, 32, 16, seed=seed + 1)
    y = torch.full((4, 16, 16), float("nan"))
    batch_kernel[(1,)](a, b, y, 4, 16, 16, 32)
    for left, right, got in zip(a.numpy(), b.numpy(), y.numpy(), strict=True):
        assert np.array_equal(got, written_out(left, right))


def refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("numpy's product")


def test_no_kernel_uses_numpys_matmul(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the sanitizer."""
    from tests.ops import cases

    linear = cases.ops_of("triton").linear
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x, w = draw(20, 40, seed=seed, dtype=dtype), draw(24, 40, seed=seed + 1, dtype=dtype)
        wanted = linear(x, cases.Weight(w))
        with monkeypatch.context() as patch, sanitized() as seen:
            patch.setattr(np, "matmul", refuse)
            assert torch.equal(linear(x, cases.Weight(w)), wanted)
        assert seen.kernels == ["linear_kernel"]


def test_integers_and_fp16_sums_stay_with_numpy(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy has no BLAS for them. This also shows that the test above would detect its matmul."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(-128, 128, (16, 32), generator=generator).to(torch.int8) for _ in "ab")
    none = torch.zeros(16, 16, dtype=torch.int32)
    halves = a.half(), b.half(), none.half()
    assert torch.equal(run(a, b, none), a.int() @ b.int().T)
    monkeypatch.setattr(np, "matmul", refuse)
    for operands in ((a, b, none), halves):
        with pytest.raises(InterpreterError, match="numpy's product"):
            run(*operands)


def test_operands_that_are_not_widened_are_refused() -> None:
    ones = torch.ones(16, 16)
    with pytest.raises(InterpreterError, match="a dot of fp8e5: it is not known here"):
        run(ones, ones, ones, tl.float8e5)


def test_before_or_after_the_others(seed: int) -> None:
    bits = [bf16.narrow(draw(16, 16, seed=seed + i).numpy()) for i in range(2)]
    handles = [TensorHandle(x, tl.bfloat16) for x in bits]
    none = TensorHandle(np.zeros((16, 16), np.float32), tl.float32)
    wanted = written_out(*map(bf16.widen, bits))
    for dots in (
        dot.ordered_dot(fp8.exact_dot(bf16.exact_dot(refuse))),
        fp8.exact_dot(bf16.exact_dot(dot.ordered_dot(refuse))),
    ):
        assert np.array_equal(dots(None, *handles, none, None, 0).data, wanted)


def test_a_second_time_changes_nothing() -> None:
    before = dict(vars(dot.InterpreterBuilder))
    dot.install()
    assert dict(vars(dot.InterpreterBuilder)) == before
