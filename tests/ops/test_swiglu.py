"""swiglu: up(x) * silu(gate(x)), the up rows of the weight first."""

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
    y = torch.einsum("tk,nk->tn", x.double(), w.double())
    y = y if b is None else y + b.double()
    inner = w.shape[0] // 2
    up, gate = y[:, :inner], y[:, inner:]
    return up * gate / (1 + torch.exp(-gate))


@EVERY_FORM
@ALL_DTYPES
@settings(max_examples=20)
@given(ROWS, WIDTHS, st.integers(1, 40), st.booleans(), st.booleans(), SEEDS)
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
    w = draw(2 * inner, width, seed=seed + 1, dtype=dtype, scale=0.5)
    b = draw(2 * inner, seed=seed + 2, dtype=dtype) if with_bias else None
    up, gate = F.linear(x, w, b).chunk(2, dim=1)
    ops = ops_of(form, dtype)
    with torch.no_grad():
        got = ops.swiglu(spread(x) if apart else x, ops.prepare(w, b, "gated"))
    assert_within(got, formula(x, w, b), up * F.silu(gate), dtype)


def test_reference_is_the_formula(seed: int) -> None:
    x, w, b = (
        draw(*s, seed=seed + i, dtype=torch.float64)
        for i, s in enumerate([(40, 7), (18, 7), (18,)])
    )
    got = ops_of("reference", torch.float64).swiglu(x, Weight(w, b))
    assert_exact(got, formula(x, w, b))


@EVERY_FORM
def test_up_comes_first(form: str) -> None:
    """By hand: up 2, gate 1, so 2 / (1 + 1 / e)."""
    ops = ops_of(form)
    weight = ops.prepare(torch.tensor([[2.0], [1.0]]), None, "gated")
    with torch.no_grad():
        assert ops.swiglu(torch.ones(1, 1), weight).item() == pytest.approx(1.4621172, rel=1e-6)


@EVERY_FORM
def test_no_tokens(form: str) -> None:
    ops = ops_of(form)
    weight = ops.prepare(draw(8, 3, seed=1), draw(8, seed=2), "gated")
    with torch.no_grad():
        assert ops.swiglu(torch.empty(0, 3), weight).shape == (0, 4)


@EVERY_FORM
def test_gradients(form: str, seed: int) -> None:
    ops = ops_of(form)
    assert_gradients(
        lambda x, w, b: ops.swiglu(x, ops.prepare(w, b, "gated")),
        formula,
        *(draw(*s, seed=seed + i) for i, s in enumerate([(17, 13), (22, 13), (22,)])),
        seed=seed,
    )


@NEEDS_PACKING
@pytest.mark.parametrize("trained", ["x", "weight", "bias"])
def test_packed_weights_are_used_only_without_gradients(trained: str, seed: int) -> None:
    x, w, b = draw(5, 3, seed=seed), draw(8, 3, seed=seed + 1), draw(8, seed=seed + 2)
    {"x": x, "weight": w, "bias": b}[trained].requires_grad_()
    ops = ops_of("torch")
    prepared = ops.prepare(w, b, "gated")
    assert prepared.packed is not None
    assert len(prepared.packed) == 2
    (nan,) = poisoned(ops.prepare(w[:4], None, "linear")).packed or ()
    weight = Weight(w, b, (nan, nan))
    with torch.no_grad():
        assert ops.swiglu(x, weight).isnan().all()
    got = ops.swiglu(x, weight)
    assert got.requires_grad
    torch.testing.assert_close(got.double(), formula(x, w, b), rtol=1e-5, atol=1e-5)


@PACKED_DTYPES
@pytest.mark.parametrize(("width", "inner"), [(64, 48), (37, 27), (3072, 384)])
@pytest.mark.all_threads
def test_a_row_has_the_same_bits_in_any_batch(
    dtype: torch.dtype, width: int, inner: int, seed: int
) -> None:
    ops = ops_of("torch", dtype)
    w, b = (draw(*s, seed=seed, dtype=dtype) for s in ((2 * inner, width), (2 * inner,)))
    weight = ops.prepare(w, b, "gated")
    x = draw(333, width, seed=seed + 2, dtype=dtype)
    assert_rows_are_batch_invariant(lambda x: ops.swiglu(x, weight), x)


@EVERY_FORM
def test_activations(form: str, seed: int) -> None:
    ops = ops_of(form)
    weight = ops.prepare(draw(8, 9, seed=seed), None, "gated")
    for narrow, same in activations(seed + 2, 9):
        assert torch.equal(ops.swiglu(narrow, weight), ops.swiglu(same, weight))


X, W = torch.ones(5, 3), torch.ones(8, 3)
REFUSED = {
    "x has 2 columns, but the weight (8, 3) takes 3": (X[:, :2], W),
    "x is on meta, but the weight is on cpu": (X.to("meta"), W),
    "x is torch.bfloat16, but the weight is torch.float32": (X.bfloat16(), W),
    "the gated weight stacks up and gate, so its rows must be even, not 7": (X, W[1:]),
}


@EVERY_FORM
@pytest.mark.parametrize("message", REFUSED)
def test_refusals(form: str, message: str) -> None:
    x, w = REFUSED[message]
    with refuses(message):
        ops_of(form).swiglu(x, Weight(w))
