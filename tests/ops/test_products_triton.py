"""The GEMM kernels: launch settings, bits of a row, torch.library, autocast, devices.

Tests of all backends are in the tests of each op.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from nomicbert_kernels import Rope, Weight, launch
from nomicbert_kernels import gelu as gelu_reference
from nomicbert_kernels import linear as linear_reference
from nomicbert_kernels import moe as moe_reference
from nomicbert_kernels import qkv_rotary as qkv_reference
from nomicbert_kernels import swiglu as swiglu_reference
from tests.ops.cases import (
    INTERPRETS,
    assert_rows_are_batch_invariant,
    assert_within,
    draw,
    spread,
)

if not INTERPRETS:
    pytest.skip("triton is not interpreted here: see tests/gpu", allow_module_level=True)

from nomicbert_kernels import (
    attention_triton,
    custom_ops,
    embed_triton,
    gelu_triton,
    gemm_triton,
    layer_norm_triton,
    linear_triton,
    moe_triton,
    pool_triton,
    qkv_rotary_triton,
    swiglu_triton,
)

HEADS, SIZE, WIDTH = 2, 16, 40


def weight(rows: int, seed: int, dtype: torch.dtype = torch.float32) -> Weight:
    drawn = draw(rows, WIDTH, seed=seed, dtype=dtype, scale=0.3)
    return Weight(drawn, draw(rows, seed=seed + 1, dtype=dtype))


def exact(w: Weight) -> Weight:
    return Weight(w.source.double(), None if w.bias is None else w.bias.double())


def rope(tokens: int, dim: int = SIZE, interleaved: bool = False) -> Rope:
    angle = draw(50, dim // 2, seed=9) * 3
    row = torch.arange(tokens, dtype=torch.int32) * 7 % 50
    return Rope(angle.cos(), angle.sin(), row, dim, interleaved)


def residual(tokens: int, dtype: torch.dtype) -> Tensor:
    return draw(tokens, 72, seed=8, dtype=dtype)


# op -> (Triton, reference) functions of x (T, WIDTH)
Op = Callable[[Tensor], Tensor]
OPS: dict[str, tuple[Op, Op]] = {
    "linear": (
        lambda x: linear_triton.linear(x, weight(72, 1, x.dtype), residual(len(x), x.dtype)),
        lambda x: linear_reference.linear(
            x.double(), exact(weight(72, 1, x.dtype)), residual(len(x), x.dtype).double()
        ),
    ),
    "gelu": (
        lambda x: gelu_triton.gelu(x, weight(72, 1, x.dtype)),
        lambda x: gelu_reference.gelu(x.double(), exact(weight(72, 1, x.dtype))),
    ),
    "swiglu": (
        lambda x: swiglu_triton.swiglu(x, weight(144, 1, x.dtype)),
        lambda x: swiglu_reference.swiglu(x.double(), exact(weight(144, 1, x.dtype))),
    ),
    "qkv_rotary": (
        lambda x: qkv_rotary_triton.qkv_rotary(
            x, weight(3 * HEADS * SIZE, 1, x.dtype), rope(len(x)), HEADS
        ),
        lambda x: qkv_reference.qkv_rotary(
            x.double(), exact(weight(3 * HEADS * SIZE, 1, x.dtype)), rope(len(x)), HEADS
        ),
    ),
}


def launched(
    monkeypatch: pytest.MonkeyPatch, library: bool = False, programs: int = 1, **constants: Any
) -> None:
    """Override these settings in every lookup; the others stay those of the row."""
    chosen = launch.settings

    def settings(*args: Any, **sizes: int) -> launch.Settings:
        row = chosen(*args, **sizes)
        found = {**row.constants, **constants}
        return dataclasses.replace(row, constants=found, library=library, programs=programs)

    monkeypatch.setattr(launch, "settings", settings)


@pytest.mark.parametrize(
    ("flatten", "programs", "rows", "wanted"),
    [(True, 1, 700, 2), (True, 2, 700, 4), (True, 2, 64, 3), (False, 2, 700, 33)],
)
def test_persistent_programs_per_multiprocessor(
    flatten: bool, programs: int, rows: int, wanted: int
) -> None:
    """At most one per tile: 3 tiles of columns, on two multiprocessors."""
    blocks = {"BLOCK_M": 64, "BLOCK_N": 16, "FLATTEN": flatten}
    settings = launch.Settings(blocks, programs=programs)
    assert gemm_triton.grid(settings, rows, 40, torch.device("cpu")) == (wanted,)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    "settings",
    [
        {"DESCRIPTORS": True, "FLATTEN": True},
        {"DESCRIPTORS": True, "FLATTEN": True, "programs": 2},
        {"DESCRIPTORS": False, "FLATTEN": True},
        {"DESCRIPTORS": True, "FLATTEN": False},
        {"BLOCK_M": 16, "BLOCK_N": 128, "BLOCK_K": 16, "GROUP": 1},
        {"BLOCK_M": 64, "BLOCK_N": 16, "BLOCK_K": 64, "GROUP": 8},
        {"library": True},
    ],
    ids=lambda settings: "-".join(f"{name}{value}" for name, value in settings.items()),
)
def test_every_way_to_launch(
    op: str, dtype: torch.dtype, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, **settings)
    form, reference = OPS[op]
    x = draw(40, WIDTH, seed=3, dtype=dtype)
    truth = reference(x)
    # the rounding error of the exact result
    assert_within(form(x), truth, truth.to(dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("flatten", [True, False], ids=["persistent", "not persistent"])
@pytest.mark.parametrize(
    ("stacked", "tanh"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_forms_of_swiglu(
    dtype: torch.dtype, flatten: bool, stacked: bool, tanh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One accumulator or two, both formulas; inner 72 is no multiple of a tile's columns."""
    constants = {"STACKED": stacked, "TANH": tanh, "FLATTEN": flatten, "DESCRIPTORS": True}
    launched(monkeypatch, **constants, BLOCK_N=32)
    form, reference = OPS["swiglu"]
    x = draw(40, WIDTH, seed=3, dtype=dtype)
    truth = reference(x)
    assert_within(form(x), truth, truth.to(dtype), dtype)
    # rows of the weight apart, for descriptors with strides and for pointers
    plain = weight(144, 1, dtype)
    for apart in (8, 3):
        wide = torch.full((144, WIDTH + apart), float("nan"), dtype=dtype)
        strided = wide[:, :WIDTH].copy_(plain.source)
        got = swiglu_triton.swiglu(x, Weight(strided, plain.bias))
        assert_within(got, truth, truth.to(dtype), dtype)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("apart", [0, 8, 3])
