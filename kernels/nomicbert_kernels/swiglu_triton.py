"""SwiGLU in one kernel: both GEMMs and the gate, so that only the result is written.

A program holds up and gate of one tile. This saves writing and reading 2 I elements per token.
Where the launch tables prefer the vendor's GEMM, a small kernel applies the gate to its result.

With STACKED, the tiles of both weights are one operand, and up and gate are the halves of a single
accumulator. On Hopper that is one wide wgmma per step, which reads less shared memory than two. And
with two accumulators in a flattened loop, ptxas waits for every wgmma before it issues the next.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nomicbert_kernels import launch
from nomicbert_kernels import swiglu as reference
from nomicbert_kernels.custom_ops import autocast, linear_gradients, on_its_device, watched
from nomicbert_kernels.gemm_triton import (
    INTERPRETED,
    UNSCALED,
    Scales,
    add_bias,
    after_previous,
    by_rows,
    dense,
    grid,
    load_block,
    operands,
    scaled,
    store_rounded,
    store_tile,
    tile_at,
)
from nomicbert_kernels.tensors import Activation, Weight, plain_linear

# Columns per program of gate_kernel.
BLOCK = 1024
# Result dtypes that may have TANH.
ROUGH = (torch.bfloat16, torch.float8_e4m3fn)
# The interpreter has no inline assembly.
ASSEMBLY = tl.constexpr(not INTERPRETED)


@triton.jit
def gated(up, gate, TANH: tl.constexpr):
    """up * silu(gate) in fp32.

    silu(z) = z / (1 + exp(-z)), with the reciprocal as the square of rsqrt: that is cheaper than a
    division, and correct to a few ulp.

    With TANH, silu(z) = z / 2 (1 + tanh(z / 2)), with half as many instructions of the special
    function units. Its relative error of up to 2^-11 becomes up to 2.5e-4 of |up * gate|: less
    than bf16 rounds off where the gate is positive, and more than the result itself from gates
    below -8 on. Source: PTX ISA, "tanh".
    """
    if TANH:
        half = 0.5 * gate
        if ASSEMBLY:
            tanh = tl.inline_asm_elementwise(
                "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
            )
        else:
            tanh = 2.0 * tl.sigmoid(gate) - 1.0
        silu = half * tanh + half
    else:
        root = tl.math.rsqrt(1.0 + tl.math.exp2(gate * -1.4426950408889634))
        silu = gate * (root * root)
    return up * silu


@triton.jit
def halves(
    x,
    weight,
    row,
    column,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """up and gate of the tile at (row, column), from descriptors of x and of weight (2, N, K)."""
    both = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        a = x.load([row, k])
        b = weight.load([0, column, k]).reshape(2 * BLOCK_N, BLOCK_K)
        both = tl.dot(a, b.T, both, input_precision=PRECISION)
    # on sm_90 a warp has whole rows, if they are at least 16 per warp: then this moves no data
    return both.reshape(BLOCK_M, 2, BLOCK_N).permute(0, 2, 1).split()


@triton.jit
def pair(
    x,
    weight,
    row,
    column,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    stride_x,
    stride_w,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """up and gate of the tile at (row, column) in two accumulators; weight is (2 N, K)."""
    even: tl.constexpr = K % BLOCK_K == 0
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        a = load_block(x, row, k, rows, K, stride_x, BLOCK_M, BLOCK_K, even, DESCRIPTORS)
        b = load_block(weight, column, k, 2 * N, K, stride_w, BLOCK_N, BLOCK_K, even, DESCRIPTORS)
        c = load_block(
            weight, N + column, k, 2 * N, K, stride_w, BLOCK_N, BLOCK_K, even, DESCRIPTORS
        )
        up = tl.dot(a, b.T, up, input_precision=PRECISION)
        gate = tl.dot(a, c.T, gate, input_precision=PRECISION)
    return up, gate


@triton.jit(do_not_specialize=["rows"])
def swiglu_kernel(
    x,
    weight,
    scale_x,
    scale_w,
    bias,
    y,
    scale_y,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    stride_x,
    stride_w,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr,
    launch_pdl: tl.constexpr,
    STACKED: tl.constexpr = False,
    TANH: tl.constexpr = False,
):
    """y = up * silu(gate), with y in e4m3 if scale_y is given.

    x, scale_x, y, scale_y: as in `linear_triton.linear_kernel`, with SHARED = K
    weight, scale_w, bias: (2 N, K), (2 N,) and (2 N,), as there; the rows of up come first. With
        STACKED, a descriptor of the weight is one of (2, N, K). Pointers ignore STACKED.
    TANH: see `gated`
    """
    after_previous(launch_pdl)
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    stacked: tl.constexpr = STACKED and DESCRIPTORS
    first, step = tl.program_id(0), tl.num_programs(0)
    for index in tl.range(first, tiles_m * tiles_n, step, flatten=FLATTEN and stacked):
        tile_m, tile_n = tile_at(index, tiles_m, tiles_n, GROUP)
        m, n = tile_m * BLOCK_M, tile_n * BLOCK_N
        if stacked:
            up, gate = halves(x, weight, m, n, K, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
        else:
            up, gate = pair(
                x,
                weight,
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
            )
        up = scaled(up, scale_x, scale_w, m, n, rows, N, BLOCK_M, BLOCK_N)
        to_gate = scale_w + N if scale_w is not None else None
        gate = scaled(gate, scale_x, to_gate, m, n, rows, N, BLOCK_M, BLOCK_N)
        if bias is not None:
            up = add_bias(up, bias, n, N, BLOCK_N)
            gate = add_bias(gate, bias + N, n, N, BLOCK_N)
        h = gated(up, gate, TANH)
        if scale_y is not None:
            store_rounded(y, scale_y, h, m, n, rows, N, BLOCK_M, BLOCK_N, DESCRIPTORS)
        else:
            store_tile(y, h, m, n, rows, N, BLOCK_M, BLOCK_N, DESCRIPTORS)


@triton.jit
def gate_kernel(z, y, N: tl.constexpr, BLOCK: tl.constexpr, launch_pdl: tl.constexpr):
    """y (rows, N) = up * silu(gate) of z (rows, 2 N), contiguous; BLOCK columns of a row each."""
    after_previous(launch_pdl)
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    up = tl.load(z + row * 2 * N + c, mask=c < N, other=0.0).to(tl.float32)
    gate = tl.load(z + row * 2 * N + N + c, mask=c < N, other=0.0).to(tl.float32)
    tl.store(y + row * N + c, gated(up, gate, False).to(y.dtype.element_ty), mask=c < N)


@triton.jit
def gate_backward_kernel(
    dy, stride_dy, z, dz, N: tl.constexpr, BLOCK: tl.constexpr, launch_pdl: tl.constexpr
):
    """dz (rows, 2 N) from dy (rows, N) and z (rows, 2 N), all float; dz and z contiguous."""
    after_previous(launch_pdl)
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    up = tl.load(z + row * 2 * N + c, mask=c < N, other=0.0).to(tl.float32)
    gate = tl.load(z + row * 2 * N + N + c, mask=c < N, other=0.0).to(tl.float32)
    dh = tl.load(dy + row * stride_dy + c, mask=c < N, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    d_up = dh * gate * s
    d_gate = dh * up * s * (1.0 + gate * (1.0 - s))
    tl.store(dz + row * 2 * N + c, d_up.to(dz.dtype.element_ty), mask=c < N)
    tl.store(dz + row * 2 * N + N + c, d_gate.to(dz.dtype.element_ty), mask=c < N)


@on_its_device
def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Launch: x (T, H), weight (2 I, H), bias (2 I,) or None -> (T, I)."""
    x, weight = by_rows(x), by_rows(weight)
    rows, width = x.shape
    inner = weight.shape[0] // 2
    y = x.new_empty(rows, inner)
    if not y.numel():
        return y
    s = launch.settings("swiglu", x.device, x.dtype, rows=rows, n=inner, k=width)
    if s.library:
        z = plain_linear(x, weight, bias)
        gate_kernel[(rows, triton.cdiv(inner, BLOCK))](
            z, y, inner, BLOCK, **launch.common(x.device)
        )
        return y
    return launch_swiglu(s, x, weight, bias, y)


