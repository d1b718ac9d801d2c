"""layer_norm: (z - mean z) / sqrt(var z + eps) * weight + bias, of z = x + residual."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nomicbert_kernels import Activation, values
from tests.ops.cases import (
    ALL_DTYPES,
    EVERY_FORM,
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
    refuses,
    spread,
)

EPS = 1e-5


def formula(x: Tensor, w: Tensor | None, b: Tensor | None, r: Tensor | None, eps=EPS) -> Tensor:
    z = x.double() if r is None else x.double() + r.double()
    width = z.shape[1]
    mean = z @ torch.full((width, 1), 1 / width, dtype=torch.float64)
    variance = (z**2).sum(1, keepdim=True) / width - mean**2
    y = (z - mean) / (variance + eps) ** 0.5
    y = y if w is None else y * w.double()
    return y if b is None else y + b.double()


@EVERY_FORM
@ALL_DTYPES
@settings(max_examples=20)
@given(ROWS, WIDTHS, st.booleans(), st.booleans(), st.booleans(), SEEDS)
def test_bound(
    form: str,
    dtype: torch.dtype,
    rows: int,
    width: int,
    affine: bool,
    with_residual: bool,
    apart: bool,
    seed: int,
) -> None:
    x = draw(rows, width, seed=seed, dtype=dtype, scale=2.0)
    w = draw(width, seed=seed + 1, dtype=dtype) if affine else None
    b = draw(width, seed=seed + 2, dtype=dtype) if affine else None
    r = draw(rows, width, seed=seed + 3, dtype=dtype) if with_residual else None
    plain = F.layer_norm(x if r is None else x + r, (width,), w, b, EPS)
    truth = formula(x, w, b, r)
    if apart:
        x, r = spread(x), None if r is None else spread(r)
    assert_within(values(ops_of(form, dtype).layer_norm(x, w, b, EPS, r)), truth, plain, dtype)


@given(ROWS, WIDTHS, SEEDS)
@settings(max_examples=20)
def test_reference_is_the_formula(rows: int, width: int, seed: int) -> None:
    x, r = (draw(rows, width, seed=seed + i, dtype=torch.float64) for i in range(2))
    w, b = (draw(width, seed=seed + 5 + i, dtype=torch.float64) for i in range(2))
    got = values(ops_of("reference", torch.float64).layer_norm(x, w, b, EPS, r))
    torch.testing.assert_close(got, formula(x, w, b, r), rtol=1e-9, atol=1e-9)


@EVERY_FORM
@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_eps_on_rows_of_low_variance(form: str, eps: float) -> None:
    """Rows whose variance is near eps, so that another eps changes the result by far."""
    x = draw(9, 32, seed=3, dtype=torch.float64, scale=eps**0.5).float()
    got = values(ops_of(form).layer_norm(x, None, None, eps)).double()
    error = (got - formula(x, None, None, None, eps)).abs().max()
    wrong = (got - formula(x, None, None, None, eps * 10)).abs().max()
    assert error < 1e-5 < 0.3 < wrong


def test_the_variance_is_the_biased_one() -> None:
    x = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    got = values(ops_of("reference", torch.float64).layer_norm(x, None, None, 0.0))
    assert_exact(got, torch.tensor([[-1.0, 1.0]], dtype=torch.float64))


@EVERY_FORM
def test_no_tokens(form: str) -> None:
    ops, none = ops_of(form), torch.empty(0, 3)
    assert values(ops.layer_norm(none, torch.ones(3), None, EPS, none)).shape == (0, 3)


@EVERY_FORM
def test_gradients(form: str, seed: int) -> None:
    ops = ops_of(form)
    assert_gradients(
        lambda x, w, b, r: values(ops.layer_norm(x, w, b, EPS, r)),
        formula,
        *(draw(*s, seed=seed + i) for i, s in enumerate([(17, 13), (13,), (13,), (17, 13)])),
        seed=seed,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("width", [64, 37])
@pytest.mark.all_threads
def test_a_row_has_the_same_bits_in_any_batch(dtype: torch.dtype, width: int, seed: int) -> None:
    ops = ops_of("torch", dtype)
    w, b = draw(width, seed=seed, dtype=dtype), draw(width, seed=seed + 1, dtype=dtype)
    x = draw(333, 2 * width, seed=seed + 2, dtype=dtype)
    assert_rows_are_batch_invariant(
        lambda x: values(ops.layer_norm(x[:, :width], w, b, EPS, x[:, width:])), x
    )


@EVERY_FORM
def test_activations(form: str, seed: int) -> None:
    ops = ops_of(form)
    w, b = draw(9, seed=seed), draw(9, seed=seed + 1)
    for narrow, same in activations(seed + 2, 9):
        wanted = values(ops.layer_norm(same, w, b, EPS))
        assert torch.equal(values(ops.layer_norm(narrow, w, b, EPS)), wanted)
        x = draw(6, 9, seed=seed + 3)
        wanted = values(ops.layer_norm(x, w, b, EPS, same))
        assert torch.equal(values(ops.layer_norm(x, w, b, EPS, narrow)), wanted)


def test_values_multiplies_each_row_by_its_factor() -> None:
    data = torch.tensor([[1, -2], [3, 100]], dtype=torch.int8)
    got = values(Activation(data, torch.tensor([0.5, 0.25])))
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), [[0.5, -1.0], [0.75, 25.0]])


X, V = torch.ones(5, 3), torch.ones(3)
META = {"device": "meta"}
REFUSED = {
    "x must have 2 dimensions, (rows, columns), not 1": (V, V, V, None),
    "x must be fp32, fp16, bf16 or fp64, not torch.int8": (X.char(), V, V, None),
    "x must be contiguous in its last dimension, stride (1, 5)": (torch.ones(3, 5).T, V, V, None),
    "weight must be (3,), not (4,)": (X, torch.ones(4), V, None),
    "bias must be (3,), not (1, 3)": (X, V, V[None], None),
    "residual must be (5, 3), not (4, 3)": (X, V, V, X[:4]),
    "weight is on meta, but must be on cpu": (X, V.to("meta"), V, None),
    "bias is on meta, but must be on cpu": (X, V, V.to("meta"), None),
    "residual is on meta, but must be on cpu": (X, V, V, X.to("meta")),
}


@EVERY_FORM
@pytest.mark.parametrize("message", REFUSED)
def test_refusals(form: str, message: str) -> None:
    x, weight, bias, residual = REFUSED[message]
    with refuses(message):
        ops_of(form).layer_norm(x, weight, bias, EPS, residual)
