"""LayerNorm of x + residual in one kernel: one warp per row, held in registers, fp32 statistics.

A tile of rows has the shape (CHUNKS, ROWS, LANES), with columns in the first and last dimension.
Triton assigns lanes from the last dimension on, and then warps. So each warp owns whole rows and
reads 16 bytes per lane. Rows too wide for the registers of one warp are split among the warps of a
program.

The backward pass recomputes the statistics, because it reads the rows anyway. Gradients of weight
and bias are summed in two steps of fixed order, so they are bit-identical in every run.

Pointers of the kernels (float is fp32, fp16 or bf16; contiguous unless a row stride is passed):
    x, residual, dy  (rows, WIDTH) float, residual may be None; row strides stride_x, stride_r,
                     stride_dy
    weight, bias     (WIDTH,) float, or None
    y, dz            (rows, WIDTH) float
    narrow, scale    (rows, WIDTH) e4m3 and (rows,) fp32, or None
    dweight, dbias   (programs, WIDTH) fp32, or None

Source: Ba et al. 2016, arXiv:1607.06450, eq. 3-4.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nomicbert_kernels import launch
from nomicbert_kernels import layer_norm as reference
from nomicbert_kernels.custom_ops import on_its_device, watched
from nomicbert_kernels.gemm_triton import by_rows, e4m3_scale
from nomicbert_kernels.tensors import Activation

# Columns that one warp holds, 32 values per lane, and the warps of a program for such rows.
WARP_COLUMNS = 1024
WARPS = 4
# Columns of the widest row, which takes eight warps.
MOST_COLUMNS = 8192
# Bytes that a warp reads at once: 16 per lane.
WARP_BYTES = 512
# Maximum programs of the backward pass, each with one partial sum.
PROGRAMS = 512


@triton.jit
def tile_columns(CHUNKS: tl.constexpr, LANES: tl.constexpr):
    """The columns of a tile, (CHUNKS, 1, LANES)."""
    chunk = tl.arange(0, CHUNKS)[:, None, None]
    return chunk * LANES + tl.arange(0, LANES)[None, None, :]


@triton.jit
def load_rows(matrix, r, stride, c, mask):
    """Load the rows r (int64) of a matrix as a tile, in fp32; zeros where masked."""
    pointers = matrix + r[None, :, None] * stride + c
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_vector(vector, r, c, mask):
    """Load one value per column, once per row of the tile, so that no warp waits for another."""
    pointers = vector + (r * 0)[None, :, None] + c
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def row_mean(tile, WIDTH: tl.constexpr):
    """The mean of each row, (1, ROWS, 1); the tile must be zero beyond its columns."""
    return (tl.sum(tl.sum(tile, 0), 1) / WIDTH)[None, :, None]


@triton.jit
def standardise(z, mask, eps, WIDTH: tl.constexpr):
    """(z - mean) / sqrt(var + eps), and the factor 1 / sqrt(var + eps)."""
    centred = tl.where(mask, z - row_mean(z, WIDTH), 0.0)
    factor = tl.rsqrt(row_mean(centred * centred, WIDTH) + eps)
    return centred * factor, factor


@triton.jit
def affine(z, weight, bias, r, c, mask):
    """z * weight + bias, either of which may be None."""
    if weight is not None:
        z *= load_vector(weight, r, c, mask)
    if bias is not None:
        z += load_vector(bias, r, c, mask)
    return z


@triton.jit
def input_gradient(dy, weight, standard, factor, r, c, mask, WIDTH: tl.constexpr):
    """Gradient of z from dy, the gradient of the result, and the output of `standardise`."""
    if weight is not None:
        dy *= load_vector(weight, r, c, mask)
    along = row_mean(dy * standard, WIDTH)
    return (dy - row_mean(dy, WIDTH) - standard * along) * factor


@triton.jit
def store_sum(partial, tile, WIDTH: tl.constexpr, CHUNKS: tl.constexpr, LANES: tl.constexpr):
    """Store the sum over the rows of a tile as this program's row of partial (programs, WIDTH)."""
    c = tl.arange(0, CHUNKS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    place = partial + tl.program_id(0).to(tl.int64) * WIDTH + c
    tl.store(place, tl.sum(tile, 1), mask=c < WIDTH)


@triton.jit(do_not_specialize=["rows"])
def layer_norm_kernel(
    x,
    residual,
    weight,
    bias,
    y,
    narrow,
    scale,
    rows,
    stride_x,
    stride_r,
    eps,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    LANES: tl.constexpr,
):
    """y = LayerNorm(x + residual); unless narrow is None, also in e4m3 with one scale per row."""
    c = tile_columns(CHUNKS, LANES)
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (r < rows)[None, :, None] & (c < WIDTH)
    z = load_rows(x, r, stride_x, c, mask)
    if residual is not None:
        z += load_rows(residual, r, stride_r, c, mask)
    standard, _ = standardise(z, mask, eps, WIDTH)
    h = affine(standard, weight, bias, r, c, mask)
    tl.store(y + r[None, :, None] * WIDTH + c, h.to(y.dtype.element_ty), mask=mask)
    if narrow is not None:
        store_narrow(narrow, scale, h, r, c, mask, rows, WIDTH)


@triton.jit
def store_narrow(narrow, scale, tile, r, c, mask, rows, WIDTH: tl.constexpr):
    """Store a tile of whole rows, zero beyond their columns, in e4m3 with one scale per row."""
    factor, inverse = e4m3_scale(tl.max(tl.max(tl.abs(tile), 0), 1))
    tl.store(scale + r, factor, mask=r < rows)
    q = (tile * inverse[None, :, None]).to(narrow.dtype.element_ty)
    tl.store(narrow + r[None, :, None] * WIDTH + c, q, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def narrow_kernel(
    x,
    narrow,
    scale,
    rows,
    stride_x,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Quantise x to e4m3 (narrow), with one scale per row."""
    c = tile_columns(CHUNKS, LANES)
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (r < rows)[None, :, None] & (c < WIDTH)
    store_narrow(narrow, scale, load_rows(x, r, stride_x, c, mask), r, c, mask, rows, WIDTH)


@triton.jit(do_not_specialize=["rows", "share"])
def layer_norm_backward_kernel(
    dy,
    x,
    residual,
    weight,
    dz,
    dweight,
    dbias,
    rows,
    share,
    stride_dy,
    stride_x,
    stride_r,
    eps,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Write dz, and one row of dweight and dbias per program, which takes `share` rows."""
    c = tile_columns(CHUNKS, LANES)
    first = tl.program_id(0).to(tl.int64) * share
    last = tl.minimum(first + share, rows)
    along = tl.zeros((CHUNKS, ROWS, LANES), tl.float32)
    total = tl.zeros((CHUNKS, ROWS, LANES), tl.float32)
    for row in range(first, last, ROWS):
        r = row + tl.arange(0, ROWS)
        mask = (r < last)[None, :, None] & (c < WIDTH)
        z = load_rows(x, r, stride_x, c, mask)
        if residual is not None:
            z += load_rows(residual, r, stride_r, c, mask)
        g = load_rows(dy, r, stride_dy, c, mask)
        standard, factor = standardise(z, mask, eps, WIDTH)
        if dweight is not None:
            along += tl.where(mask, g * standard, 0.0)
        if dbias is not None:
            total += g
        d = input_gradient(g, weight, standard, factor, r, c, mask, WIDTH)
        tl.store(dz + r[None, :, None] * WIDTH + c, d.to(dz.dtype.element_ty), mask=mask)
    if dweight is not None:
        store_sum(dweight, along, WIDTH, CHUNKS, LANES)
    if dbias is not None:
        store_sum(dbias, total, WIDTH, CHUNKS, LANES)


def refuse_double(name: str, x: Tensor) -> None:
    """Refuse fp64: the kernels compute in fp32."""
    if x.dtype == torch.float64:
        raise ValueError(
            f"{name} is torch.float64, but backend 'triton' computes in fp32: use fp32, fp16 or "
            "bf16, or backend 'reference'"
        )


def refuse_wide(width: int) -> None:
    """Refuse rows that do not fit in the registers of a program."""
    if width > MOST_COLUMNS:
        raise ValueError(
            f"rows of {width} columns are too wide for backend 'triton', which supports "
            f"at most {MOST_COLUMNS}: use backend 'torch'"
        )


def tiling(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Launch keywords for rows of this width."""
    refuse_wide(width)
    lanes = WARP_BYTES // dtype.itemsize
    chunks = triton.next_power_of_2(triton.cdiv(width, lanes))
    warps = chunks * lanes // WARP_COLUMNS
    keywords = {"WIDTH": width, "CHUNKS": chunks, "LANES": lanes, **launch.COMMON}
    if warps <= 1:
        return keywords | {"ROWS": WARPS, "num_warps": WARPS}
    return keywords | {"ROWS": 1, "num_warps": warps}


def shares(rows: int, tile: int) -> tuple[int, int]:
    """Return the number of programs of a backward pass, and the rows of each, in whole tiles."""
    share = triton.cdiv(triton.cdiv(rows, PROGRAMS), tile) * tile
    return triton.cdiv(rows, share), share


def partial_sums(programs: int, like: Tensor | None, wanted: bool) -> Tensor | None:
    """Allocate one row of sums per program, if the gradient of the parameter is wanted."""
    if like is None or not wanted:
        return None
    return like.new_empty(programs, like.shape[0], dtype=torch.float32)


def second_sum(partial: Tensor | None, like: Tensor | None, x: Tensor) -> Tensor:
    """Add up the partial sums of a parameter's gradient; (0,) if it is not wanted."""
    if partial is None or like is None:
        return x.new_empty(0)
    return partial.sum(0).to(like.dtype)


@on_its_device
def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    dtype: torch.dtype,
    narrow: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Launch: x and residual (T, H), weight and bias (H,) -> (T, H) in `dtype`.

    `narrow`, if given, receives the same in e4m3 (T, H) and its scales (T,).
    """
    x, residual = by_rows(x), residual if residual is None else by_rows(residual)
    rows, width = x.shape
    y = x.new_empty(rows, width, dtype=dtype)
    if y.numel():
        keywords = tiling(width, x.dtype)
        layer_norm_kernel[(triton.cdiv(rows, keywords["ROWS"]),)](
            x,
            residual,
            weight if weight is None else weight.contiguous(),
            bias if bias is None else bias.contiguous(),
            y,
            *(narrow or (None, None)),
            rows,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            eps,
            **keywords,
        )
    return y


@torch.library.custom_op("nomicbert::layer_norm", mutates_args=())
def layer_norm_op(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """`forward` as a custom op."""
    return forward(x, weight, bias, eps, residual, dtype)


@layer_norm_op.register_fake
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def sum_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """The dtype that x + residual has in torch."""
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


@torch.library.custom_op("nomicbert::layer_norm_backward", mutates_args=())
@on_its_device
def layer_norm_backward_op(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x + residual (T, H), and of weight and bias (H,) if wanted, else (0,)."""
    dy, x, residual = by_rows(dy), by_rows(x), residual if residual is None else by_rows(residual)
    rows, width = x.shape
    dz = x.new_empty(rows, width, dtype=sum_dtype(x, residual))
    keywords = tiling(width, x.dtype)
    programs, share = shares(rows, keywords["ROWS"]) if dz.numel() else (0, 0)
    dweight, dbias = (
        partial_sums(programs, parameter, want)
        for parameter, want in zip((weight, bias), wanted, strict=True)
    )
    if programs:
        layer_norm_backward_kernel[(programs,)](
            dy,
            x,
            residual,
            weight if weight is None else weight.contiguous(),
            dz,
            dweight,
            dbias,
            rows,
            share,
            dy.stride(0),
            x.stride(0),
            0 if residual is None else residual.stride(0),
            eps,
            **keywords,
        )
    return dz, second_sum(dweight, weight, x), second_sum(dbias, bias, x)


@layer_norm_backward_op.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    dweight, dbias = (
        x.new_empty(0)
        if parameter is None or not want
        else torch.empty_like(parameter, memory_format=torch.contiguous_format)
        for parameter, want in zip((weight, bias), wanted, strict=True)
    )
    return x.new_empty(x.shape, dtype=sum_dtype(x, residual)), dweight, dbias


def save(ctx, inputs, output) -> None:
    """Save only the inputs; the backward pass recomputes the statistics."""
    x, weight, bias, ctx.eps, residual, _ = inputs
    ctx.save_for_backward(x, weight, bias, residual)


def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients in the order of the inputs."""
    x, weight, bias, residual = ctx.saved_tensors
    for_x, *wanted, _, for_residual, _ = ctx.needs_input_grad
    dz, dweight, dbias = layer_norm_backward_op(dy, x, weight, bias, ctx.eps, residual, wanted)
    return (
        dz.to(x.dtype) if for_x else None,
        dweight if wanted[0] else None,
        dbias if wanted[1] else None,
        None,
        dz.to(residual.dtype) if for_residual else None,
        None,
    )


layer_norm_op.register_autograd(backward, setup_context=save)


def result_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """The dtype of x; under autocast that of torch's own layer_norm on the device."""
    if not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    return torch.float32 if x.device.type == "cuda" else sum_dtype(x, residual)


def layer_norm(
    x: Tensor | Activation,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | Activation | None = None,
) -> Tensor:
    """See `nomicbert_kernels.layer_norm`; at most 8192 columns."""
    data, added = reference.check(x, weight, bias, residual)
    refuse_double("x", data)
    run = layer_norm_op if watched(data, weight, bias, added) else forward
    return run(data, weight, bias, eps, added, result_dtype(data, added))
