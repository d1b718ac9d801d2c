"""Backend "fp8": its specification against fp64, and its kernels against the specification.

Rounding is written out from the format's definition, so that no cast of torch is trusted.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nomicbert_kernels import (
    Activation,
    BackendError,
    Rope,
    Weight,
    choose_ops,
    fp8,
    launch,
    values,
)
from nomicbert_kernels import backend as backends
from tests.ops.cases import INTERPRETS, SEEDS, assert_within, draw, ops_of, spread

if INTERPRETS:
    from tests.interpreter import fp8 as exact

    exact.install()
pytestmark = [  # numpy warns about large gates and rows of NaN
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
]
FORMS = ("specification", "triton") if INTERPRETS else ("specification",)
EVERY_FORM = pytest.mark.parametrize("form", FORMS)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ROWS = st.sampled_from([1, 17, 40])
# Around the 128 columns that share a scale, and below what a descriptor can hold.
INNER = st.sampled_from([1, 16, 127, 128, 129, 200, 272])
WIDTHS = st.sampled_from([1, 16, 37, 64, 100])
HEADS, SIZE = 2, 16
EPS = torch.finfo(torch.float32).eps


def ops(form: str) -> backends.Ops:
    return backends.FP8_REFERENCE if form == "specification" else backends.fp8_ops(CPU)


CPU = torch.device("cpu")


def e4m3(x: Tensor) -> Tensor:
    """Round fp64 to e4m3: 3 mantissa bits, steps of at least 2^-9, half to even."""
    exponent = torch.frexp(x.abs().clamp(min=2.0**-20))[1] - 1
    step = torch.exp2(exponent.clamp(min=-6).double() - 3)
    return ((x / step).round() * step).clamp(-448, 448)


def fitted(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row in e4m3, and its scale, in fp64."""
    x = x.double()
    step = x.abs().amax(1, keepdim=True) / 448
    return e4m3(torch.where(step > 0, x / step.clamp(min=1e-300), 0.0)), step


def avoid_ties(x: Tensor) -> Tensor:
    """The same values, zero where fp32 and fp64 could round their quotient differently."""
    size = x.double().abs() / x.double().abs().amax(1, keepdim=True).clamp(min=1e-300) * 448
    near = e4m3(size * (1 + 1e-5)) != e4m3(size * (1 - 1e-5))
    return x.masked_fill(near & (size < 440), 0.0)


def rounded(x: Tensor) -> Tensor:
    q, step = fitted(x)
    return q * step


def by_groups(x: Tensor) -> Tensor:
    return torch.cat([rounded(piece) for piece in x.split(128, 1)], 1)


def inputs(m: int, k: int, n: int, seed: int, dtype: torch.dtype, bias: bool) -> Any:
    """x, weight, bias; rows and channels of very different magnitudes."""
    x, w = (avoid_ties(draw(r, k, seed=seed + i, dtype=dtype)) for i, r in enumerate((m, n)))
    x, w = (t * 2.0 ** torch.arange(len(t)).remainder(5)[:, None].to(dtype) for t in (x, w))
    return x, w / 4, draw(n, seed=seed + 2, dtype=dtype, scale=9.0) if bias else None


def plus(p: Tensor, *others: Tensor | None) -> Tensor:
    for other in others:
        p = p if other is None else p + other.double()
    return p


