"""Shared by the tests of the ops: backends, random tensors, text lengths, the error bound.

Each test writes out its expected result in fp64; nothing here computes an op.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from nomicbert_kernels import Activation, Ops, Weight, select_ops
from nomicbert_kernels.backend import triton_ops
from nomicbert_kernels.capabilities import why_not_triton
from nomicbert_kernels.linear_torch import onednn_packs

# The interpreter replaces a GPU; tests/gpu tests on a real one.
INTERPRETS = why_not_triton(torch.device("cpu"), torch.float32) is None
if INTERPRETS:
    from tests.interpreter import bf16, dot, speed

    bf16.install()
    dot.install()
    speed.install()
FORMS = ("reference", "torch", "triton") if INTERPRETS else ("reference", "torch")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EVERY_FORM = pytest.mark.parametrize("form", FORMS)
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
# Bit-identical rows are promised only where oneDNN packs the weights.
PACKED_DTYPES = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=pytest.mark.skipif(not onednn_packs(dtype), reason="not packed"))
        for dtype in (torch.float32, torch.bfloat16)
    ],
    ids=lambda dtype: str(dtype)[6:],
)
NEEDS_PACKING = pytest.mark.skipif(not onednn_packs(torch.float32), reason="oneDNN does not pack")

ROWS = st.sampled_from([1, 2, 3, 7, 8, 15, 16, 17, 63, 64, 65, 130])
WIDTHS = st.integers(1, 70)
SEEDS = st.integers(0, 2**31)
# Around the edges of vectors and tiles, and one long text among many short.
LENGTHS = st.one_of(
    st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65]), min_size=1, max_size=7),
    st.permutations([1] * 5 + [2] * 3 + [0, 65]),
)
# Row counts that take different code paths of a GEMM.
SLICES = [(0, m) for m in (1, 2, 3, 4, 7, 8, 9, 16, 17, 33, 64, 100)] + [(5, 1), (31, 2), (99, 77)]


def ops_of(form: str, dtype: torch.dtype = torch.float32) -> Ops:
    # select_ops would refuse bf16, which the patched interpreter computes correctly
    if form == "triton":
        return triton_ops(torch.device("cpu"))
    return select_ops("cpu", dtype, form)  # type: ignore[arg-type]


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Normal values, rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def spread(x: Tensor) -> Tensor:
    """The same values in strided rows, with NaN between them."""
    wide = x.new_full((x.shape[0], x[:1].numel() + 3), float("nan"))
    view = wide[:, : x[:1].numel()].unflatten(1, x.shape[1:])
    return view.copy_(x)


def offsets_of(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=torch.int32)


def assert_within(got: Tensor, truth: Tensor, plain: Tensor, dtype: torch.dtype) -> None:
    """The error bound of a kernel: twice plain torch's error, plus 4 eps of the largest value."""
    assert got.dtype == dtype
    assert got.shape == truth.shape
    assert truth.dtype == torch.float64
    if not truth.numel():
        return
    error = (got.double() - truth).abs().max().item()
    allowed = 2 * (plain.double() - truth).abs().max().item()
    allowed += 4 * torch.finfo(dtype).eps * truth.abs().max().item()
    assert error <= allowed, f"off by {error:.3g}, allowed {allowed:.3g}"


def assert_exact(got: Tensor, truth: Tensor) -> None:
    """The reference in fp64 equals the formula, up to the order of sums."""
    assert got.dtype == truth.dtype == torch.float64
    torch.testing.assert_close(got, truth, rtol=1e-11, atol=1e-11)


def assert_gradients(
    op: Callable[..., Tensor], formula: Callable[..., Tensor], *leaves: Tensor, seed: int
) -> None:
    """Compare the op's gradients in fp32 with those of the formula in fp64, for each leaf."""
    mine = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    got, truth = op(*mine), formula(*exact)
    upstream = draw(*truth.shape, seed=seed + 1000, dtype=torch.float64)
    assert got.grad_fn is not None, "the result is cut off from the graph"
    found = torch.autograd.grad(got, mine, upstream.to(got.dtype))
    wanted = torch.autograd.grad(truth, exact, upstream)
    for place, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert b.abs().max() > 0
        error = ((a.double() - b).abs().max() / b.abs().max()).item()
        assert error <= 1e-5, f"leaf {place}: {error:.3g} of the largest gradient"


def poisoned(weight: Weight) -> Weight:
    """A weight whose packed pieces are NaN, so that any use of them shows in the result."""
    assert weight.packed is not None
    kind = "experts" if weight.source.dim() == 3 else "linear"
    nan = torch.full_like(weight.source, float("nan"), requires_grad=False)
    packed = ops_of("torch").prepare(nan, None, kind).packed
    assert packed is not None
    return dataclasses.replace(weight, packed=packed * len(weight.packed))


def scaled_rows(rows: int, columns: int, seed: int) -> tuple[Activation, Tensor]:
    """int8 with one scale per row, and the dequantised fp32 tensor."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8)
    scale = torch.rand(rows, generator=generator) / 50 + 0.001
    out = torch.empty(rows, columns)
    for row in range(rows):
        out[row] = data[row].float() * scale[row]
    return Activation(data, scale), out


def activations(seed: int, columns: int) -> list[tuple[Activation, Tensor]]:
    """Both kinds of Activation, each with its plain tensor."""
    plain = draw(6, columns, seed=seed)
    return [scaled_rows(6, columns, seed), (Activation(plain), plain)]


def assert_rows_are_batch_invariant(op: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Check that a row's result has the same bits for any number of rows."""
    assert x.shape[0] >= 200
    with torch.no_grad():
        whole = op(x)
        for start, count in SLICES:
            part = op(x[start : start + count])
            assert torch.equal(part, whole[start : start + count]), (start, count)


def refuses(message: str) -> Any:
    """Expect a ValueError whose message contains this text literally."""
    return pytest.raises(ValueError, match=re.escape(message))