def test_how_swiglu_is_launched(stacked: bool, apart: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight's descriptor has two parts if STACKED; TANH is for bf16 and e4m3 only."""
    found = []

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            return lambda *args, **keywords: found.append((args[1], keywords))

    monkeypatch.setattr(swiglu_triton, "swiglu_kernel", Kernel())
    launched(monkeypatch, STACKED=stacked, TANH=True, DESCRIPTORS=True, BLOCK_N=32, BLOCK_K=16)
    for dtype, tanh in ((torch.float32, False), (torch.float16, False), (torch.bfloat16, True)):
        w = torch.zeros(144, WIDTH + apart, dtype=dtype)[:, :WIDTH]
        swiglu_triton.swiglu(torch.zeros(5, WIDTH, dtype=dtype), Weight(w))
        given, keywords = found.pop()
        assert keywords["TANH"] is tanh
        assert keywords["DESCRIPTORS"] is (apart != 3)
        if apart == 3:
            assert given.data_ptr() == w.data_ptr()
        elif stacked:
            assert (list(given.shape), given.block_shape) == ([2, 72, WIDTH], [2, 32, 16])
        else:
            assert (list(given.shape), given.block_shape) == ([144, WIDTH], [32, 16])


# numpy warns where the kernel multiplies infinity by zero
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("library", [False, True])
def test_gates_of_any_size(tanh: bool, library: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, library, TANH=tanh)
    gate = torch.tensor([-1e30, -1e4, -90.0, -20.0, 0.0, 20.0, 1e4, 1e30, float("nan")])
    up_and_gate = torch.cat([torch.ones(9), gate])[:, None].bfloat16()
    got = swiglu_triton.swiglu(torch.ones(1, 1).bfloat16(), Weight(up_and_gate))[0]
    wanted = F.silu(gate.bfloat16().double()).bfloat16()
    torch.testing.assert_close(got, wanted, rtol=0.01, atol=1e-6, equal_nan=True)


@triton.jit
def tail_kernel(a, q, BLOCK: tl.constexpr):
    """q = upper_tail(a), BLOCK values per program."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(q + i, linear_triton.upper_tail(tl.load(a + i)))


def test_the_tail_of_the_normal_distribution() -> None:
    """The bounds in the docstring of `upper_tail`, against math.erfc in fp64."""
    a = torch.linspace(0, 16, 1 << 17)
    q = torch.empty_like(a)
    tail_kernel[(16,)](a, q, 1 << 13)
    truth = torch.tensor([math.erfc(v / math.sqrt(2)) / 2 for v in a.tolist()], dtype=torch.float64)
    error, inside = (q.double() - truth).abs(), a <= 6
    assert error[inside].max() <= 2.5e-7
    assert (a * error)[inside].max() <= 2e-7
    assert (error / truth)[inside].max() <= 7e-5
    assert (a * q)[~inside].max() <= 6e-9
    assert (q[1:] <= q[:-1])[~inside[1:]].all()
    assert q[-1] == 0


# numpy warns where the kernel subtracts infinity from itself
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gelu_of_any_size() -> None:
    """Also infinite and undefined values; fp32, with the error of torch's own form at most."""
    z = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([1e30, -1e30, math.inf, math.nan])])
    # a width of 1 gives z itself
    with torch.no_grad():
        got = gelu_triton.gelu(torch.ones(1, 1), Weight(z[:, None]))[0]
    truth = z.double() * torch.special.ndtr(z.double())
    torch.testing.assert_close(
        got[-4:], torch.tensor([1e30, 0.0, math.inf, math.nan]), equal_nan=True
    )
    off = (got.double() - truth)[:-4].abs()
    assert off.max() <= 5e-7
    assert off.max() <= 1.05 * (F.gelu(z).double() - truth)[:-4].abs().max()
    # below -5, 1 + erf has no correct digit
    low = (z > -6) & (z < -4)
    assert (off / truth[:-4].abs())[low[:-4]].max() <= 1e-4


