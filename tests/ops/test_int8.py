"""Backend "int8": linear layers in int8, against the same rounding written out in fp64.

Integers are compared exactly. Random values so near a tie that fp32 and fp64 could round them
differently are set to zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nomicbert_kernels import Activation, Rope, linear_int8, values
from tests.ops.cases import ROWS, SEEDS, WIDTHS, draw, ops_of, spread

WHY_NOT = linear_int8.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

EPS = torch.finfo(torch.float32).eps
# The steepest slopes of silu and gelu.
SILU, GELU = 1.1, 1.13
HEADS, HEAD_DIM = 2, 4


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantised integers, half to even, and the scale of each row (rows, 1), in fp64."""
    x = x.double()
    step = x.abs().amax(dim=1, keepdim=True) / 127
    return torch.where(step > 0, x / step.clamp(min=1e-300), 0.0).round(), step


def avoid_ties(x: Tensor) -> Tensor:
    """The same values, zero where fp32 and fp64 could round their quotient differently."""
    place = x.double().abs() / (x.double().abs().amax(dim=1, keepdim=True) / 127)
    return x.masked_fill((place - place.floor() - 0.5).abs() < 1e-3, 0.0)


def times(x: Tensor, w: Tensor) -> Tensor:
    """The matmul of both after quantisation, in fp64."""
    (q, s), (p, c) = rounded(x), rounded(w)
    return s * torch.einsum("tk,nk->tn", q, p) * c[:, 0]


def rounding(x: Tensor, w: Tensor) -> Tensor:
    """Upper bound of the error of `times`: half a step in every factor."""
    x, w, s, c = x.double(), w.double(), rounded(x)[1], rounded(w)[1][:, 0]
    own = x.abs().sum(1, keepdim=True) * c / 2 + s / 2 * w.abs().sum(1)
    return own + x.shape[1] * s * c / 4


def size(p: Tensor, b: Tensor | None) -> Tensor:
    return p.abs() if b is None else p.abs() + b.double().abs()


def plus(p: Tensor, b: Tensor | None) -> Tensor:
    return p if b is None else p + b.double()


