"""Shared parts of the kernels: how each begins, and the parts of a GEMM.

A GEMM has a tile order, the GEMM of one tile, scales, bias and stores.
A program loops over tiles of the result. Tiles are ordered in groups of GROUP tile rows, so that
concurrent programs read the same part of the weight from L2. Operands are loaded through tensor
descriptors (TMA, from sm_90 on) or pointers (cp.async on sm_80). No sum is split among programs,
and each row of the launch tables has one tile shape. So, within one row of the tables, a result row
has the same bits whatever the other rows are. cuBLAS does not guarantee this.

Source: Tillet et al. 2019, doi:10.1145/3315508.3329973.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nomicbert_kernels.launch import Settings

# Whether triton was imported with TRITON_INTERPRET, so that its own functions are interpreted too.
INTERPRETED = not isinstance(tl.sum, triton.JITFunction)
# Persistent programs in the interpreter: more than one, so that the stride over tiles is tested.
INTERPRETED_PROCESSORS = 2


@triton.jit
def after_previous(launch_pdl: tl.constexpr):
    """The first statement of every kernel: wait for the previous one, then release the next.

    Without `launch_pdl` the driver waits, and there is no instruction. The parameter of a kernel
    has the name of Triton's option, so one keyword of the launch sets both, and they cannot differ.

    Before this no kernel touches memory. It waits until the previous kernel has ended, which had
    itself waited for the one before, and so on: all earlier work has ended and is visible. So the
    next kernel may be released at once, since all it can do early is to wait here. Kernels and
    copies of others have no such option: the driver starts them when ours have ended, and ours wait
    for their end, even if they release the next one earlier. A CUDA graph records the option with
    the edge between two kernels.

    Source: CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization"; PTX
    ISA, "griddepcontrol".
    """
    if launch_pdl:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def tile_at(index, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Return tile row and column of a tile index; column-major within groups of GROUP tile rows."""
    per_group = GROUP * tiles_n
    first = (index // per_group) * GROUP
    # the last group may have fewer tile rows
    height = tl.minimum(tiles_m - first, GROUP)
    inside = index % per_group
    return first + inside % height, inside // height


@triton.jit
def load_block(
    matrix,
    row,
    column,
    rows,
    columns,
    stride,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EVEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Load a block of a (rows, columns) matrix: zeros beyond columns, arbitrary beyond rows."""
    if DESCRIPTORS:
        block = matrix.load([row, column])
    else:
        # rows beyond the end repeat the last one: they are never stored, so no row mask is needed
        r = tl.minimum(row + tl.arange(0, BLOCK_R), rows - 1).to(tl.int64)
        c = column + tl.arange(0, BLOCK_C)
        pointers = matrix + r[:, None] * stride + c[None, :]
        if EVEN:
            block = tl.load(pointers)
        else:
            block = tl.load(pointers, mask=(c < columns)[None, :], other=0.0)
    return block


@triton.jit
def gemm(
    x,
    weight,
    scale_x,
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
    SHARED: tl.constexpr,
):
    """x Wᵀ for the tile whose first element is (row, column), (BLOCK_M, BLOCK_N) fp32.

    x (rows, K), weight (N, K): pointers or descriptors; scale_x (K / SHARED, rows) fp32. If
    SHARED < K, each step is scaled before it is added, so BLOCK_K must divide SHARED. Otherwise
    `scaled` applies scale_x afterwards.
    """
    even: tl.constexpr = K % BLOCK_K == 0
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        a = load_block(x, row, k, rows, K, stride_x, BLOCK_M, BLOCK_K, even, DESCRIPTORS)
        b = load_block(weight, column, k, N, K, stride_w, BLOCK_N, BLOCK_K, even, DESCRIPTORS)
        if SHARED < K:
            r = tl.minimum(row + tl.arange(0, BLOCK_M), rows - 1)
            # a step lies within one group of SHARED columns
            factor = tl.load(scale_x + (k // SHARED) * rows + r)
            total += tl.dot(a, b.T) * factor[:, None]
        else:
            total = tl.dot(a, b.T, total, input_precision=PRECISION)
    return total


@triton.jit
def scaled(
    tile,
    scale_x,
    scale_w,
    row,
    column,
    rows,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Multiply a tile by scale_x (rows,) and scale_w (N,), fp32; either may be None."""
    if scale_x is not None:
        r = row + tl.arange(0, BLOCK_M)
        tile *= tl.load(scale_x + r, mask=r < rows, other=0.0)[:, None]
    if scale_w is not None:
        c = column + tl.arange(0, BLOCK_N)
        tile *= tl.load(scale_w + c, mask=c < N, other=0.0)[None, :]
    return tile


@triton.jit
def e4m3_scale(largest):
    """Return the scale of values whose largest magnitude is `largest`, and its inverse."""
    # fp8.TINY avoids a division by zero; div_rn rounds as the specification does
    largest = tl.maximum(largest, 1e-30)
    return tl.math.div_rn(largest, 448.0), tl.math.div_rn(448.0, largest)


@triton.jit
def add_bias(tile, bias, column, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """Add the bias (N,) to a tile; it may be None."""
    if bias is not None:
        c = column + tl.arange(0, BLOCK_N)
        tile += tl.load(bias + c, mask=c < N, other=0.0).to(tl.float32)[None, :]
    return tile


@triton.jit
def store_tile(
    y,
    tile,
    row,
    column,
    rows,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Store a tile of y (rows, N), contiguous or a descriptor, rounded to its dtype."""
    if DESCRIPTORS:
        y.store([row, column], tile.to(y.dtype))
    else:
        r = row + tl.arange(0, BLOCK_M)
        c = column + tl.arange(0, BLOCK_N)
        mask = (r < rows)[:, None] & (c < N)[None, :]
        places = y + r.to(tl.int64)[:, None] * N + c[None, :]
        tl.store(places, tile.to(y.dtype.element_ty), mask=mask)


@triton.jit
def store_rounded(
    y,
    scale_y,
    tile,
    row,
    column,
    rows,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Store a tile of y in e4m3, and one scale per row to scale_y (N / BLOCK_N, rows) fp32."""
    r = row + tl.arange(0, BLOCK_M)
    # columns beyond N are zero after `scaled`, so they do not affect the maximum
    scale, inverse = e4m3_scale(tl.max(tl.abs(tile), 1))
    tl.store(scale_y + (column // BLOCK_N) * rows + r, scale, mask=r < rows)
    store_tile(y, tile * inverse[:, None], row, column, rows, N, BLOCK_M, BLOCK_N, DESCRIPTORS)


@functools.cache
def processors(device: torch.device) -> int:
    """Number of multiprocessors of a device."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def grid(settings: Settings, rows: int, columns: int, device: torch.device) -> tuple[int]:
    """Number of programs for a (rows, columns) result: persistent if FLATTEN, else one per tile.

    Persistent programs all run at once: `settings.programs` on each multiprocessor.
    """
    tiles = triton.cdiv(rows, settings["BLOCK_M"]) * triton.cdiv(columns, settings["BLOCK_N"])
    at_once = settings.programs * processors(device)
    return (min(tiles, at_once) if settings["FLATTEN"] else tiles,)


def describable(t: Tensor) -> bool:
    """Whether a descriptor can address matrices: 16-byte aligned rows that do not overlap."""
    size = t.element_size()
    aligned = t.data_ptr() % 16 == 0 and t.stride(-2) * size % 16 == 0
    return aligned and t.stride(-1) == 1 and t.stride(-2) >= t.shape[-1] > 0


def operands(
    settings: Settings, x: Tensor, weight: Tensor, y: Tensor
) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Return input, weight and result as kernel arguments, and the launch keywords.

    They are descriptors if the settings ask for them and all three tensors allow it. The weight is
    (N, K); or (parts, N, K), whose blocks then have BLOCK_N rows of every part.
    """
    keywords = settings.keywords(x.device)
    blocks = keywords["BLOCK_M"], keywords["BLOCK_N"], keywords["BLOCK_K"]
    if not (keywords["DESCRIPTORS"] and all(map(describable, (x, weight, y)))):
        return x, weight, y, {**keywords, "DESCRIPTORS": False}
    m, n, k = blocks
    return (
        TensorDescriptor.from_tensor(x, [m, k]),
        TensorDescriptor.from_tensor(weight, [*weight.shape[:-2], n, k]),
        TensorDescriptor.from_tensor(y, [m, n]),
        keywords,
    )


@dataclass(frozen=True)
class Scales:
    """Scales and result dtype of a launch on e4m3 operands; `UNSCALED` for other dtypes.

    Attributes:
        x: (T,), or (K / shared, T) contiguous; fp32.
        weight: (N,) fp32.
        y: (N / BLOCK_N, T) fp32, an output if the result is e4m3; else None.
        shared: columns of x that share a scale; None for all.
        dtype: of the result; None for that of x.
    """

    x: Tensor | None = None
    weight: Tensor | None = None
    y: Tensor | None = None
    shared: int | None = None
    dtype: torch.dtype | None = None


UNSCALED = Scales()


def by_rows(t: Tensor) -> Tensor:
    """Make the last dimension contiguous, as the kernels require."""
    return t if t.stride(1) == 1 else t.contiguous()


def dense(vector: Tensor | None) -> Tensor | None:
    """Make a vector contiguous, as the kernels require."""
    return None if vector is None else vector.contiguous()