@on_its_device
def launch_swiglu(
    settings: launch.Settings,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    scales: Scales = UNSCALED,
) -> Tensor:
    """Launch the kernel; y (T, I) is its output."""
    parts = weight.unflatten(0, (2, -1)) if settings.constants.get("STACKED") else weight
    a, w, out, keywords = operands(settings, x, parts, y)
    if y.dtype not in ROUGH:
        keywords["TANH"] = False
    swiglu_kernel[grid(settings, y.shape[0], y.shape[1], x.device)](
        a,
        w,
        scales.x,
        scales.weight,
        dense(bias),
        out,
        scales.y,
        *y.shape,
        x.shape[1],
        x.stride(0),
        weight.stride(0),
        **keywords,
    )
    return y


@torch.library.custom_op("nomicbert::swiglu", mutates_args=())
def swiglu_op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`forward` as a custom op."""
    return forward(x, weight, bias)


@swiglu_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // 2)


@torch.library.custom_op("nomicbert::swiglu_backward", mutates_args=())
@on_its_device
def swiglu_backward_op(dy: Tensor, z: Tensor) -> Tensor:
    """Gradient (T, 2 I) of z (T, 2 I) = [up, gate], from dy (T, I), the gradient of the result."""
    dy, z = by_rows(dy), z.contiguous()
    rows, inner = dy.shape
    dz = torch.empty_like(z)
    if dz.numel():
        gate_backward_kernel[(rows, triton.cdiv(inner, BLOCK))](
            dy, dy.stride(0), z, dz, inner, BLOCK, **launch.common(dy.device)
        )
    return dz


@swiglu_backward_op.register_fake
def _(dy: Tensor, z: Tensor) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def save(ctx, inputs, output) -> None:
    """Save only the inputs: recomputing both GEMMs saves memory."""
    ctx.save_for_backward(*inputs)


def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias."""
    x, weight, bias = ctx.saved_tensors
    dz = swiglu_backward_op(dy, plain_linear(x, weight, bias))
    return linear_gradients(dz, x, weight, ctx.needs_input_grad)


swiglu_op.register_autograd(backward, setup_context=save)


def swiglu(x: Tensor | Activation, weight: Weight) -> Tensor:
    """See `nomicbert_kernels.swiglu`."""
    data, source, bias = autocast(reference.check(x, weight), weight)
    run = swiglu_op if watched(data, source, bias) else forward
    return run(data, source, bias)
