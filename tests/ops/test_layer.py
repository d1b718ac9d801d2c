"""Ops.layer: a whole layer, against the reference in fp64, and with the bits of the single ops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nomicbert_kernels import LayerWeights, Norm, Ops, Rope, Weight, layer, linear_int8, values
from nomicbert_kernels.linear_torch import onednn_packs
from tests.ops.cases import LENGTHS, NEEDS_PACKING, SEEDS, draw, offsets_of, ops_of

WHY_NOT = linear_int8.why_not()
HEADS, SIZE, INNER = 2, 16, 40
WIDTH = HEADS * SIZE
# Of fp32 values of up to 5, after two LayerNorms: ten times the largest error of 500 cases.
BOUND = 2e-5
FORMS = [
    *(
        pytest.param(
            "torch", dtype, marks=pytest.mark.skipif(not onednn_packs(dtype), reason="not packed")
        )
        for dtype in (torch.float32, torch.bfloat16)
    ),
    pytest.param(
        "int8",
        torch.float32,
        marks=pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    ),
]


def weights_of(ops: Ops, gated: bool, bias: bool, seed: int, dtype: torch.dtype) -> LayerWeights:
    def linear(n: int, k: int, place: int, kind: str = "linear") -> Weight:
        drawn = draw(n, k, seed=seed + place, dtype=dtype) / k**0.5
        return ops.prepare(drawn, draw(n, seed=seed + 9, dtype=dtype) if bias else None, kind)

    def norm(place: int) -> Norm:
        weight = 1 + 0.3 * draw(WIDTH, seed=seed + place, dtype=dtype)
        return Norm(weight, draw(WIDTH, seed=seed + place + 1, dtype=dtype), 1e-5)

    up = linear(2 * INNER, WIDTH, 2, "gated") if gated else linear(INNER, WIDTH, 2)
    parts = linear(3 * WIDTH, WIDTH, 0), linear(WIDTH, WIDTH, 1), linear(WIDTH, INNER, 3)
    return LayerWeights(
        HEADS, SIZE**-0.5, parts[0], parts[1], norm(4), up, parts[2], norm(6), gated
    )


def as_fp64(weights: LayerWeights) -> LayerWeights:
    def wide(weight: Weight) -> Weight:
        bias = None if weight.bias is None else weight.bias.double()
        return Weight(weight.source.double(), bias)

    norms = [
        Norm(n.weight.double(), n.bias.double(), n.eps)
        for n in (weights.attention_norm, weights.mlp_norm)
    ]
    qkv, out, up, down = map(wide, (weights.qkv, weights.out, weights.up, weights.down))
    return LayerWeights(HEADS, weights.scale, qkv, out, norms[0], up, down, norms[1], weights.gated)


def rope_of(tokens: int, seed: int) -> Rope:
    angle = draw(tokens, SIZE // 2, seed=seed)
    return Rope(angle.cos(), angle.sin(), torch.arange(tokens, dtype=torch.int32), SIZE)


@NEEDS_PACKING
@given(
    lengths=LENGTHS, gated=st.booleans(), bias=st.booleans(), turned=st.booleans(),
    first=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_against_the_reference(
    lengths: list[int], gated: bool, bias: bool, turned: bool, first: bool, seed: int
) -> None:
    lengths = [n for n in lengths if n] or [1]
    ops, tokens, offsets = ops_of("torch"), sum(lengths), offsets_of(lengths)
    weights = weights_of(ops, gated, bias, seed, torch.float32)
    x, rope = draw(tokens, WIDTH, seed=seed + 20), rope_of(tokens, seed + 21) if turned else None
    plan = ops.plan(lengths, HEADS, SIZE, x.dtype)
    rows = offsets[:-1].long() if first else None
    assert ops.layer is not None
    with torch.no_grad():
        found = values(ops.layer(x, weights, offsets, plan, rope, rows))
        # the angles stay in fp32, as everywhere
        truth = values(layer.layer(x.double(), as_fp64(weights), offsets, plan, rope, rows))
    assert found.shape == truth.shape
    assert (found - truth).abs().max() < BOUND


@pytest.mark.parametrize(("form", "dtype"), FORMS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_bits_of_the_ops(
    form: str,
    dtype: torch.dtype,
    gated: bool,
    bias: bool,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where int8 takes many turns."""
    monkeypatch.setattr(linear_int8, "ROWS", 48)
    ops, lengths = ops_of(form, dtype), [1, 33, 33, 2, 130]
    weights = weights_of(ops, gated, bias, seed, dtype)
    offsets, tokens = offsets_of(lengths), sum(lengths)
    plan, rope = ops.plan(lengths, HEADS, SIZE, dtype), rope_of(tokens, seed + 21)
    x = draw(tokens, WIDTH, seed=seed + 20, dtype=dtype)
    assert ops.layer is not None
    with torch.no_grad():
        found = ops.layer(x, weights, offsets, plan, rope)
        z = ops.attention(ops.qkv_rotary(x, weights.qkv, rope, HEADS), offsets, plan, weights.scale)
        h = values(ops.layer_norm(ops.linear(z, weights.out, x), *weights.attention_norm))
        inner = ops.swiglu(h, weights.up) if gated else ops.gelu(h, weights.up)
        wanted = ops.layer_norm(ops.linear(inner, weights.down, h), *weights.mlp_norm)
        again = ops.layer(found, weights, offsets, plan, rope)
        also = ops.layer(values(found), weights, offsets, plan, rope)
    assert torch.equal(values(found), values(wanted))
    assert torch.equal(values(again), values(also))  # from 8 bits, and from fp32
