"""Linear layer in one kernel: GEMM, bias, and an epilogue while the result is in registers.

The epilogue adds the residual, or for `gelu_triton` applies the activation or its derivative. Where
the launch tables prefer the vendor's GEMM, its epilogue adds the bias, but a residual takes another
pass over memory: torch copies it into the result first (beta = 1), or adds it afterwards if there
is a bias, which rounds the result twice. So a block leaves the residual to LayerNorm there, which
adds it in fp32; see `adds_residual`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nomicbert_kernels import launch
from nomicbert_kernels import linear as reference
from nomicbert_kernels.custom_ops import autocast, linear_gradients, on_its_device, watched
from nomicbert_kernels.gemm_triton import (
    UNSCALED,
    Scales,
    add_bias,
    after_previous,
    by_rows,
    dense,
    gemm,
    grid,
    operands,
    scaled,
    store_rounded,
    store_tile,
    tile_at,
)
from nomicbert_kernels.tensors import Activation, Weight, plain_linear, unstrided


@triton.jit
def upper_tail(a):
    """Q(a) = erfc(a / sqrt 2) / 2 for 0 <= a <= 16: the normal distribution above a.

    Q falls like exp(-a^2 / 2), but log2 Q is nearly a parabola, so exp2 of a polynomial has a
    small relative error everywhere. erf takes about three times as many instructions, and 1 +
    erf(z) has no correct digit below z = -5.

    The polynomial was fitted to log2 Q in fp64 on [0, 6] by Lawson's iteration (weighted minimax)
    with weight max(max(a, 0.34) Q(a) / 0.17, 1 / 128): errors count as much as they change gelu,
    or its derivative where a is small. Bounds in fp32 for a <= 6: error of Q 2.6e-7 and 7e-5 Q;
    of a Q, which gelu needs, 2e-7. Above 6, where a Q < 6e-9, it falls on, to 0 at 16.
    """
    p = -4.215694389131386e-07 * a + 7.130754966055974e-06
    p = p * a + -1.422380046278704e-05
    p = p * a + -0.0006049201474525034
    p = p * a + 0.007754582911729813
    p = p * a + -0.053039662539958954
    p = p * a + -0.45900216698646545
    p = p * a + -1.1511342525482178
    p = p * a + -0.9999993443489075
    return tl.math.exp2(p)


@triton.jit
def finish(z, other, FINISH: tl.constexpr):
    """The epilogue: z + other, gelu(z), or other * gelu'(z)."""
    if FINISH == "add":
        z += other
    if FINISH == "gelu" or FINISH == "gelu_backward":
        # bounded, because 0 * inf would be NaN
        a = tl.minimum(tl.abs(z), 16.0)
        tail = upper_tail(a)
        if FINISH == "gelu":
            # NaN stays NaN
            z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * tail
        else:
            density = 0.3989422804014327 * tl.math.exp2(z * z * -0.7213475204444817)
            z = other * (tl.where(z < 0.0, tail, 1.0 - tail) + z * density)
    return z


@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    x,
    weight,
    scale_x,
    scale_w,
    bias,
    other,
    y,
    scale_y,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    stride_x,
    stride_w,
    stride_other,
    FINISH: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """y = finish(x Wᵀ + b, other), with y in e4m3 if scale_y is given.

    x, weight: (rows, K), (N, K), both fp32, fp16, bf16 or e4m3; row strides stride_x, stride_w
    scale_x, scale_w: (rows,) or (K / SHARED, rows), and (N,); fp32, for e4m3 operands, else None
    bias, other: (N,), and (rows, N) with row stride stride_other; any float dtype, or None
    y: (rows, N) contiguous; x, weight and y are descriptors if DESCRIPTORS
    scale_y: (N / BLOCK_N, rows) fp32, for y in e4m3, else None
    """
    after_previous(launch_pdl)
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    first, step = tl.program_id(0), tl.num_programs(0)
    for index in tl.range(first, tiles_m * tiles_n, step, flatten=FLATTEN):
        tile_m, tile_n = tile_at(index, tiles_m, tiles_n, GROUP)
        m, n = tile_m * BLOCK_M, tile_n * BLOCK_N
        z = gemm(
            x,
            weight,
            scale_x,
            m,
            n,
            rows,
            N,
            K,
            stride_x,
            stride_w,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            DESCRIPTORS,
            PRECISION,
            SHARED,
        )
        z = scaled(z, scale_x if SHARED == K else None, scale_w, m, n, rows, N, BLOCK_M, BLOCK_N)
        z = add_bias(z, bias, n, N, BLOCK_N)
        if other is not None:
            r = m + tl.arange(0, BLOCK_M)
            c = n + tl.arange(0, BLOCK_N)
            places = other + r.to(tl.int64)[:, None] * stride_other + c[None, :]
            mask = (r < rows)[:, None] & (c < N)[None, :]
            z = finish(z, tl.load(places, mask=mask, other=0.0).to(tl.float32), FINISH)
        else:
            z = finish(z, z, FINISH)
        if scale_y is not None:
            store_rounded(y, scale_y, z, m, n, rows, N, BLOCK_M, BLOCK_N, DESCRIPTORS)
        else:
            store_tile(y, z, m, n, rows, N, BLOCK_M, BLOCK_N, DESCRIPTORS)


