"""moe: the outputs of the top-k experts, weighted by their share of a softmax over all."""

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


def shares(x: Tensor, router: Tensor) -> Tensor:
    """(T, E): each expert's share of the softmax, in fp64."""
    e = torch.exp(torch.einsum("tk,nk->tn", x.double(), router.double()))
    return e / e.sum(1, keepdim=True)


def formula(
    x: Tensor, router: Tensor, up: Tensor, down: Tensor, b: Tensor | None, k: int
) -> Tensor:
    """Token by token: an expert counts if fewer than k others have a larger share."""
    x, up, down, share = x.double(), up.double(), down.double(), shares(x, router)
    out = []
    for token, p in zip(x, share, strict=True):
        y = torch.zeros_like(token)
        for expert in range(len(p)):
            if int((p > p[expert]).sum()) < k:
                z = up[expert] @ token
                y = y + p[expert] * (down[expert] @ (z * torch.special.erfc(-z / 2**0.5) / 2))
        out.append(y if b is None else y + b.double())
    return torch.stack(out)


def clear(x: Tensor, router: Tensor, k: int) -> Tensor:
    """Tokens whose choice of experts cannot change by rounding."""
    if k == router.shape[0]:
        return torch.ones(len(x), dtype=torch.bool)
    ranked = shares(x, router).sort(dim=1, descending=True).values
    return ranked[:, k - 1] - ranked[:, k] > 1e-3


def plain_torch(
    x: Tensor, router: Tensor, up: Tensor, down: Tensor, b: Tensor | None, k: int
) -> Tensor:
    """All experts in the dtype of `x`, weighted by shares in fp32."""
    top, chosen = F.linear(x.float(), router.float()).softmax(1).topk(k, dim=1)
    gates = torch.zeros(len(x), len(router)).scatter(1, chosen, top).to(x.dtype)
    y = torch.zeros_like(x)
    for expert in range(len(router)):
        y += gates[:, expert, None] * F.linear(F.gelu(F.linear(x, up[expert])), down[expert])
    return y if b is None else y + b


def draw_weights(experts: int, hidden: int, inner: int, seed: int, dtype=torch.float32):
    """Router, up, down, bias."""
    shapes = (experts, hidden), (experts, inner, hidden), (experts, hidden, inner), (hidden,)
    return tuple(
        draw(*shape, seed=seed + i, dtype=dtype, scale=0.5) for i, shape in enumerate(shapes)
    )


def run(form: str, x: Tensor, router: Tensor, up: Tensor, down: Tensor, b, k: int) -> Tensor:
    ops = ops_of(form, router.dtype)
    return ops.moe(
        x,
        ops.prepare(router, None, "router"),
        ops.prepare(up, None, "experts"),
        ops.prepare(down, b, "experts"),
        k,
    )


@EVERY_FORM
@ALL_DTYPES
@settings(max_examples=12)
@given(ROWS, st.integers(1, 5), st.integers(1, 23), st.integers(1, 23), st.data(), SEEDS)
def test_bound(
    form: str,
    dtype: torch.dtype,
    rows: int,
    experts: int,
    hidden: int,
    inner: int,
    data: st.DataObject,
    seed: int,
) -> None:
    k = data.draw(st.integers(1, experts))
    x = draw(rows, hidden, seed=seed + 9, dtype=dtype)
    *weights, b = draw_weights(experts, hidden, inner, seed, dtype)
    weights.append(b if data.draw(st.booleans()) else None)
    sure = clear(x, weights[0], k)
    x = x[sure]
    if not len(x):
        return
    with torch.no_grad():
        got = run(form, spread(x) if data.draw(st.booleans()) else x, *weights, k)
    assert_within(got, formula(x, *weights, k), plain_torch(x, *weights, k), dtype)


def test_reference_is_the_formula_without_renormalisation(seed: int) -> None:
    router, up, down, b = draw_weights(4, 9, 7, seed, torch.float64)
    x = draw(60, 9, seed=seed + 9, dtype=torch.float64)
    sure = clear(x, router, 2)
    assert sure.sum() > 50
    x = x[sure]
    ops = ops_of("reference", torch.float64)
    got = ops.moe(x, Weight(router), Weight(up), Weight(down, b), 2)
    assert_exact(got, formula(x, router, up, down, b, 2))
    # the two largest of four shares sum to far less than 1, so renormalising would show
    total = shares(x, router).topk(2).values.sum(1, keepdim=True)
    assert total.min() < 0.8
    assert (got - ((got - b) / total + b)).abs().max() > 0.1


@EVERY_FORM
def test_an_expert_without_tokens(form: str, seed: int) -> None:
    router, up, down, b = draw_weights(4, 9, 7, seed)
    x = draw(30, 9, seed=seed + 9).abs()
    router[2] = -10.0  # with x above zero, never among the first two
    x = x[clear(x, router, 2)]
    down[2] = float("nan") if form == "torch" else 0.0
    with torch.no_grad():
        got = run(form, x, router, up, down, b, 2)
    # the fast backend does not compute its output, instead of weighting it with 0
    truth = formula(x, router, up, down.nan_to_num(0.0), b, 2)
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-5)