def truth_of(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return plus(rounded(x) @ rounded(w).T, b)


def plain_of(x: Tensor, w: Tensor, b: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Torch's result for the quantised operands in fp32."""
    y = rounded(x).float() @ rounded(w).float().T
    return y if b is None else y + b.float()


def assert_codes(got: Tensor | Activation, truth: Tensor, error: Tensor, group: int) -> None:
    """An e4m3 result is exact up to half a step, plus the fp32 error before rounding."""
    assert isinstance(got, Activation)
    assert got.scale is not None
    assert (got.data.dtype, got.scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert got.data.shape == truth.shape
    pieces, errors = truth.split(group, 1), error.split(group, 1)
    scales = got.scale if got.scale.dim() == 2 else got.scale[:, None]
    assert scales.shape == (len(truth), len(pieces))
    for i, (data, piece, off) in enumerate(
        zip(got.data.float().double().split(group, 1), pieces, errors, strict=True)
    ):
        scale, largest = scales[:, i].double(), piece.abs().amax(1)
        assert ((scale * 448 - largest).abs() <= off.amax(1) + 2 * EPS * largest + 1e-30).all()
        scale = scale[:, None]
        step = torch.exp2((torch.frexp(data.abs())[1] - 1).clamp(min=-6).double() - 3)
        over = (data * scale - piece).abs() - (0.5 + 1e-4) * step * scale - off - 1e-36
        assert over.max() <= 0, f"{over.max():.3g} beyond half a step"


@EVERY_FORM
@settings(max_examples=6)
@given(ROWS, INNER, st.sampled_from(DTYPES), st.booleans(), SEEDS)
def test_rounding(form: str, m: int, k: int, dtype: torch.dtype, apart: bool, seed: int) -> None:
    """Bit for bit, independently of torch's own cast."""
    x = avoid_ties(draw(m, k, seed=seed, dtype=dtype))
    given_x = spread(x) if apart else x
    if form == "triton":
        from nomicbert_kernels import fp8_triton

        got = fp8_triton.round_rows(given_x)
    else:
        got = fp8.round_rows(given_x)
    q, step = fitted(x)
    assert torch.equal(got.data.float().double(), q)
    assert got.scale is not None
    torch.testing.assert_close(got.scale.double(), step[:, 0], rtol=2 * EPS, atol=1e-30)


@EVERY_FORM
@settings(max_examples=6)
@given(ROWS, INNER, WIDTHS, st.sampled_from(DTYPES), st.booleans(), st.booleans(), SEEDS)
def test_linear(
    form: str, m: int, k: int, n: int, dtype: torch.dtype, bias: bool, more: bool, seed: int
) -> None:
    x, w, b = inputs(m, k, n, seed, dtype, bias)
    r = draw(m, n, seed=seed + 3, dtype=dtype, scale=9.0) if more else None
    table = ops(form)
    with torch.no_grad():
        got = table.linear(spread(x), table.prepare(w, b, "linear"), r)
    truth = plus(truth_of(x, w, b), r)
    plain = plain_of(x, w, b, dtype) if r is None else plain_of(x, w, b, dtype) + r.float()
    assert_within(got, truth, plain.to(dtype), dtype)


@EVERY_FORM
@settings(max_examples=6)
@given(ROWS, INNER, WIDTHS, st.sampled_from(DTYPES), SEEDS)
def test_linear_of_groups(form: str, m: int, k: int, n: int, dtype: torch.dtype, seed: int) -> None:
    """Scales that change along a row by orders of magnitude; the residual is `wide`."""
    x, w, b = inputs(m, k, n, seed, dtype, True)
    h = fp8.round_groups(x.float() * 10.0 ** -(torch.arange(k) // 128).float())
    wide = draw(m, n, seed=seed + 4, dtype=dtype)
    narrow = fp8.round_rows(wide)
    table = ops(form)
    with torch.no_grad():
        weight = table.prepare(w, b, "linear")
        got = table.linear(h, weight, Activation(narrow.data, narrow.scale, wide))
    assert h.scale is not None
    numbers = h.data.float().double() * h.scale.double().repeat_interleave(128, 1)[:, :k]
    truth = plus(numbers @ rounded(w).T, b, wide)
    plain = numbers.float() @ rounded(w).float().T + b.float() + wide.float()
    assert_within(got, truth, plain.to(dtype), dtype)


def swiglu_truth(z: Tensor) -> Tensor:
    up, gate = z.chunk(2, 1)
    return up * gate * torch.sigmoid(gate)


def gelu_truth(z: Tensor) -> Tensor:
    return 0.5 * z * (1 + torch.erf(z / 2**0.5))


ACTIVATIONS: dict[str, tuple[int, str, Callable[[Tensor], Tensor]]] = {
    "swiglu": (2, "gated", swiglu_truth),
    "gelu": (1, "linear", gelu_truth),
}


@EVERY_FORM
@pytest.mark.parametrize("name", ACTIVATIONS)
@settings(max_examples=6)
@given(ROWS, WIDTHS, INNER, st.sampled_from(DTYPES), st.booleans(), SEEDS)
def test_activated(
    form: str, name: str, m: int, k: int, n: int, dtype: torch.dtype, bias: bool, seed: int
) -> None:
    factor, kind, formula = ACTIVATIONS[name]
    x, w, b = inputs(m, k, factor * n, seed, dtype, bias)
    table = ops(form)
    with torch.no_grad():
        got = getattr(table, name)(x, table.prepare(w, b, kind))
    z = truth_of(x, w, b)
    size = plus(rounded(x).abs() @ rounded(w).abs().T, None if b is None else b.abs())
    truth = formula(z)
    # bound for a product of two GEMM results with an error of a few eps each
    error = 8 * EPS * size
    if name == "swiglu":
        up, gate = size.chunk(2, 1)
        error = 16 * EPS * up * gate
    assert_codes(got, truth, error + 8 * EPS * truth.abs(), 128)


@pytest.mark.skipif("triton" not in FORMS, reason="triton is not interpreted here")
@pytest.mark.parametrize("flatten", [True, False])
def test_stacked_swiglu(flatten: bool, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One accumulator for up and gate gives the same codes as two, which the table's row has."""
    x, w, b = inputs(40, 64, 400, seed, torch.float16, True)
    table, shipped = ops("triton"), launch.settings

    def stacked(*args: Any, **sizes: int) -> launch.Settings:
        row = shipped(*args, **sizes)
        more = {"STACKED": True, "DESCRIPTORS": True, "FLATTEN": flatten}
        return dataclasses.replace(row, constants={**row.constants, **more})

    with torch.no_grad():
        wanted = table.swiglu(x, table.prepare(w, b, "gated"))
        monkeypatch.setattr(launch, "settings", stacked)
        got = table.swiglu(x, table.prepare(w, b, "gated"))
    assert torch.equal(got.data.view(torch.uint8), wanted.data.view(torch.uint8))
    assert torch.equal(got.scale, wanted.scale)


def turned(y: Tensor, rope: Rope) -> Tensor:
    """(T, 3, h, d) in fp64 with queries and keys rotated, as complex numbers."""
    turn = torch.complex(rope.cos.double(), rope.sin.double())[rope.row.long(), None, None]
    half = rope.rotary_dim // 2
    out = y.clone()
    z = turn * torch.complex(y[:, :2, :, :half], y[:, :2, :, half : 2 * half])
    out[:, :2, :, :half], out[:, :2, :, half : 2 * half] = z.real, z.imag
    return out


@EVERY_FORM
@pytest.mark.parametrize("rotary_dim", [0, 8, SIZE])
@settings(max_examples=6)
@given(ROWS, WIDTHS, st.sampled_from(DTYPES), st.booleans(), SEEDS)
def test_qkv_rotary(
    form: str, rotary_dim: int, m: int, k: int, dtype: torch.dtype, bias: bool, seed: int
) -> None:
    """Rotation in the epilogue, in a separate kernel, and none."""
    x, w, b = inputs(m, k, 3 * HEADS * SIZE, seed, dtype, bias)
    rope = None
    if rotary_dim:
        angle = draw(40, rotary_dim // 2, seed=seed) * 3
        rope = Rope(angle.cos(), angle.sin(), (torch.arange(m) * 7 % 40).int(), rotary_dim)
    table, shape = ops(form), (m, 3, HEADS, SIZE)
    with torch.no_grad():
        got = table.qkv_rotary(x, table.prepare(w, b, "linear"), rope, HEADS)
    truth, plain = truth_of(x, w, b).view(shape), plain_of(x, w, b, dtype).view(shape)
    if rope is not None:
        # outside the epilogue the result is rounded before it is rotated
        plain = turned(plain.to(dtype).double(), rope)
        truth = turned(truth, rope)
    assert_within(got, truth, plain.to(dtype), dtype)


@EVERY_FORM
@settings(max_examples=6)
@given(ROWS, st.sampled_from([16, 37, 100, 300]), st.sampled_from(DTYPES), st.booleans(), SEEDS)
def test_layer_norm(
    form: str, m: int, k: int, dtype: torch.dtype, residual: bool, seed: int
) -> None:
    x, g, b = (draw(*s, seed=seed + i, dtype=dtype) for i, s in enumerate(((m, k), (k,), (k,))))
    r = draw(m, k, seed=seed + 5, dtype=dtype) if residual else None
    with torch.no_grad():
        got = ops(form).layer_norm(x, g, b, 1e-5, r)
    z = plus(x.double(), r)
    standard = (z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    truth = standard * g.double() + b.double()
    error = 32 * EPS * (standard.abs().amax(1, keepdim=True) * g.double().abs() + b.double().abs())
    assert_codes(got, truth, error, k)
    assert got.wide is not None
    assert values(got) is got.wide
    assert_within(got.wide, truth, truth.to(dtype), dtype)


Op = Callable[[Tensor | Activation], Tensor | Activation]


def every_op(form: str, hidden: int, seed: int) -> dict[str, Op]:
    """Every op of x alone, on random weights; the rotation does not depend on the row index."""
    table = ops(form)
    w, b = draw(160, hidden, seed=seed) / hidden**0.5, draw(160, seed=seed + 1)
    linear, gated = (table.prepare(w, b, kind) for kind in ("linear", "gated"))
    fused = table.prepare(w[:96], b[:96], "linear")
    one = Rope(torch.full((1, 8), 0.6), torch.full((1, 8), 0.8), torch.zeros(1).int(), SIZE)

    def turn(x: Tensor | Activation) -> Tensor:
        rows = len(x if isinstance(x, Tensor) else x.data)
        rope = dataclasses.replace(one, row=one.row.expand(rows))
        return table.qkv_rotary(x, fused, rope, HEADS)

    return {
        "linear": lambda x: table.linear(x, linear),
        "gelu": lambda x: table.gelu(x, linear),
        "swiglu": lambda x: table.swiglu(x, gated),
        "qkv_rotary": turn,
        "layer_norm": lambda x: table.layer_norm(x, None, None, 1e-5),
    }


NAMES = ("linear", "gelu", "swiglu", "qkv_rotary", "layer_norm")
EVERY_OP = pytest.mark.parametrize("name", NAMES)


def parts(y: Tensor | Activation, rows: Any = slice(None)) -> list[Tensor]:
    """The bits of some rows: codes and scales, or plain values."""
    if isinstance(y, Tensor):
        return [y[rows]]
    assert y.scale is not None
    wide = [] if y.wide is None else [y.wide[rows]]
    return [y.data.view(torch.uint8)[rows], y.scale[rows], *wide]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.skipif(not INTERPRETS, reason="triton is not interpreted here: see tests/gpu")
@EVERY_OP
def test_a_row_has_the_same_bits_in_any_batch(name: str, seed: int) -> None:
    op = every_op("triton", 48, seed)[name]
    x = draw(70, 48, seed=seed + 5)
    x[::3] *= 1000
    with torch.no_grad():
        whole = op(x)
        for start, count in ((0, 1), (5, 1), (31, 2), (3, 17), (0, 64), (9, 33)):
            got = parts(op(x[start : start + count]))
            assert same_bits(got, parts(whole, slice(start, start + count))), (start, count)


@EVERY_FORM
@EVERY_OP
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # warnings of numpy
def test_non_finite_values_stay_in_their_row(form: str, name: str, value: float, seed: int) -> None:
    op = every_op(form, 48, seed)[name]
    x = draw(6, 48, seed=seed + 5)
    clean = op(x)
    x[2, 3] = value
    got, rest = op(x), [0, 1, 3, 4, 5]
    assert not values(got)[2].isfinite().all()
    assert same_bits(parts(got, rest), parts(clean, rest))
    follows = ops(form).prepare(draw(16, values(got)[0].numel(), seed=seed), None, "linear")
    if isinstance(got, Activation):
        assert not ops(form).linear(got, follows)[2].isfinite().any()


@EVERY_FORM
@EVERY_OP
def test_rows_of_zeros_and_no_rows(form: str, name: str, seed: int) -> None:
    op = every_op(form, 48, seed)[name]
    x = draw(5, 48, seed=seed + 5)
    x[[1, 4]] = 0.0
    got, zeros = op(x), op(torch.zeros(1, 48))
    assert values(got).isfinite().all()
    assert same_bits(parts(got, [1]), parts(zeros))
    assert values(op(torch.empty(0, 48))).shape == (0, *values(got).shape[1:])


@EVERY_FORM
@EVERY_OP
def test_gradients_and_autocast_use_the_parameters(form: str, name: str, seed: int) -> None:
    """The unquantised weight is used."""
    op, x = every_op(form, 48, seed)[name], draw(6, 48, seed=seed + 5)
    table = dataclasses.replace(ops(form), prepare=lambda w, b, kind: Weight(w, b))
    plain = {"specification": "reference", "triton": "triton"}[form]
    grown = x.clone().requires_grad_()
    w, b = draw(160, 48, seed=seed) / 48**0.5, draw(160, seed=seed + 1)
    got = op(grown)
    assert isinstance(got, Tensor)
    assert got.grad_fn is not None
    assert table.name == "fp8"
    if name in ("linear", "gelu"):
        wanted = getattr(ops_of(plain), name)(x, Weight(w, b))
        assert torch.equal(got.detach(), wanted)
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        assert isinstance(op(x), Tensor)


@pytest.mark.parametrize(
    ("kind", "shape"), [("router", (4, 16)), ("experts", (3, 8, 16)), ("linear", (0, 16))]
)
def test_kinds_that_are_not_quantised(kind: Any, shape: tuple[int, ...], seed: int) -> None:
    source = draw(*shape, seed=seed)
    weight = fp8.prepare(source, None, kind)
    assert weight.source is source
    assert (weight.packed, weight.scale) == (None, None)


def refused(why: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    message = f"backend 'fp8' cannot run here: {why}"
    with pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
        choose_ops(device, dtype, "fp8")


def test_it_is_refused_without_hardware_support(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    refused(
        "it needs a CUDA device, not meta; to interpret its kernels on a CPU (slow), "
        "set TRITON_INTERPRET=1 before starting Python",
        "meta",
    )
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    refused(
        "compute capability 8.6 does not support e4m3: 8.9 or later is needed",
        "cuda",
        torch.bfloat16,
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    refused("compute capability 7.5 is below 8.0", "cuda", torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (11, 0))
    monkeypatch.setattr(backends.launch, "architecture", lambda device: "sm_110")
    refused("the launch table for sm_110 has no fp8 rows", "cuda", torch.bfloat16)
    monkeypatch.setattr(torch.version, "hip", "6.0")
    refused("it uses NVIDIA's e4m3 format, which this GPU does not support", "cuda", torch.bfloat16)


@pytest.mark.skipif(not INTERPRETS, reason="triton is not interpreted here")
def test_it_is_used_on_request() -> None:
    for dtype in (torch.float32, torch.float16):
        table, why = choose_ops("cpu", dtype, "fp8")
        assert (table.name, why) == ("fp8", "requested")
        assert table.prepare is fp8.prepare
        for op in NAMES:
            assert getattr(table, op).__module__ == "nomicbert_kernels.fp8_triton"
        for op in ("embed", "attention", "moe", "pool"):
            assert getattr(table, op) is getattr(ops_of("triton"), op)
    refused(
        "triton's interpreter computes bfloat16 wrongly: use float32 or float16",
        dtype=torch.bfloat16,
    )
    assert choose_ops("cpu", torch.float32)[0].name == "torch"