@pytest.mark.parametrize("op", OPS)
def test_a_row_has_the_same_bits_in_any_batch(op: str) -> None:
    form, _ = OPS[op]
    if op == "linear":

        def form(x: Tensor) -> Tensor:
            return linear_triton.linear(x, weight(72, 1))

    if op == "qkv_rotary":  # a token keeps its angle, whatever its row index
        same = dataclasses.replace(rope(1), row=torch.full((400,), 3, dtype=torch.int32))

        def form(x: Tensor) -> Tensor:
            angles = dataclasses.replace(same, row=same.row[: len(x)])
            return qkv_rotary_triton.qkv_rotary(x, weight(3 * HEADS * SIZE, 1), angles, HEADS)

    assert_rows_are_batch_invariant(form, draw(200, WIDTH, seed=4))


def test_operands_that_are_not_describable() -> None:
    s = launch.settings("swiglu", torch.device("cpu"), torch.float32, rows=8, n=8, k=8)
    assert s["DESCRIPTORS"]
    even, odd = torch.empty(8, 8), torch.empty(8, 9)
    assert gemm_triton.operands(s, even, even, even)[3]["DESCRIPTORS"]
    # both parts of a weight at once
    parts = torch.empty(2, 8, 8)
    described = gemm_triton.operands(s, even, parts, even)[1]
    assert described.block_shape == [2, s["BLOCK_N"], s["BLOCK_K"]]
    for x in (odd, odd[:, 1:], odd[:, :8]):  # rows of 36 bytes are not 16-byte aligned
        *same, keywords = gemm_triton.operands(s, even, x, even)
        assert not keywords["DESCRIPTORS"]
        assert [a is b for a, b in zip(same, (even, x, even), strict=True)] == [True] * 3


