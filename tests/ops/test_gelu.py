"""gelu: z / 2 * (1 + erf(z / sqrt 2)) of z = x Wᵀ + b, exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nomicbert_kernels import Weight
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


def formula(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Z times the normal distribution function of z, computed with erfc."""
    z = torch.einsum("tk,nk->tn", x.double(), w.double())
    z = z if b is None else z + b.double()
    return z * torch.special.erfc(-z / 2**0.5) / 2


@EVERY_FORM
@ALL_DTYPES
@settings(max_examples=20)
@given(ROWS, WIDTHS, WIDTHS, st.booleans(), st.booleans(), SEEDS)
def test_bound(
    form: str,
    dtype: torch.dtype,
    rows: int,
    width: int,
    inner: int,
    with_bias: bool,
    apart: bool,
    seed: int,
) -> None:
    x = draw(rows, width, seed=seed, dtype=dtype)
    w = draw(inner, width, seed=seed + 1, dtype=dtype, scale=0.5)
    b = draw(inner, seed=seed + 2, dtype=dtype) if with_bias else None
    ops = ops_of(form, dtype)
    with torch.no_grad():
        got = ops.gelu(spread(x) if apart else x, ops.prepare(w, b, "linear"))
    assert_within(got, formula(x, w, b), F.gelu(F.linear(x, w, b)), dtype)


def test_reference_is_the_formula(seed: int) -> None:
    x, w, b = (
        draw(*s, seed=seed + i, dtype=torch.float64)
        for i, s in enumerate([(40, 7), (19, 7), (19,)])
    )
    got = ops_of("reference", torch.float64).gelu(x, Weight(w, b))
    assert_exact(got, formula(x, w, b))


@EVERY_FORM
def test_it_is_the_exact_gelu(form: str) -> None:
    """At the largest error of the tanh approximation, 4.7e-4, against a table of erf."""
    ops = ops_of(form)
    with torch.no_grad():
        got = ops.gelu(torch.tensor([[2.3]]), ops.prepare(torch.ones(1, 1), None, "linear"))
    assert got.item() == pytest.approx(2.3 * 0.98927589, abs=2e-6)


@EVERY_FORM
def test_no_tokens(form: str) -> None:
    ops = ops_of(form)
    weight = ops.prepare(draw(4, 3, seed=1), draw(4, seed=2), "linear")
    with torch.no_grad():
        assert ops.gelu(torch.empty(0, 3), weight).shape == (0, 4)


@EVERY_FORM
def test_gradients(form: str, seed: int) -> None:
    ops = ops_of(form)
    assert_gradients(
        lambda x, w, b: ops.gelu(x, ops.prepare(w, b, "linear")),
        formula,
        *(draw(*s, seed=seed + i) for i, s in enumerate([(17, 13), (11, 13), (11,)])),
        seed=seed,
    )


@NEEDS_PACKING
@pytest.mark.parametrize("trained", ["x", "weight", "bias"])
def test_packed_weights_are_used_only_without_gradients(trained: str, seed: int) -> None:
    x, w, b = draw(5, 3, seed=seed), draw(4, 3, seed=seed + 1), draw(4, seed=seed + 2)
    {"x": x, "weight": w, "bias": b}[trained].requires_grad_()
    ops = ops_of("torch")
    weight = poisoned(ops.prepare(w, b, "linear"))
    with torch.no_grad():
        assert ops.gelu(x, weight).isnan().all()
    got = ops.gelu(x, weight)
    assert got.requires_grad
    torch.testing.assert_close(got.double(), formula(x, w, b), rtol=1e-5, atol=1e-5)


@PACKED_DTYPES
@pytest.mark.parametrize(("width", "inner"), [(64, 48), (37, 53), (3072, 768)])
@pytest.mark.all_threads
def test_a_row_has_the_same_bits_in_any_batch(
    dtype: torch.dtype, width: int, inner: int, seed: int
) -> None:
    ops = ops_of("torch", dtype)
    w, b = draw(inner, width, seed=seed, dtype=dtype), draw(inner, seed=seed + 1, dtype=dtype)
    weight = ops.prepare(w, b, "linear")
    x = draw(333, width, seed=seed + 2, dtype=dtype)
    assert_rows_are_batch_invariant(lambda x: ops.gelu(x, weight), x)


@EVERY_FORM
def test_activations(form: str, seed: int) -> None:
    ops = ops_of(form)
    weight = ops.prepare(draw(4, 9, seed=seed), None, "linear")
    for narrow, same in activations(seed + 2, 9):
        assert torch.equal(ops.gelu(narrow, weight), ops.gelu(same, weight))


X = torch.ones(5, 3)
REFUSED = {
    "x has 2 columns, but the weight (4, 3) takes 3": X[:, :2],
    "x is on meta, but the weight is on cpu": X.to("meta"),
    "x is torch.bfloat16, but the weight is torch.float32": X.bfloat16(),
    "x must be contiguous in its last dimension, stride (1, 5)": torch.ones(3, 5).T,
}


@EVERY_FORM
@pytest.mark.parametrize("message", REFUSED)
def test_refusals(form: str, message: str) -> None:
    with refuses(message):
        ops_of(form).gelu(REFUSED[message], Weight(torch.ones(4, 3)))