def inputs(
    rows: int, k: int, n: int, seed: int, bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, weight, bias; rows and channels of very different magnitudes."""
    x, w = (avoid_ties(draw(m, k, seed=seed + i)) for i, m in enumerate((rows, n)))
    x, w = (t * 2.0 ** torch.arange(len(t)).remainder(9)[:, None] for t in (x, w))
    return x, w / k**0.5, draw(n, seed=seed + 2, scale=30.0) if bias else None


def assert_near(got: Tensor, truth: Tensor, allowed: Tensor) -> None:
    assert got.dtype == torch.float32
    assert got.shape == truth.shape
    over = (got.double() - truth).abs() - allowed
    assert over.isfinite().all()
    assert over.max() <= 0, f"{over.max():.3g} beyond the bound"


def assert_steps(got: Tensor | Activation, truth: Tensor, error: Tensor) -> None:
    """A result in 8 bits is exact up to half a step, plus the fp32 error before rounding.

    Args:
        truth: (T, I) fp64 before rounding.
        error: of fp32, per element.
    """
    assert isinstance(got, Activation)
    assert got.scale is not None
    assert (got.data.dtype, got.scale.dtype) == (torch.uint8, torch.float32)
    assert got.data.shape == truth.shape
    levels = got.data.double() - 128
    largest, worst = truth.abs().amax(1), error.amax(1)
    assert ((got.scale.double() * 127 - largest).abs() <= worst + 2 * EPS * largest).all()
    assert (levels.abs().amax(1) == 127).logical_or(largest <= worst).all()
    scale = got.scale.double()[:, None]
    off = (levels * scale - truth).abs()
    # where x 127 / max lies within fp32's error of the middle, either neighbour will do
    over = off - (0.5 + 127 * 2 * EPS) * scale - error
    assert over.max() <= 0, f"{over.max():.3g} beyond half a step"


def swiglu_truth(p: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """silu(gate) * up of both GEMMs, and the possible fp32 error."""
    (up, gate), (up_size, gate_size) = plus(p, b).chunk(2, 1), size(p, b).chunk(2, 1)
    silu = gate * torch.sigmoid(gate)
    error = up_size * silu.abs() + SILU * up.abs() * gate_size + (up * silu).abs()
    return up * silu, 4 * EPS * error


def gelu_truth(p: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    z = plus(p, b)
    return 0.5 * z * (1 + torch.erf(z / 2**0.5)), 4 * EPS * (GELU * size(p, b) + z.abs())


def draw_rope(rows: int, rotary_dim: int, interleaved: bool, seed: int) -> Rope:
    angle = draw(40, rotary_dim // 2, seed=seed) * 3
    row = torch.randint(0, 40, (rows,), generator=torch.Generator().manual_seed(seed))
    return Rope(angle.cos(), angle.sin(), row.int(), rotary_dim, interleaved)


def turned(y: Tensor, rope: Rope) -> Tensor:
    """(T, 3, h, d) in fp64 with queries and keys rotated, as complex numbers."""
    turn = torch.complex(rope.cos.double(), rope.sin.double())[rope.row.long(), None, None]
    first, second = (
        (slice(0, rope.rotary_dim, 2), slice(1, rope.rotary_dim, 2))
        if rope.interleaved
        else (slice(rope.rotary_dim // 2), slice(rope.rotary_dim // 2, rope.rotary_dim))
    )
    out = y.clone()
    z = turn * torch.complex(y[:, :2, :, first], y[:, :2, :, second])
    out[:, :2, :, first], out[:, :2, :, second] = z.real, z.imag
    return out


BOOLS = st.booleans()


@settings(max_examples=40)
@given(ROWS, WIDTHS, WIDTHS, BOOLS, BOOLS, BOOLS, SEEDS)
def test_linear(
    rows: int, k: int, n: int, bias: bool, residual: bool, apart: bool, seed: int
) -> None:
    x, w, b = inputs(rows, k, n, seed, bias)
    r = draw(rows, n, seed=seed + 3, scale=9.0) if residual else None
    ops, p = ops_of("int8"), times(x, w)
    given_x, given_r = (spread(x), r if r is None else spread(r)) if apart else (x, r)
    with torch.no_grad():
        got = ops.linear(given_x, ops.prepare(w, b, "linear"), given_r)
    near = 4 * EPS * plus(size(p, b), None if r is None else r.abs())
    truth, exact = plus(plus(p, b), r), plus(plus(x.double() @ w.double().T, b), r)
    assert_near(got, truth, near)
    assert_near(got, exact, rounding(x, w) + near)


@settings(max_examples=30)
@given(ROWS, WIDTHS, st.sampled_from([0, 2, 4]), BOOLS, BOOLS, BOOLS, SEEDS)
def test_qkv_rotary(
    rows: int, k: int, rotary_dim: int, interleaved: bool, bias: bool, apart: bool, seed: int
) -> None:
    x, w, b = inputs(rows, k, 3 * HEADS * HEAD_DIM, seed, bias)
    rope = draw_rope(rows, rotary_dim, interleaved, seed) if rotary_dim else None
    ops, shape = ops_of("int8"), (rows, 3, HEADS, HEAD_DIM)
    with torch.no_grad():
        weight = ops.prepare(w, b, "linear")
        got = ops.qkv_rotary(spread(x) if apart else x, weight, rope, HEADS)
    p = times(x, w)
    truth, exact = (plus(y, b).view(shape) for y in (p, x.double() @ w.double().T))
    near, step = 4 * EPS * size(p, b).view(shape), rounding(x, w).view(shape)
    if rope is not None:
        truth, exact = turned(truth, rope), turned(exact, rope)
        # each element of a rotated pair depends on both; the rotation itself rounds three times
        near, step = ((t.amax(3, keepdim=True) * 2).expand(shape) for t in (near, step))
    assert_near(got, truth, near)
    assert_near(got, exact, near + step)


@settings(max_examples=40)
@given(ROWS, WIDTHS, WIDTHS, BOOLS, BOOLS, SEEDS)
def test_swiglu(rows: int, k: int, n: int, bias: bool, apart: bool, seed: int) -> None:
    x, w, b = inputs(rows, k, 2 * n, seed, bias)
    ops = ops_of("int8")
    with torch.no_grad():
        got = ops.swiglu(spread(x) if apart else x, ops.prepare(w, b, "gated"))
    assert_steps(got, *swiglu_truth(times(x, w), b))
    y = plus(x.double() @ w.double().T, b)
    off_up, off_gate = rounding(x, w).chunk(2, 1)
    (up, gate), (exact, error) = y.chunk(2, 1), swiglu_truth(x.double() @ w.double().T, b)
    moved = off_up * (gate * torch.sigmoid(gate)).abs() + SILU * (up.abs() + off_up) * off_gate
    assert isinstance(got, Activation)
    assert got.scale is not None
    assert_near(values(got), exact, moved + 2 * error + 0.51 * got.scale.double()[:, None])


@settings(max_examples=40)
@given(ROWS, WIDTHS, WIDTHS, BOOLS, BOOLS, SEEDS)
def test_gelu(rows: int, k: int, n: int, bias: bool, apart: bool, seed: int) -> None:
    x, w, b = inputs(rows, k, n, seed, bias)
    ops = ops_of("int8")
    with torch.no_grad():
        got = ops.gelu(spread(x) if apart else x, ops.prepare(w, b, "linear"))
    assert_steps(got, *gelu_truth(times(x, w), b))
    exact, error = gelu_truth(x.double() @ w.double().T, b)
    assert isinstance(got, Activation)
    assert got.scale is not None
    moved = GELU * rounding(x, w) + 2 * error
    assert_near(values(got), exact, moved + 0.51 * got.scale.double()[:, None])


def test_the_error_is_that_of_rounding(seed: int) -> None:
    """At real widths: a uniform error of half a step in every factor, and no more."""
    x, w = draw(64, 768, seed=seed), draw(512, 768, seed=seed + 1)
    ops = ops_of("int8")
    got = ops.linear(x, ops.prepare(w, None, "linear")).double()
    s, c = rounded(x)[1], rounded(w)[1][:, 0]
    spread_of = x.double().square().sum(1, keepdim=True) * c**2
    spread_of = (spread_of + s**2 * w.double().square().sum(1)) / 12
    sigmas = (got - x.double() @ w.double().T) / spread_of.sqrt()
    assert 0.95 < sigmas.square().mean().sqrt() < 1.05


Op = Callable[[Tensor | Activation], Tensor | Activation]


def every_op(hidden: int, inner: int, seed: int, bias: bool = False) -> dict[str, Op]:
    """The ops with int8 GEMMs, on random weights; the rotation does not depend on the row index."""
    ops = ops_of("int8")
    w, b = draw(2 * inner, hidden, seed=seed) / hidden**0.5, draw(2 * inner, seed=seed + 1)
    qkv = draw(24, hidden, seed=seed + 2)
    linear = ops.prepare(w, b if bias else None, "linear")
    gated = ops.prepare(w, b if bias else None, "gated")
    fused = ops.prepare(qkv, b[:24] if bias else None, "linear")
    one = Rope(torch.full((1, 2), 0.6), torch.full((1, 2), 0.8), torch.zeros(1).int(), 4)

    def turn(x: Tensor | Activation) -> Tensor:
        rows = len(x if isinstance(x, Tensor) else x.data)
        return ops.qkv_rotary(x, fused, dataclasses.replace(one, row=one.row.expand(rows)), HEADS)

    return {
        "linear": lambda x: ops.linear(x, linear),
        "swiglu": lambda x: ops.swiglu(x, gated),
        "gelu": lambda x: ops.gelu(x, linear),
        "qkv_rotary": turn,
    }


def parts(y: Tensor | Activation, rows: slice | list[int]) -> list[Tensor]:
    if isinstance(y, Tensor):
        return [y[rows]]
    assert y.scale is not None
    return [y.data[rows], y.scale[rows]]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


NAMES = ("linear", "swiglu", "gelu", "qkv_rotary")
EVERY_OP = pytest.mark.parametrize("name", NAMES)


@EVERY_OP
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("hidden", [37, 40])
@pytest.mark.all_threads
def test_a_row_has_the_same_bits_in_any_batch(
    name: str, threads: int, hidden: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 to 130 rows around chunks of 48, every third of them a thousand times larger."""
    torch.set_num_threads(threads)
    monkeypatch.setattr(linear_int8, "ROWS", 48)
    op = every_op(hidden, 19, seed, bias=True)[name]
    x = draw(140, hidden, seed=seed + 5)
    x[::3] *= 1000
    whole = op(x)
    alone = [parts(op(x[row : row + 1]), slice(None)) for row in range(140)]
    for row in range(140):
        assert same_bits(alone[row], parts(whole, slice(row, row + 1))), row
    for count in range(1, 131):
        start = (7 * count) % (141 - count)
        got = parts(op(x[start : start + count]), slice(None))
        assert same_bits(got, parts(whole, slice(start, start + count))), count


@EVERY_OP
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.all_threads
def test_a_row_has_the_same_bits_at_real_widths(name: str, threads: int, seed: int) -> None:
    torch.set_num_threads(threads)
    op = every_op(768, 1536, seed)[name]
    x = draw(530, 768, seed=seed + 5)
    x[::3] *= 1000
    whole = op(x)
    for start, count in ((0, 1), (1, 2), (3, 17), (100, 64), (5, 130), (0, 512), (17, 513)):
        got = parts(op(x[start : start + count]), slice(None))
        assert same_bits(got, parts(whole, slice(start, start + count))), count


@EVERY_OP
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hidden", [13, 16])
def test_rows_of_zeros(name: str, bias: bool, hidden: int, seed: int) -> None:
    """A row of zeros gives the result of the bias alone; a channel of zeros gives its bias."""
    op = every_op(hidden, 15, seed, bias)[name]
    x = draw(5, hidden, seed=seed + 5)
    x[[1, 4]] = 0.0
    got = op(x)
    plain, one = values(got)[[1, 4]], values(op(torch.zeros(1, hidden)))
    assert torch.equal(plain, one.expand(plain.shape))
    assert plain.ne(0).any() == bias
    if bias and name == "linear":
        assert torch.equal(plain[0], draw(30, seed=seed + 1))
    assert same_bits(parts(got, [0, 2, 3]), parts(op(x[[0, 2, 3]]), slice(None)))
    ops, w = ops_of("int8"), draw(6, hidden, seed=seed)
    w[2] = 0.0
    b = draw(6, seed=seed + 1)
    assert torch.equal(ops.linear(x, ops.prepare(w, b, "linear"))[:, 2], b[2].expand(5))


@EVERY_OP
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_stay_in_their_row(
    name: str, value: float, bias: bool, seed: int
) -> None:
    op = every_op(16, 15, seed, bias)[name]
    x = draw(6, 16, seed=seed + 5)
    x[2, 3] = value
    got = op(x)
    assert not values(got)[2].isfinite().any()
    rest = [0, 1, 3, 4, 5]
    assert values(got)[rest].isfinite().all()
    assert same_bits(parts(got, rest), parts(op(x[rest]), slice(None)))


@EVERY_OP
def test_no_rows(name: str) -> None:
    shapes = {"linear": (0, 30), "swiglu": (0, 15), "gelu": (0, 30), "qkv_rotary": (0, 3, 2, 4)}
    assert values(every_op(16, 15, 1)[name](torch.empty(0, 16))).shape == shapes[name]


@EVERY_OP
@pytest.mark.parametrize("hidden", [13, 16])
def test_activations(name: str, hidden: int, seed: int) -> None:
    """8 bits with scales are used unchanged, also in strided rows; other inputs are quantised."""
    op = every_op(hidden, 15, seed, bias=True)[name]
    x = draw(6, hidden, seed=seed + 5)
    wanted = parts(op(x), slice(None))
    assert same_bits(parts(op(Activation(x)), slice(None)), wanted)
    narrow = linear_int8.quantise(x)
    assert same_bits(parts(op(narrow), slice(None)), wanted)
    wide = torch.full((6, hidden + 3), 99, dtype=torch.uint8)
    wide[:, 1 : hidden + 1] = narrow.data
    assert same_bits(parts(op(Activation(wide[:, 1:-2], narrow.scale)), slice(None)), wanted)


def test_a_residual_in_int8(seed: int) -> None:
    ops = ops_of("int8")
    weight = ops.prepare(draw(9, 16, seed=seed), None, "linear")
    x, narrow = draw(6, 16, seed=seed + 1), linear_int8.quantise(draw(6, 9, seed=seed + 2))
    assert torch.equal(ops.linear(x, weight, narrow), ops.linear(x, weight) + values(narrow))
