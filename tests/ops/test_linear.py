"""linear: x Wᵀ + b + r, and the argument checks shared by all ops with a weight."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nomicbert_kernels import Activation, Weight
from tests.ops.cases import (
    ALL_DTYPES,
    EVERY_FORM,
    NEEDS_PACKING,
    PACKED_DTYPES,
    ROWS,
    SEEDS,
    WIDTHS,
    activations,
    assert_exact,
    assert_gradients,
    assert_rows_are_batch_invariant,
    assert_within,
    draw,
    ops_of,
    poisoned,
    refuses,
    spread,
)


def formula(x: Tensor, w: Tensor, b: Tensor | None, r: Tensor | None) -> Tensor:
    y = torch.einsum("tk,nk->tn", x.double(), w.double())
    y = y if b is None else y + b.double()
    return y if r is None else y + r.double()


@EVERY_FORM
@ALL_DTYPES
@settings(max_examples=20)
@given(ROWS, WIDTHS, WIDTHS, st.booleans(), st.booleans(), st.booleans(), SEEDS)
def test_bound(
    form: str,
    dtype: torch.dtype,
    rows: int,
    k: int,
    n: int,
    with_bias: bool,
    with_residual: bool,
    apart: bool,
    seed: int,
) -> None:
    x, w = draw(rows, k, seed=seed, dtype=dtype), draw(n, k, seed=seed + 1, dtype=dtype)
    b = draw(n, seed=seed + 2, dtype=dtype) if with_bias else None
    r = draw(rows, n, seed=seed + 3, dtype=dtype) if with_residual else None
    plain = F.linear(x, w, b) if r is None else F.linear(x, w, b) + r
    truth = formula(x, w, b, r)
    if apart:
        x, r = spread(x), None if r is None else spread(r)
    ops = ops_of(form, dtype)
    with torch.no_grad():
        assert_within(ops.linear(x, ops.prepare(w, b, "linear"), r), truth, plain, dtype)


@given(ROWS, WIDTHS, WIDTHS, SEEDS)
@settings(max_examples=20)
def test_reference_is_the_formula(rows: int, k: int, n: int, seed: int) -> None:
    x, w, r = (
        draw(*shape, seed=seed + i, dtype=torch.float64)
        for i, shape in enumerate([(rows, k), (n, k), (rows, n)])
    )
    b = draw(n, seed=seed + 9, dtype=torch.float64)
    got = ops_of("reference", torch.float64).linear(x, Weight(w, b), r)
    assert_exact(got, formula(x, w, b, r))


@EVERY_FORM
def test_no_tokens(form: str) -> None:
    ops = ops_of(form)
    weight = ops.prepare(draw(4, 3, seed=1), draw(4, seed=2), "linear")
    with torch.no_grad():
        assert ops.linear(torch.empty(0, 3), weight).shape == (0, 4)
        assert ops.linear(torch.empty(0, 3), weight, torch.empty(0, 4)).shape == (0, 4)


@EVERY_FORM
def test_gradients(form: str, seed: int) -> None:
    ops = ops_of(form)
    assert_gradients(
        lambda x, w, b, r: ops.linear(x, ops.prepare(w, b, "linear"), r),
        formula,
        *(draw(*s, seed=seed + i) for i, s in enumerate([(17, 13), (11, 13), (11,), (17, 11)])),
        seed=seed,
    )


@NEEDS_PACKING
@pytest.mark.parametrize("trained", ["x", "weight", "bias", "residual"])
def test_packed_weights_are_used_only_without_gradients(trained: str, seed: int) -> None:
    shapes = {"x": (5, 3), "weight": (4, 3), "bias": (4,), "residual": (5, 4)}
    t = {name: draw(*s, seed=seed + i) for i, (name, s) in enumerate(shapes.items())}
    t[trained].requires_grad_()
    ops = ops_of("torch")
    weight = poisoned(ops.prepare(t["weight"], t["bias"], "linear"))
    with torch.no_grad():
        assert ops.linear(t["x"], weight, t["residual"]).isnan().all()
    y = ops.linear(t["x"], weight, t["residual"])
    wanted = formula(t["x"], t["weight"], t["bias"], t["residual"])
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(y.sum(), t[trained])
    (truth,) = torch.autograd.grad(wanted.sum(), t[trained])
    torch.testing.assert_close(gradient, truth)


@NEEDS_PACKING
def test_packed_weights_are_not_used_under_autocast(seed: int) -> None:
    ops = ops_of("torch")
    weight = poisoned(ops.prepare(draw(4, 3, seed=seed), None, "linear"))
    x = draw(5, 3, seed=seed + 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = ops.linear(x, weight)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(
        y.double(), formula(x, weight.source, None, None), rtol=0.03, atol=0.03
    )


@PACKED_DTYPES
# the last is a real size, so wide that one row would take another code path than two
@pytest.mark.parametrize(("k", "n"), [(64, 48), (37, 53), (5, 1), (3072, 768)])
@pytest.mark.all_threads
def test_a_row_has_the_same_bits_in_any_batch(
    dtype: torch.dtype, k: int, n: int, seed: int
) -> None:
    ops = ops_of("torch", dtype)
    w, b = draw(n, k, seed=seed, dtype=dtype), draw(n, seed=seed + 1, dtype=dtype)
    weight = ops.prepare(w, b, "linear")
    assert weight.packed is not None
    both = draw(333, k + n, seed=seed + 2, dtype=dtype)
    assert_rows_are_batch_invariant(lambda x: ops.linear(x[:, :k], weight), both)
    assert_rows_are_batch_invariant(lambda x: ops.linear(x[:, :k], weight, x[:, k:]), both)


@PACKED_DTYPES
@pytest.mark.parametrize(("k", "n"), [(512, 16), (1536, 384), (3072, 768)])
@pytest.mark.all_threads
def test_a_row_is_summed_in_one_order(dtype: torch.dtype, k: int, n: int, seed: int) -> None:
    """A large term at the start cancels at the end, so that rounding in between shows."""
    ops = ops_of("torch", dtype)
    w, x = draw(n, k, seed=seed, dtype=dtype), draw(700, k, seed=seed + 2, dtype=dtype)
    x[:, 0], x[:, -1] = 2.0**18, -(2.0**18)
    w[:, 0] = w[:, -1] = 1.0
    weight = ops.prepare(w, None, "linear")
    assert_rows_are_batch_invariant(lambda x: ops.linear(x, weight), x)


@EVERY_FORM
def test_activations(form: str, seed: int) -> None:
    ops = ops_of(form)
    weight = ops.prepare(draw(4, 9, seed=seed), draw(4, seed=seed + 1), "linear")
    for narrow, same in activations(seed + 2, 9):
        assert torch.equal(ops.linear(narrow, weight), ops.linear(same, weight))
    for narrow, same in activations(seed + 3, 4):
        x = draw(6, 9, seed=seed + 4)
        assert torch.equal(ops.linear(x, weight, narrow), ops.linear(x, weight, same))


@EVERY_FORM
def test_a_scaled_activation_takes_the_dtype_of_the_weight(form: str, seed: int) -> None:
    ops = ops_of(form, torch.bfloat16)
    weight = ops.prepare(draw(4, 9, seed=seed, dtype=torch.bfloat16), None, "linear")
    narrow, same = activations(seed + 2, 9)[0]
    got = ops.linear(narrow, weight)
    assert torch.equal(got, ops.linear(same.bfloat16(), weight))


X, W = torch.ones(5, 3), Weight(torch.ones(4, 3), torch.ones(4))
REFUSED = {
    "x must have 2 dimensions, (rows, columns), not 3": (X[None], W, None),
    "x must be fp32, fp16, bf16 or fp64, not torch.int64": (X.long(), W, None),
    "x must be contiguous in its last dimension, stride (1, 5)": (torch.ones(3, 5).T, W, None),
    "x has 2 columns, but the weight (4, 3) takes 3": (X[:, :2], W, None),
    "the weight (4, 3) takes a bias (4,), not (3,)": (X, Weight(W.source, torch.ones(3)), None),
    "x is on meta, but the weight is on cpu": (X.to("meta"), W, None),
    "x is torch.float16, but the weight is torch.float32": (X.half(), W, None),
    "x is torch.bfloat16, but the weight is torch.float32": (Activation(X.bfloat16()), W, None),
    "residual must be (5, 4), not (5, 3)": (X, W, X),
    "residual is on meta, but must be on cpu": (X, W, torch.ones(5, 4, device="meta")),
}


@EVERY_FORM
@pytest.mark.parametrize("message", REFUSED)
def test_refusals(form: str, message: str) -> None:
    ops = ops_of(form)
    x, weight, residual = REFUSED[message]
    prepared = ops.prepare(weight.source, weight.bias, "linear")
    with refuses(message):
        ops.linear(x, dataclasses.replace(weight, packed=prepared.packed), residual)