@on_its_device
def launch_linear(
    settings: launch.Settings,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    kind: str,
    scales: Scales = UNSCALED,
) -> Tensor:
    """Launch: x (T, K), weight (N, K), bias (N,) or None, other (T, N) or None -> (T, N).

    kind: the epilogue: "none", "add", "gelu" or "gelu_backward".
    """
    x, weight = by_rows(x), by_rows(weight)
    rows, width = x.shape
    y = x.new_empty(rows, weight.shape[0], dtype=scales.dtype)
    if not y.numel():
        return y
    other = None if other is None else by_rows(other)
    a, w, out, keywords = operands(settings, x, weight, y)
    linear_kernel[grid(settings, rows, y.shape[1], x.device)](
        a,
        w,
        scales.x,
        scales.weight,
        dense(bias),
        other,
        out,
        scales.y,
        rows,
        y.shape[1],
        width,
        x.stride(0),
        weight.stride(0),
        0 if other is None else other.stride(0),
        kind,
        scales.shared or width,
        **keywords,
    )
    return y


def settings(x: Tensor, weight: Tensor, dtype: torch.dtype) -> launch.Settings:
    """Launch settings for x (T, K) and weight (N, K), computed in `dtype`."""
    sizes = {"rows": x.shape[0], "n": weight.shape[0], "k": weight.shape[1]}
    return launch.settings("linear", x.device, dtype, **sizes)


def adds_residual(x: Tensor | Activation, weight: Weight) -> bool:
    """Whether the kernel of `linear` adds a residual, and not another pass over memory.

    Not in a compiled graph, whatever the launch tables say: it would be tied to a number of rows.
    """
    if torch.compiler.is_compiling():
        return False
    data = x if isinstance(x, Tensor) else x.data
    kind, dtype = data.device.type, weight.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return not settings(data, weight.source, dtype).library


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x (T, K), weight (N, K), bias (N,) or None, residual (T, N) or None -> (T, N)."""
    s = settings(x, weight, x.dtype)
    if not s.library:
        kind = "none" if residual is None else "add"
        return launch_linear(s, x, weight, bias, residual, kind)
    if residual is None:
        return plain_linear(x, weight, bias)
    if bias is None:
        return torch.addmm(residual, unstrided(x), weight.T)
    return plain_linear(x, weight, bias).add_(residual)


@torch.library.custom_op("nomicbert::linear", mutates_args=())
def linear_op(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """`forward` as a custom op."""
    return forward(x, weight, bias, residual)


@linear_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save x and the weight."""
    ctx.save_for_backward(*inputs[:2])


def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias and residual."""
    x, weight = ctx.saved_tensors
    d_residual = dy if ctx.needs_input_grad[3] else None
    return *linear_gradients(dy, x, weight, ctx.needs_input_grad), d_residual


linear_op.register_autograd(backward, setup_context=save)


def linear(
    x: Tensor | Activation, weight: Weight, residual: Tensor | Activation | None = None
) -> Tensor:
    """See `nomicbert_kernels.linear`."""
    data, added = reference.check(x, weight, residual)
    data, source, bias = autocast(data, weight)
    run = linear_op if watched(data, source, bias, added) else forward
    if added is None or added.dtype == data.dtype:
        return run(data, source, bias, added)
    return run(data, source, bias, None) + added