@EVERY_FORM
def test_no_tokens(form: str) -> None:
    with torch.no_grad():
        assert run(form, torch.empty(0, 9), *draw_weights(4, 9, 7, 1), 2).shape == (0, 9)


@EVERY_FORM
def test_gradients(form: str, seed: int) -> None:
    x = draw(40, 9, seed=seed + 9)
    weights = draw_weights(4, 9, 7, seed)
    x = x[clear(x, weights[0], 2)]
    assert_gradients(
        lambda *leaves: run(form, *leaves, 2),
        lambda *leaves: formula(*leaves, 2),
        x,
        *weights,
        seed=seed,
    )


@NEEDS_PACKING
@pytest.mark.parametrize("trained", ["x", "router", "up", "down", "bias"])
def test_packed_weights_are_used_only_without_gradients(trained: str, seed: int) -> None:
    t = dict(zip(("router", "up", "down", "bias"), draw_weights(4, 9, 7, seed), strict=True))
    t["x"] = draw(40, 9, seed=seed + 9)
    t["x"] = t["x"][clear(t["x"], t["router"], 2)]
    t[trained].requires_grad_()
    ops = ops_of("torch")
    router = ops.prepare(t["router"], None, "router")
    up = poisoned(ops.prepare(t["up"], None, "experts"))
    down = ops.prepare(t["down"], t["bias"], "experts")
    assert down.packed is not None
    assert len(down.packed) == 4
    with torch.no_grad():
        assert ops.moe(t["x"], router, up, down, 2).isnan().all()
    # the router and the shared bias are not packed with the experts
    if trained in ("x", "up", "down"):
        got = ops.moe(t["x"], router, up, down, 2)
        assert got.isfinite().all()
    got = run("torch", t["x"], t["router"], t["up"], t["down"], t["bias"], 2)
    truth = formula(t["x"], t["router"], t["up"], t["down"], t["bias"], 2)
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(got.sum(), t[trained])
    (wanted,) = torch.autograd.grad(truth.sum(), t[trained])
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


@NEEDS_PACKING
def test_the_router_works_in_fp32(seed: int) -> None:
    """Routes in bf16 use fp32 logits: a rounded logit could change the route."""
    router, up, down, b = draw_weights(4, 33, 7, seed, torch.bfloat16)
    router = router * 8  # logits so large that bf16 rounds them by a quarter
    weight = ops_of("torch", torch.bfloat16).prepare(router, None, "router")
    assert weight.packed is not None
    assert weight.packed[0].dtype == torch.float32
    x = draw(2000, 33, seed=seed + 9, dtype=torch.bfloat16)
    x = x[clear(x, router, 1)]
    rounded = F.linear(x, router).argmax(1) != shares(x, router).argmax(1)
    assert rounded.any(), "no token here would show the difference"
    with torch.no_grad():
        got = run("torch", x, router, up, down, b, 1)[rounded]
    truth = formula(x[rounded], router, up, down, b, 1)
    assert_within(got, truth, plain_torch(x[rounded], router, up, down, b, 1), torch.bfloat16)


@PACKED_DTYPES
@pytest.mark.parametrize(("hidden", "inner"), [(32, 64), (19, 37)])
@pytest.mark.all_threads
def test_a_row_has_the_same_bits_in_any_batch(
    dtype: torch.dtype, hidden: int, inner: int, seed: int
) -> None:
    weights = draw_weights(4, hidden, inner, seed, dtype)
    x = draw(333, hidden, seed=seed + 9, dtype=dtype)
    assert_rows_are_batch_invariant(lambda x: run("torch", x, *weights, 2), x)


@EVERY_FORM
def test_activations(form: str, seed: int) -> None:
    weights = draw_weights(4, 9, 7, seed)
    with torch.no_grad():
        for narrow, same in activations(seed + 2, 9):
            assert torch.equal(run(form, narrow, *weights, 2), run(form, same, *weights, 2))


X, ROUTER, UP, DOWN = (torch.ones(s) for s in ((5, 3), (4, 3), (4, 6, 3), (4, 3, 6)))
REFUSED = {
    "x has 2 columns, but the weight (4, 3) takes 3": (X[:, :2], UP, DOWN, 2),
    "x is on meta, but the weight is on cpu": (X.to("meta"), UP, DOWN, 2),
    "x is torch.float16, but the weight is torch.float32": (X.half(), UP, DOWN, 2),
    "up must be (4, 6, 3), not (3, 6, 3)": (X, UP[1:], DOWN, 2),
    "down must be (4, 3, 6), not (4, 6, 3)": (X, UP, UP, 2),
    "up is on meta, but must be on cpu": (X, UP.to("meta"), DOWN, 2),
    "down is on meta, but must be on cpu": (X, UP, DOWN.to("meta"), 2),
    "top_k must be 1 to 4, not 5": (X, UP, DOWN, 5),
    "top_k must be 1 to 4, not 0": (X, UP, DOWN, 0),
}


@EVERY_FORM
@pytest.mark.parametrize("message", REFUSED)
def test_refusals(form: str, message: str) -> None:
    x, up, down, k = REFUSED[message]
    with refuses(message):
        ops_of(form).moe(x, Weight(ROUTER), Weight(up), Weight(down), k)