def test_the_common_head_is_rotated_in_the_epilogue(monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(*_: Any) -> None:
        raise RuntimeError("rotated apart")

    monkeypatch.setattr(qkv_rotary_triton, "rotate_", apart)
    x, w = draw(5, WIDTH, seed=1), weight(3 * HEADS * SIZE, 2)
    qkv_rotary_triton.qkv_rotary(x, w, rope(5), HEADS)
    for angles in (rope(5, SIZE // 2), rope(5, SIZE, interleaved=True)):
        with pytest.raises(RuntimeError, match="rotated apart"):
            qkv_rotary_triton.qkv_rotary(x, w, angles, HEADS)
    with pytest.raises(RuntimeError, match="rotated apart"):  # 20 is not a power of two
        qkv_rotary_triton.qkv_rotary(x, weight(120, 2), rope(5, 20), HEADS)


def test_heads_wider_than_a_tile_are_rotated_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, BLOCK_N=64)
    rotated = []
    rotate = qkv_rotary_triton.rotate_
    monkeypatch.setattr(
        qkv_rotary_triton, "rotate_", lambda qkv, *rest: rotated.append(1) or rotate(qkv, *rest)
    )
    for size, apart in ((32, []), (64, []), (128, [1])):
        x, w, angles = draw(5, WIDTH, seed=1), weight(3 * size, 2), rope(5, size)
        truth = qkv_reference.qkv_rotary(x.double(), exact(w), angles, 1)
        got = qkv_rotary_triton.qkv_rotary(x, w, angles, 1)
        assert_within(got, truth, truth.float(), torch.float32)
        assert rotated == apart


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_values_are_not_rotated(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of values only, and tiles that hold keys as well: of 144 columns the last 48."""
    launched(monkeypatch, BLOCK_N=block)
    x, w, angles = draw(40, WIDTH, seed=1), weight(3 * 3 * SIZE, 2), rope(40)
    wanted = qkv_rotary_triton.qkv_rotary(x, w, angles, 3)
    nan = torch.full_like(angles.cos, float("nan"))
    broken = dataclasses.replace(angles, cos=nan, sin=nan)
    got = qkv_rotary_triton.qkv_rotary(x, w, broken, 3)
    assert got[:, :2].isnan().all()
    assert torch.equal(got[:, 2], wanted[:, 2])
    truth = qkv_reference.qkv_rotary(x.double(), exact(w), angles, 3)
    assert_within(wanted, truth, truth.float(), torch.float32)


@triton.jit
def tiles_kernel(seen, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Write tile row and column of each tile index."""
    row, column = gemm_triton.tile_at(tl.program_id(0), tiles_m, tiles_n, GROUP)
    tl.store(seen + tl.program_id(0), row * tiles_n + column)


@pytest.mark.parametrize(
    ("tiles_m", "tiles_n", "group"), [(1, 1, 8), (7, 3, 2), (5, 4, 8), (9, 1, 4)]
)
def test_every_tile_is_taken_once(tiles_m: int, tiles_n: int, group: int) -> None:
    seen = torch.full((tiles_m * tiles_n,), -1, dtype=torch.int32)
    tiles_kernel[(len(seen),)](seen, tiles_m, tiles_n, group)
    assert sorted(seen.tolist()) == list(range(len(seen)))
    # tiles of a group are numbered column by column, so the first programs share weight columns
    height = min(group, tiles_m)
    assert seen[:height].tolist() == [row * tiles_n for row in range(height)]


def leaf(*shape: int, seed: int) -> Tensor:
    return draw(*shape, seed=seed, scale=0.5).requires_grad_()


def registered() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    x, w, b = leaf(33, 24, seed=1), leaf(12, 24, seed=2), leaf(12, seed=3)
    angles = rope(33, 4)
    qkv = (angles.cos, angles.sin, angles.row)
    return {
        "linear": (linear_triton.linear_op, (x, w, b, leaf(33, 12, seed=4))),
        "linear-bare": (linear_triton.linear_op, (x, w, None, None)),
        "gelu": (gelu_triton.gelu_op, (x, w, b)),
        "gelu_backward": (
            gelu_triton.gelu_backward_op,
            (draw(33, 12, seed=4), x.detach(), w.detach(), None),
        ),
        "swiglu": (swiglu_triton.swiglu_op, (x, w, b)),
        "swiglu_backward": (
            swiglu_triton.swiglu_backward_op,
            (draw(33, 6, seed=4), draw(33, 12, seed=5)),
        ),
        "qkv_rotary": (qkv_rotary_triton.qkv_rotary_op, (x, w, b, *qkv, 1, False)),
        "qkv_rotary_backward": (
            qkv_rotary_triton.qkv_rotary_backward_op,
            (draw(33, 3, 1, 4, seed=5), *qkv, True),
        ),
        "moe": (
            moe_triton.moe_op,
            (*(draw(*s, seed=1) for s in ((9, 8), (4, 8), (4, 6, 8), (4, 8, 6), (8,))), 2),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", registered())
def test_opcheck(name: str) -> None:
    op, args = registered()[name]
    torch.library.opcheck(op, args)


@pytest.mark.parametrize("op", OPS)
def test_one_graph_for_any_number_of_tokens(op: str) -> None:
    """Compiled as one graph with a dynamic token dimension, forward and backward."""
    # inputs are made outside of `form`, because random draws would be traced
    if op in ("linear", "qkv_rotary"):
        other, angles = leaf(72, WIDTH, seed=5), rope(64)
        rows = {"linear": Weight(other), "qkv_rotary": Weight(leaf(96, WIDTH, seed=6))}

        def form(x: Tensor) -> Tensor:
            if op == "linear":
                return linear_triton.linear(x, rows[op])
            here = dataclasses.replace(angles, row=angles.row[: x.shape[0]])
            return qkv_rotary_triton.qkv_rotary(x, rows[op], here, HEADS)
    else:
        w = Weight(leaf(144, WIDTH, seed=6), leaf(144, seed=7))
        module = {"gelu": gelu_triton.gelu, "swiglu": swiglu_triton.swiglu}[op]

        def form(x: Tensor) -> Tensor:
            return module(x, w)

    torch.compiler.reset()
    compiled = torch.compile(form, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in (33, 5, 64):
            x = leaf(tokens, WIDTH, seed=tokens)
            got, wanted = compiled(x), form(x)
            upstream = draw(*wanted.shape, seed=1)
            (d_got,) = torch.autograd.grad(got, x, upstream)
            (d_wanted,) = torch.autograd.grad(wanted, x, upstream)
            assert torch.equal(got, wanted)
            assert torch.equal(d_got, d_wanted)
    torch.compiler.reset()


@pytest.mark.parametrize("op", ["linear", "gelu", "swiglu", "qkv_rotary"])
def test_autocast(op: str) -> None:
    """GEMMs run in autocast's dtype; an fp32 residual is added in fp32."""
    x, w = draw(20, WIDTH, seed=1), draw(96, WIDTH, seed=2, scale=0.3)
    calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "linear": lambda x, w: linear_triton.linear(x, Weight(w)),
        "gelu": lambda x, w: gelu_triton.gelu(x, Weight(w)),
        "swiglu": lambda x, w: swiglu_triton.swiglu(x, Weight(w)),
        "qkv_rotary": lambda x, w: qkv_rotary_triton.qkv_rotary(x, Weight(w), rope(20), HEADS),
    }
    wanted = calls[op](x.half(), w.half())
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(calls[op](x, w), wanted)
        if op == "linear":
            r = draw(20, 96, seed=3)
            got = linear_triton.linear(x, Weight(w), r)
            assert got.dtype == torch.float32
            assert torch.equal(got, wanted + r)


def test_launches_are_direct_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A custom op costs as much as a small kernel: without gradients the launch is direct."""

    def dispatched(*_: Any) -> None:
        raise RuntimeError("dispatched")

    for module in (linear_triton, gelu_triton, swiglu_triton, qkv_rotary_triton, moe_triton):
        name = module.__name__.rpartition(".")[2].removesuffix("_triton")
        monkeypatch.setattr(module, f"{name}_op", dispatched)
    x = draw(5, WIDTH, seed=1)
    for form, _ in OPS.values():
        form(x)
    w = weight(72, 1)
    w.source.requires_grad_()
    with torch.no_grad():
        linear_triton.linear(x, w)
    with pytest.raises(RuntimeError, match="dispatched"):
        linear_triton.linear(x, w)


def test_experts_without_tokens() -> None:
    """All tokens choose the same two of eight experts; also for a single token."""
    x = draw(40, WIDTH, seed=1).abs()
    router = torch.zeros(8, WIDTH)
    router[6], router[1] = 0.3, 0.1
    up, down = draw(8, 24, WIDTH, seed=2), draw(8, WIDTH, 24, seed=3, scale=0.2)
    weights = Weight(router), Weight(up), Weight(down, draw(WIDTH, seed=4))
    for rows in (40, 1):
        truth = moe_reference.moe(x[:rows].double(), *map(exact, weights), 2)
        plain = moe_reference.moe(x[:rows], *weights, 2)
        assert_within(moe_triton.moe(x[:rows], *weights, 2), truth, plain, torch.float32)


def test_gradients_of_experts_come_from_torch(caplog: pytest.LogCaptureFixture) -> None:
    moe_triton.say_training_is_slow.cache_clear()
    weights = [Weight(leaf(*s, seed=5)) for s in ((4, WIDTH), (4, 24, WIDTH), (4, WIDTH, 24))]
    x = draw(30, WIDTH, seed=1)
    with caplog.at_level("INFO", logger="nomicbert_kernels"):
        got = moe_triton.moe(x, *weights, 2)
        moe_triton.moe(x, *weights, 2)
    assert [r.getMessage() for r in caplog.records] == [
        "gradients of a mixture of experts are computed by torch, expert by expert"
    ]
    wanted = moe_reference.moe(x, *weights, 2)
    leaves = [w.source for w in weights]
    upstream = draw(30, WIDTH, seed=2)
    pairs = zip(
        torch.autograd.grad(got, leaves, upstream),
        torch.autograd.grad(wanted, leaves, upstream),
        strict=True,
    )
    for a, b in pairs:
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # warnings of numpy
def test_a_non_finite_token_stays_non_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN has no maximum, and the tile has padding experts: the result is NaN, in bounds."""
    empty = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: empty(*a, **k).fill_(7.0))
    weights = [Weight(draw(*s, seed=5)) for s in ((3, WIDTH), (3, 24, WIDTH), (3, WIDTH, 24))]
    x = draw(6, WIDTH, seed=1)
    clean = moe_triton.moe(x, *weights, 2)
    x[2, 5], x[4, 0] = float("nan"), float("inf")
    got = moe_triton.moe(x, *weights, 2)
    assert got[[2, 4]].isnan().all()
    assert torch.equal(got[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


@pytest.mark.parametrize("op", ["linear", "gelu", "swiglu", "qkv_rotary", "moe"])
def test_a_bias_of_any_stride(op: str) -> None:
    x, w = draw(9, WIDTH, seed=1), draw(96, WIDTH, seed=2)
    experts = Weight(draw(3, WIDTH, seed=3)), Weight(draw(3, 24, WIDTH, seed=4))
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "linear": lambda b: linear_triton.linear(x, Weight(w, b)),
        "gelu": lambda b: gelu_triton.gelu(x, Weight(w, b)),
        "swiglu": lambda b: swiglu_triton.swiglu(x, Weight(w, b)),
        "qkv_rotary": lambda b: qkv_rotary_triton.qkv_rotary(x, Weight(w, b), rope(9), HEADS),
        "moe": lambda b: moe_triton.moe(
            x, *experts, Weight(draw(3, WIDTH, 24, seed=5), b[:WIDTH]), 2
        ),
    }
    column = draw(96, 3, seed=6)[:, 1]
    one = torch.tensor([2.0]).expand(96)
    for bias in (column, one):
        assert torch.equal(
            calls[op](bias), calls[op](bias.clone(memory_format=torch.contiguous_format))
        )


def test_rows_that_are_not_describable() -> None:
    assert gemm_triton.describable(torch.empty(4, 8))
    for x in (
        torch.empty(1, 8).expand(4, 8),
        torch.empty(80).as_strided((9, 64), (2, 1)),
        torch.empty(4, 0),
    ):
        assert not gemm_triton.describable(x)


# torch's forward mode itself uses torch.jit.script
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_is_refused() -> None:
    x, w = draw(5, WIDTH, seed=1), weight(72, 1)
    with torch.autograd.forward_ad.dual_level():
        linear_triton.linear(x, w)  # no tangents
        dual = torch.autograd.forward_ad.make_dual(x, draw(5, WIDTH, seed=2))
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives: use backend"):
            linear_triton.linear(dual, w)


class Seen(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the names of dispatched ops."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_launch() -> None:
    with Seen() as seen:
        linear_triton.linear(draw(5, WIDTH, seed=1), weight(72, 1))
    assert "nomicbert::linear" in seen.names


class OnSecond(Tensor):
    """A tensor that reports the second GPU as its device."""

    device = torch.device("cuda", 1)


@pytest.mark.parametrize(("current", "entered"), [(0, [1]), (1, [])])
def test_a_launch_goes_to_the_gpu_of_its_tensors(
    current: int, entered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    class Device:
        def __init__(self, device: torch.device) -> None:
            found.append(device.index)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: Any) -> None: ...

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", Device)
    there = torch.empty(2).as_subclass(OnSecond)
    assert custom_ops.on_its_device(lambda *args, name: (len(args), name))(None, there, name=3) == (
        2,
        3,
    )
    assert found == entered


@pytest.mark.parametrize("module", [linear_triton, gelu_triton, swiglu_triton, qkv_rotary_triton,
                                    moe_triton, attention_triton, layer_norm_triton, embed_triton,
                                    pool_triton])  # fmt: skip
def test_every_launch_is_guarded(module: Any) -> None:
    """Every function that launches a kernel sets the device, or only guarded functions call it."""
    source = inspect.getsource(module)
    tree = ast.parse(source)
    functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}
    launching = {
        name
        for name, f in functions.items()
        if not any("triton.jit" in ast.unparse(d) for d in f.decorator_list)
        and re.search(r"_kernel\[", ast.unparse(f))
    }
    guarded = {
        name
        for name, f in functions.items()
        if any(ast.unparse(d) == "on_its_device" for d in f.decorator_list)
    }
    for name in launching - guarded:  # then all its callers must be guarded
        callers = {n for n, f in functions.items() if n != name and f"{name}(" in ast.unparse(f)}
        assert callers, name
        assert callers <= guarded, (name, callers)
    assert launching or module is gelu_triton


def test_library_and_kernel_agree_on_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor's GEMM and the kernel give the same derivatives."""
    x, w, b = leaf(20, WIDTH, seed=1), leaf(72, WIDTH, seed=2), leaf(72, seed=3)
    upstream = draw(20, 72, seed=4)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(gelu_triton.gelu(x, Weight(w, b)), [x, w, b], upstream)

    ours = gradients()
    launched(monkeypatch, library=True)
    for a, c in zip(ours, gradients(), strict=True):
        assert (a - c).abs().max() <= 2e-6 * c.abs().max()
    assert torch.equal(gelu_triton.gelu(x, Weight(w, b)), F.gelu(F.linear(x, w, b)))


@pytest.mark.parametrize("op", ["linear", "linear-residual", "gelu", "swiglu", "qkv_rotary"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_the_library_reads_only_the_rows(
    op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of an odd width with NaN between them, forward and backward: see `plain_linear`."""
    launched(monkeypatch, library=True)
    rows, k, n = 40, 37, {"swiglu": 82, "qkv_rotary": 54}.get(op, 41)
    shape = (rows, 3, 1, 18) if op == "qkv_rotary" else (rows, 41)
    x, w = draw(rows, k, seed=1, dtype=dtype), draw(n, k, seed=2, dtype=dtype)
    r, upstream = draw(rows, 41, seed=3, dtype=dtype), draw(*shape, seed=4, dtype=dtype)
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "linear": lambda x: linear_triton.linear(x, Weight(w)),
        "linear-residual": lambda x: linear_triton.linear(x, Weight(w), r),
        "gelu": lambda x: gelu_triton.gelu(x, Weight(w)),
        "swiglu": lambda x: swiglu_triton.swiglu(x, Weight(w)),
        "qkv_rotary": lambda x: qkv_rotary_triton.qkv_rotary(x, Weight(w), rope(rows, 18), 1),
    }
    found = []
    for change in (lambda t: t, spread):
        leaf = change(x).requires_grad_()
        y = calls[op](leaf)
        found.append((y.detach(), *torch.autograd.grad(y, leaf, change(upstream))))
    for apart, dense in zip(found[1], found[0], strict=True):
        assert dense.isfinite().all()
        assert torch.equal(apart, dense)
