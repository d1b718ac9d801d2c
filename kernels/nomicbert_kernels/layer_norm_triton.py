"""LayerNorm of x + residual in one kernel: one row per program, in registers, fp32 statistics.

A row of up to WARP_COLUMNS columns belongs to one warp, which reads 16 bytes per lane and exchanges
sums by shuffles: no shared memory, and no warp waits for another. With several rows per program
that would depend on how a version of Triton distributes them over the warps; 3.6 lets warps share
rows. Wider rows are split among the warps of a program.

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
from nomicbert_kernels.gemm_triton import after_previous, by_rows, e4m3_scale
from nomicbert_kernels.tensors import Activation

# Columns that one warp holds, 32 values per lane.
WARP_COLUMNS = 1024
# Columns of the widest row, which takes eight warps.
MOST_COLUMNS = 8192
# Bits that a lane reads at once.
LANE_BITS = tl.constexpr(128)
# Maximum programs of the backward pass, each with one partial sum: for rows of one warp, eight for
# each multiprocessor of the largest GPUs. And the least rows of a program: its partial sum, in
# fp32, is written and read again.
PROGRAMS = 1024
LEAST_SHARE = 4


@triton.jit
def load_row(places, mask):
    """Load one value per column, in fp32; zeros where masked."""
    return tl.load(places, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def standardise(z, mask, eps, WIDTH: tl.constexpr):
    """(z - mean) / sqrt(var + eps), and the factor 1 / sqrt(var + eps); z is zero where masked."""
    centred = tl.where(mask, z - tl.sum(z, 0) / WIDTH, 0.0)
    factor = tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
    return centred * factor, factor


@triton.jit
def affine(z, weight, bias, c, mask):
    """z * weight + bias, either of which may be None."""
    if weight is not None:
        z *= load_row(weight + c, mask)
    if bias is not None:
        z += load_row(bias + c, mask)
    return z


@triton.jit
def input_gradient(dy, weight, standard, factor, c, mask, WIDTH: tl.constexpr):
    """Gradient of z from dy, the gradient of the result, and the output of `standardise`."""
    if weight is not None:
        dy *= load_row(weight + c, mask)
    along = tl.sum(dy * standard, 0) / WIDTH
    return (dy - tl.sum(dy, 0) / WIDTH - standard * along) * factor


@triton.jit
def layer_norm_kernel(
    x,
    residual,
    weight,
    bias,
    y,
    narrow,
    scale,
    stride_x,
    stride_r,
    eps,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """y = LayerNorm(x + residual); unless narrow is None, also in e4m3 with one scale per row."""
    after_previous(launch_pdl)
    r = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, COLUMNS)
    mask = c < WIDTH
    z = load_row(x + r * stride_x + c, mask)
    if residual is not None:
        z += load_row(residual + r * stride_r + c, mask)
    standard, _ = standardise(z, mask, eps, WIDTH)
    h = affine(standard, weight, bias, c, mask)
    tl.store(y + r * WIDTH + c, h.to(y.dtype.element_ty), mask=mask)
    if narrow is not None:
        held: tl.constexpr = LANE_BITS // x.dtype.element_ty.primitive_bitwidth
        store_narrow(narrow, scale, h, r, c, mask, WIDTH, held)


@triton.jit
def store_narrow(narrow, scale, row, r, c, mask, WIDTH: tl.constexpr, HELD: tl.constexpr):
    """Store row r, zero where masked, in e4m3 with one scale; a lane holds HELD adjacent values."""
    factor, inverse = e4m3_scale(tl.max(tl.abs(row), 0))
    tl.store(scale + r, factor)
    # Triton would store 16 bytes per lane, for which lanes had to exchange values
    places = tl.max_contiguous(narrow + r * WIDTH + c, HELD)
    tl.store(places, (row * inverse).to(narrow.dtype.element_ty), mask=mask)


@triton.jit
def narrow_kernel(
    x, narrow, scale, stride_x, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, launch_pdl: tl.constexpr
):
    """Quantise x to e4m3 (narrow), with one scale per row."""
    after_previous(launch_pdl)
    r = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, COLUMNS)
    mask = c < WIDTH
    held: tl.constexpr = LANE_BITS // x.dtype.element_ty.primitive_bitwidth
    row = load_row(x + r * stride_x + c, mask)
    store_narrow(narrow, scale, row, r, c, mask, WIDTH, held)


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
    COLUMNS: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """Write dz, and one row of dweight and dbias per program, which takes `share` rows."""
    after_previous(launch_pdl)
    program = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, COLUMNS)
    mask = c < WIDTH
    along = tl.zeros((COLUMNS,), tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for r in range(program * share, tl.minimum(program * share + share, rows)):
        z = load_row(x + r * stride_x + c, mask)
        if residual is not None:
            z += load_row(residual + r * stride_r + c, mask)
        g = load_row(dy + r * stride_dy + c, mask)
        standard, factor = standardise(z, mask, eps, WIDTH)
        if dweight is not None:
            along += g * standard
        if dbias is not None:
            total += g
        d = input_gradient(g, weight, standard, factor, c, mask, WIDTH)
        tl.store(dz + r * WIDTH + c, d.to(dz.dtype.element_ty), mask=mask)
    if dweight is not None:
        tl.store(dweight + program * WIDTH + c, along, mask=mask)
    if dbias is not None:
        tl.store(dbias + program * WIDTH + c, total, mask=mask)


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


def tiling(width: int, device: torch.device) -> dict[str, int]:
    """Launch keywords for rows of this width."""
    refuse_wide(width)
    columns = triton.next_power_of_2(width)
    warps = max(1, columns // WARP_COLUMNS)
    return {"WIDTH": width, "COLUMNS": columns, "num_warps": warps, **launch.common(device)}


def shares(rows: int) -> tuple[int, int]:
    """Return the number of programs of a backward pass, and the rows of each."""
    share = max(LEAST_SHARE, triton.cdiv(rows, PROGRAMS))
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
        layer_norm_kernel[(rows,)](
            x,
            residual,
            weight if weight is None else weight.contiguous(),
            bias if bias is None else bias.contiguous(),
            y,
            *(narrow or (None, None)),
            x.stride(0),
            0 if residual is None else residual.stride(0),
            eps,
            **tiling(width, x.device),
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
    programs, share = shares(rows) if dz.numel() else (0, 0)
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
            **tiling(width, x.device),
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
