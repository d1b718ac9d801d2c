"""The fused projection with the rotation in its epilogue: queries and keys are written once.

A tile holds whole heads, so both halves of every pair are in the registers of one program. The
rotation there saves a separate pass over queries and keys. With the vendor's GEMM, or head layouts
that the epilogue does not support, a second kernel rotates in place.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nomicbert_kernels import launch
from nomicbert_kernels import qkv_rotary as reference
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
    store_tile,
    tile_at,
)
from nomicbert_kernels.linear_triton import launch_linear, linear
from nomicbert_kernels.tensors import Activation, Rope, Weight, plain_linear

# Tokens per program of rotate_kernel.
BLOCK_TOKENS = 32


@triton.jit
def rotate_tile(
    tile,
    cos,
    sin,
    row,
    m,
    n,
    rows,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Rotate the queries and keys in a tile of whole heads; values stay unchanged.

    A tile of values only is turned by angle 0, without loads. Not by a branch around the rotation:
    in a flattened loop ptxas would then wait for each wgmma.
    """
    half: tl.constexpr = D // 2
    heads: tl.constexpr = BLOCK_N // D
    a, b = tile.reshape(BLOCK_M, heads, 2, half).permute(0, 1, 3, 2).split()
    c = tl.full((BLOCK_M, half), 1.0, tl.float32)
    s = tl.zeros((BLOCK_M, half), tl.float32)
    if n < 2 * HEADS * D:
        r = m + tl.arange(0, BLOCK_M)
        at = tl.load(row + r, mask=r < rows, other=0).to(tl.int64)
        places = at[:, None] * half + tl.arange(0, half)[None, :]
        c = tl.load(cos + places)
        s = tl.load(sin + places)
    c, s = c[:, None, :], s[:, None, :]
    if 2 * HEADS * D % BLOCK_N != 0:
        # one tile holds both keys and values
        turns = (n // D + tl.arange(0, heads) < 2 * HEADS)[None, :, None]
        c = tl.where(turns, c, 1.0)
        s = tl.where(turns, s, 0.0)
    turned = tl.join(a * c - b * s, b * c + a * s)
    return turned.permute(0, 1, 3, 2).reshape(BLOCK_M, BLOCK_N)


@triton.jit(do_not_specialize=["rows"])
def qkv_rotary_kernel(
    x,
    weight,
    scale_x,
    scale_w,
    bias,
    cos,
    sin,
    row,
    y,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
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
):
    """y = x Wᵀ + b, with the first 2 HEADS heads rotated.

    x, weight, scale_x, scale_w, bias, y: as in `linear_triton.linear_kernel`, with SHARED = K
    cos, sin: (R, D / 2) fp32, contiguous
    row: (rows,) int32, the row of cos and sin for each token
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
            K,
        )
        z = scaled(z, scale_x, scale_w, m, n, rows, N, BLOCK_M, BLOCK_N)
        z = add_bias(z, bias, n, N, BLOCK_N)
        z = rotate_tile(z, cos, sin, row, m, n, rows, HEADS, D, BLOCK_M, BLOCK_N)
        store_tile(y, z, m, n, rows, N, BLOCK_M, BLOCK_N, DESCRIPTORS)


@triton.jit(do_not_specialize=["rows"])
def rotate_kernel(
    qkv,
    cos,
    sin,
    row,
    rows,
    sign,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """Rotate queries and keys in place; a program takes BLOCK tokens of one head.

    qkv: (rows, 3, HEADS, D), fp32, fp16 or bf16, contiguous
    cos, sin: (R, HALF) fp32, contiguous
    row: (rows,) int32, the row of cos and sin for each token
    """
    after_previous(launch_pdl)
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head = tl.program_id(1)
    j = tl.arange(0, BLOCK_HALF)
    mask = (r < rows)[:, None] & (j < HALF)[None, :]
    at = tl.load(row + r, mask=r < rows, other=0).to(tl.int64)
    c = tl.load(cos + at[:, None] * HALF + j[None, :], mask=mask, other=0.0)
    s = tl.load(sin + at[:, None] * HALF + j[None, :], mask=mask, other=0.0) * sign
    if INTERLEAVED:
        to_a = 2 * j
        to_b = 2 * j + 1
    else:
        to_a = j
        to_b = j + HALF
    start = qkv + r.to(tl.int64)[:, None] * (3 * HEADS * D) + head * D
    a = tl.load(start + to_a[None, :], mask=mask, other=0.0).to(tl.float32)
    b = tl.load(start + to_b[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(start + to_a[None, :], (a * c - b * s).to(qkv.dtype.element_ty), mask=mask)
    tl.store(start + to_b[None, :], (b * c + a * s).to(qkv.dtype.element_ty), mask=mask)


@on_its_device
def rotate_(
    qkv: Tensor, cos: Tensor, sin: Tensor, row: Tensor, interleaved: bool, sign: float = 1.0
) -> Tensor:
    """Rotate queries and keys of a contiguous qkv (T, 3, h, d) in place; sign -1 rotates back."""
    tokens, _, heads, size = qkv.shape
    half = cos.shape[1]
    if qkv.numel():
        rotate_kernel[(triton.cdiv(tokens, BLOCK_TOKENS), 2 * heads)](
            qkv,
            cos.contiguous(),
            sin.contiguous(),
            row.contiguous(),
            tokens,
            sign,
            heads,
            size,
            half,
            interleaved,
            BLOCK_TOKENS,
            triton.next_power_of_2(half),
            **launch.common(qkv.device),
        )
    return qkv


@on_its_device
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    row: Tensor,
    num_heads: int,
    interleaved: bool,
    scales: Scales = UNSCALED,
) -> Tensor:
    """Launch: x (T, H), weight (3 h d, H), angles as in `Rope` -> (T, 3, h, d)."""
    x, weight = by_rows(x), by_rows(weight)
    tokens, width = x.shape
    wide = weight.shape[0]
    size = wide // (3 * num_heads)
    s = launch.settings(
        "qkv_rotary", x.device, x.dtype, rows=tokens, n=wide, k=width, head_dim=size
    )
    # the epilogue needs half-split rotation of whole heads whose size is a power of two
    common = 2 * cos.shape[1] == size and not interleaved and (size & (size - 1)) == 0
    shape = (tokens, 3, num_heads, size)
    apart = not common or s["BLOCK_N"] % size
    if apart and (scales is not UNSCALED or launch.is_invariant()):
        z = launch_linear(s, x, weight, bias, None, "none", scales)
        return rotate_(z.view(shape), cos, sin, row, interleaved)
    if s.library or apart:
        return rotate_(plain_linear(x, weight, bias).view(shape), cos, sin, row, interleaved)
    y = x.new_empty(tokens, wide, dtype=scales.dtype)
    if not y.numel():
        return y.view(shape)
    a, w, out, keywords = operands(s, x, weight, y)
    qkv_rotary_kernel[grid(s, tokens, wide, x.device)](
        a,
        w,
        scales.x,
        scales.weight,
        dense(bias),
        cos.contiguous(),
        sin.contiguous(),
        row.contiguous(),
        out,
        tokens,
        wide,
        width,
        num_heads,
        size,
        x.stride(0),
        weight.stride(0),
        **keywords,
    )
    return y.view(shape)


@torch.library.custom_op("nomicbert::qkv_rotary", mutates_args=())
def qkv_rotary_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    row: Tensor,
    num_heads: int,
    interleaved: bool,
) -> Tensor:
    """`forward` as a custom op."""
    return forward(x, weight, bias, cos, sin, row, num_heads, interleaved)


@qkv_rotary_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    row: Tensor,
    num_heads: int,
    interleaved: bool,
) -> Tensor:
    return x.new_empty(x.shape[0], 3, num_heads, weight.shape[0] // (3 * num_heads))


@torch.library.custom_op("nomicbert::qkv_rotary_backward", mutates_args=())
def qkv_rotary_backward_op(
    dy: Tensor, cos: Tensor, sin: Tensor, row: Tensor, interleaved: bool
) -> Tensor:
    """Gradient (T, 3, h, d) of the unrotated projection: dy (T, 3, h, d) rotated back."""
    out = dy.clone(memory_format=torch.contiguous_format)
    return rotate_(out, cos, sin, row, interleaved, -1.0)


@qkv_rotary_backward_op.register_fake
def _(dy: Tensor, cos: Tensor, sin: Tensor, row: Tensor, interleaved: bool) -> Tensor:
    return torch.empty_like(dy, memory_format=torch.contiguous_format)


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save x, the weight and the angles."""
    x, weight, _, cos, sin, row, _, ctx.interleaved = inputs
    ctx.save_for_backward(x, weight, cos, sin, row)


def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and bias; angles have none."""
    x, weight, cos, sin, row = ctx.saved_tensors
    dz = qkv_rotary_backward_op(dy, cos, sin, row, ctx.interleaved).flatten(1)
    return *linear_gradients(dz, x, weight, ctx.needs_input_grad), *(None,) * 5


qkv_rotary_op.register_autograd(backward, setup_context=save)


def qkv_rotary(x: Tensor | Activation, weight: Weight, rope: Rope | None, num_heads: int) -> Tensor:
    """See `nomicbert_kernels.qkv_rotary`."""
    data = reference.check(x, weight, rope, num_heads)
    if rope is None:
        return linear(data, weight).view(reference.heads_shape(data, weight, num_heads))
    data, source, bias = autocast(data, weight)
    run = qkv_rotary_op if watched(data, source, bias) else forward
    return run(data, source, bias, rope.cos, rope.sin, rope.row, num_heads, rope.interleaved)
