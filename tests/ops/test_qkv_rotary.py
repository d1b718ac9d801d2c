"""qkv_rotary: one projection, and rotation of queries and keys by position."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nomicbert_kernels import Rope, Weight
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

TABLE_ROWS = 40


def draw_rope(rows: int, rotary_dim: int, interleaved: bool, seed: int) -> Rope:
    """Random angles; with more tokens than table rows, tokens share them."""
    angle = draw(TABLE_ROWS, rotary_dim // 2, seed=seed, scale=2.0)
    row = torch.randint(TABLE_ROWS, (rows,), generator=torch.Generator().manual_seed(seed))
    return Rope(angle.cos(), angle.sin(), row.int(), rotary_dim, interleaved)


def formula(x: Tensor, w: Tensor, b: Tensor | None, rope: Rope | None, heads: int) -> Tensor:
    """Rotate pairs (a, b) as complex numbers a + ib, times cos + i sin."""
    y = torch.einsum("tk,nk->tn", x.double(), w.double())
    y = (y if b is None else y + b.double()).reshape(len(x), 3, heads, -1)
    if rope is None:
        return y
    turn = torch.complex(rope.cos.double(), rope.sin.double())[rope.row.long(), None, None]
    d = rope.rotary_dim
    qk, rest = y[:, :2, :, :d], y[:, :2, :, d:]
    if rope.interleaved:
        z = turn * torch.complex(qk[..., ::2], qk[..., 1::2])
        turned = torch.stack([z.real, z.imag], dim=-1).flatten(3)
    else:
        z = turn * torch.complex(*qk.chunk(2, dim=3))
        turned = torch.cat([z.real, z.imag], dim=3)
    return torch.cat([torch.cat([turned, rest], dim=3), y[:, 2:]], dim=1)


def plain_torch(x: Tensor, w: Tensor, b: Tensor | None, rope: Rope | None, heads: int) -> Tensor:
    """In the dtype of `x` throughout."""
    y = F.linear(x, w, b).view(len(x), 3, heads, -1)
    if rope is None:
        return y
    cos, sin = (t.to(x.dtype)[rope.row.long(), None, None] for t in (rope.cos, rope.sin))
    d, half = rope.rotary_dim, rope.rotary_dim // 2
    first, second = (
        (slice(0, d, 2), slice(1, d, 2)) if rope.interleaved else (slice(half), slice(half, d))
    )
    out = y.clone()
    p, q = y[:, :2, :, first], y[:, :2, :, second]
    out[:, :2, :, first] = p * cos - q * sin
    out[:, :2, :, second] = q * cos + p * sin
    return out


@st.composite
def shapes(make: st.DrawFn) -> tuple[int, int, int, int]:
    """heads, head size, rotary_dim (0 for no rotation), hidden size."""
    heads, size = make(st.integers(1, 4)), make(st.integers(1, 17))
    return heads, size, 2 * make(st.integers(0, size // 2)), make(st.integers(1, 40))


@EVERY_FORM
@ALL_DTYPES
@settings(max_examples=20)
@given(ROWS, shapes(), st.booleans(), st.booleans(), st.booleans(), SEEDS)
def test_bound(
    form: str,
    dtype: torch.dtype,
    rows: int,
    shape: tuple[int, int, int, int],
    interleaved: bool,
    with_bias: bool,
    apart: bool,
    seed: int,
) -> None:
    heads, size, rotary_dim, hidden = shape
    x = draw(rows, hidden, seed=seed, dtype=dtype)
    w = draw(3 * heads * size, hidden, seed=seed + 1, dtype=dtype)
    b = draw(3 * heads * size, seed=seed + 2, dtype=dtype) if with_bias else None
    rope = draw_rope(rows, rotary_dim, interleaved, seed) if rotary_dim else None
    truth, plain = formula(x, w, b, rope, heads), plain_torch(x, w, b, rope, heads)
    ops = ops_of(form, dtype)
    with torch.no_grad():
        got = ops.qkv_rotary(spread(x) if apart else x, ops.prepare(w, b, "linear"), rope, heads)
    assert_within(got, truth, plain, dtype)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [2, 6, 8])
def test_reference_is_the_formula(rotary_dim: int, interleaved: bool, seed: int) -> None:
    x = draw(90, 11, seed=seed, dtype=torch.float64)
    w, b = (draw(*s, seed=seed + 1, dtype=torch.float64) for s in ((3 * 2 * 8, 11), (3 * 2 * 8,)))
    rope = draw_rope(90, rotary_dim, interleaved, seed)
    rope = dataclasses.replace(rope, cos=rope.cos.double(), sin=rope.sin.double())
    got = ops_of("reference", torch.float64).qkv_rotary(x, Weight(w, b), rope, 2)
    assert_exact(got, formula(x, w, b, rope, 2))


@EVERY_FORM
def test_a_quarter_turn(form: str) -> None:
    """By hand: queries and keys (1, 2, 3, 4), two dimensions rotated, values unchanged."""
    x, w = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.eye(4).repeat(3, 1)
    ops = ops_of(form)
    rope = Rope(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, dtype=torch.int32), 2)
    with torch.no_grad():
        got = ops.qkv_rotary(x, ops.prepare(w, None, "linear"), rope, 1)
    assert got.tolist() == [[[[-2.0, 1.0, 3.0, 4.0]]] * 2 + [[[1.0, 2.0, 3.0, 4.0]]]]


@EVERY_FORM
@pytest.mark.parametrize("turned", [False, True])
def test_no_tokens(form: str, turned: bool) -> None:
    ops = ops_of(form)
    rope = draw_rope(0, 4, False, 1) if turned else None
    weight = ops.prepare(draw(24, 5, seed=1), None, "linear")
    with torch.no_grad():
        assert ops.qkv_rotary(torch.empty(0, 5), weight, rope, 2).shape == (0, 3, 2, 4)


@EVERY_FORM
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [0, 4, 6])
def test_gradients(form: str, rotary_dim: int, interleaved: bool, seed: int) -> None:
    ops = ops_of(form)
    rope = draw_rope(50, rotary_dim, interleaved, seed) if rotary_dim else None
    assert_gradients(
        lambda x, w, b: ops.qkv_rotary(x, ops.prepare(w, b, "linear"), rope, 2),
        lambda x, w, b: formula(x, w, b, rope, 2),
        *(draw(*s, seed=seed + i) for i, s in enumerate([(50, 13), (36, 13), (36,)])),
        seed=seed,
    )


@NEEDS_PACKING
@pytest.mark.parametrize("trained", ["x", "weight", "bias"])
def test_packed_weights_are_used_only_without_gradients(trained: str, seed: int) -> None:
    x, w, b = draw(5, 4, seed=seed), draw(12, 4, seed=seed + 1), draw(12, seed=seed + 2)
    {"x": x, "weight": w, "bias": b}[trained].requires_grad_()
    ops, rope = ops_of("torch"), draw_rope(5, 4, False, seed)
    weight = poisoned(ops.prepare(w, b, "linear"))
    with torch.no_grad():
        assert ops.qkv_rotary(x, weight, rope, 1).isnan().all()
    got = ops.qkv_rotary(x, weight, rope, 1)
    assert got.requires_grad
    torch.testing.assert_close(got.double(), formula(x, w, b, rope, 1), rtol=1e-5, atol=1e-5)


@PACKED_DTYPES
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.all_threads
def test_a_row_has_the_same_bits_in_any_batch(
    dtype: torch.dtype, interleaved: bool, seed: int
) -> None:
    ops = ops_of("torch", dtype)
    weight = ops.prepare(draw(3 * 2 * 9, 37, seed=seed, dtype=dtype), None, "linear")
    rope = draw_rope(333, 6, interleaved, seed)
    # the last column is the token's index, which selects its row of the table
    x = torch.cat([draw(333, 37, seed=seed + 2), torch.arange(333.0)[:, None]], dim=1)

    def op(x: Tensor) -> Tensor:
        mine = dataclasses.replace(rope, row=rope.row[x[:, 37].long()])
        return ops.qkv_rotary(x[:, :37].to(dtype), weight, mine, 2)

    assert_rows_are_batch_invariant(op, x)


@EVERY_FORM
def test_activations(form: str, seed: int) -> None:
    ops = ops_of(form)
    weight, rope = ops.prepare(draw(24, 9, seed=seed), None, "linear"), draw_rope(6, 4, False, seed)
    for narrow, same in activations(seed + 2, 9):
        wanted = ops.qkv_rotary(same, weight, rope, 2)
        assert torch.equal(ops.qkv_rotary(narrow, weight, rope, 2), wanted)


X, W, ROPE = torch.ones(5, 3), Weight(torch.ones(24, 3)), draw_rope(5, 4, False, 1)
REFUSED = {
    "x has 2 columns, but the weight (24, 3) takes 3": (X[:, :2], ROPE, 2),
    "x is on meta, but the weight is on cpu": (X.to("meta"), ROPE, 2),
    "x is torch.float16, but the weight is torch.float32": (X.half(), ROPE, 2),
    "24 rows of Wqkv do not divide into 3 x 5 heads": (X, ROPE, 5),
    "24 rows of Wqkv do not divide into 3 x 0 heads": (X, ROPE, 0),
    "rotary_dim must be even and at most the head size 2, not 4": (X, ROPE, 4),
    "rotary_dim must be even and at most the head size 4, not 3": (
        X, dataclasses.replace(ROPE, rotary_dim=3), 2),
    "rotary_dim must be even and at most the head size 4, not 0": (
        X, dataclasses.replace(ROPE, rotary_dim=0), 2),
    "rope.row must be (5,), not (4,)": (X, dataclasses.replace(ROPE, row=ROPE.row[:4]), 2),
    "rope.row is on meta": (X, dataclasses.replace(ROPE, row=ROPE.row.to("meta")), 2),
    "rope.cos must be (40, 2), not (40, 1)": (
        X, dataclasses.replace(ROPE, cos=ROPE.cos[:, :1]), 2),
    "rope.cos is on meta": (X, dataclasses.replace(ROPE, cos=ROPE.cos.to("meta")), 2),
    "rope.sin must be (40, 2), not (39, 2)": (X, dataclasses.replace(ROPE, sin=ROPE.sin[1:]), 2),
    "rope.sin is on meta": (X, dataclasses.replace(ROPE, sin=ROPE.sin.to("meta")), 2),
}  # fmt: skip


@EVERY_FORM
@pytest.mark.parametrize("message", REFUSED)
def test_refusals(form: str, message: str) -> None:
    x, rope, heads = REFUSED[message]
    with refuses(message):
        ops_of(form).qkv_rotary(x, W, rope, heads)
