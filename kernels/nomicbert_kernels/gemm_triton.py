"""What the matrix-product kernels share: which tile a program takes, and the product of one tile.

A program walks over tiles of the result. GROUP rows of tiles are taken together, so that programs
that run side by side read the same part of the weight from L2. Operands come through tensor
descriptors (TMA, from sm_90 on) or plain pointers (cp.async on sm_80). No sum is split among
programs, and a tile has one shape within a row of the launch tables: there, a row of the result has
the same bits whatever stands beside it. The library's products promise no such thing.

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

# Whether triton was imported as an interpreter: its own functions have to be such as well.
INTERPRETED = not isinstance(tl.sum, triton.JITFunction)
# Programs that stay resident in the interpreter: more than one, so that they do take turns.
INTERPRETED_PROCESSORS = 2


@triton.jit
def tile_at(index, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Row and column of the tile of this index."""
    per_group = GROUP * tiles_n
    first = (index // per_group) * GROUP
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
    """A block of a matrix; beyond its columns zeros, beyond its rows anything."""
    if DESCRIPTORS:
        block = matrix.load([row, column])
    else:
        # a row beyond the end repeats the last one: nothing of it is stored, and no mask is needed
        r = tl.minimum(row + tl.arange(0, BLOCK_R), rows - 1).to(tl.int64)
        c = column + tl.arange(0, BLOCK_C)
        pointers = matrix + r[:, None] * stride + c[None, :]
        if EVEN:
            block = tl.load(pointers)
        else:
            block = tl.load(pointers, mask=(c < columns)[None, :], other=0.0)
    return block


@triton.jit
def product(
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

    Where SHARED columns of x share a scale, and these are not all, each step's sum is scaled.
    """
    even: tl.constexpr = K % BLOCK_K == 0
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        a = load_block(x, row, k, rows, K, stride_x, BLOCK_M, BLOCK_K, even, DESCRIPTORS)
        b = load_block(weight, column, k, N, K, stride_w, BLOCK_N, BLOCK_K, even, DESCRIPTORS)
        if SHARED < K:
            r = tl.minimum(row + tl.arange(0, BLOCK_M), rows - 1)
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
    """The tile times a scale for each row and one for each column, either of which may be None."""
    if scale_x is not None:
        r = row + tl.arange(0, BLOCK_M)
        tile *= tl.load(scale_x + r, mask=r < rows, other=0.0)[:, None]
    if scale_w is not None:
        c = column + tl.arange(0, BLOCK_N)
        tile *= tl.load(scale_w + c, mask=c < N, other=0.0)[None, :]
    return tile


@triton.jit
def e4m3_scale(largest):
    """The scale of numbers of which the largest is so large, and its inverse."""
    # far above what e4m3 needs, and as the specification has it
    largest = tl.maximum(largest, 1e-30)
    return tl.math.div_rn(largest, 448.0), tl.math.div_rn(448.0, largest)


@triton.jit
def add_bias(tile, bias, column, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """The tile plus its part of the bias, which may be None."""
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
    """Write a tile of a contiguous (rows, N), rounded to its dtype."""
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
    """Write a tile in e4m3, and the scale of each of its rows to (N / BLOCK_N, rows)."""
    r = row + tl.arange(0, BLOCK_M)
    # beyond the last column `scaled` has left zeros
    scale, inverse = e4m3_scale(tl.max(tl.abs(tile), 1))
    tl.store(scale_y + (column // BLOCK_N) * rows + r, scale, mask=r < rows)
    store_tile(y, tile * inverse[:, None], row, column, rows, N, BLOCK_M, BLOCK_N, DESCRIPTORS)


@functools.cache
def processors(device: torch.device) -> int:
    """Programs that run side by side on a device when each fills a multiprocessor."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def grid(settings: Settings, rows: int, columns: int, device: torch.device) -> tuple[int]:
    """Programs for a (rows, columns) result: resident ones where the loop over tiles is flat."""
    tiles = triton.cdiv(rows, settings["BLOCK_M"]) * triton.cdiv(columns, settings["BLOCK_N"])
    return (min(tiles, processors(device)) if settings["FLATTEN"] else tiles,)


def describable(t: Tensor) -> bool:
    """Whether a descriptor can hold a matrix: 16-byte rows and start, rows that lie apart."""
    size = t.element_size()
    aligned = t.data_ptr() % 16 == 0 and t.stride(0) * size % 16 == 0
    return aligned and t.stride(1) == 1 and t.stride(0) >= t.shape[1] > 0


def operands(
    settings: Settings, x: Tensor, weight: Tensor, y: Tensor
) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Input, weight and result as the kernel takes them, and the launch's keywords.

    They are descriptors where the settings say so and all three allow it.
    """
    keywords = settings.keywords
    blocks = keywords["BLOCK_M"], keywords["BLOCK_N"], keywords["BLOCK_K"]
    if not (keywords["DESCRIPTORS"] and all(map(describable, (x, weight, y)))):
        return x, weight, y, {**keywords, "DESCRIPTORS": False}
    m, n, k = blocks
    return (
        TensorDescriptor.from_tensor(x, [m, k]),
        TensorDescriptor.from_tensor(weight, [n, k]),
        TensorDescriptor.from_tensor(y, [m, n]),
        keywords,
    )


@dataclass(frozen=True)
class Scales:
    """What a launch on e4m3 operands takes beside them; `UNSCALED` for any other.

    Attributes:
        x: (T,), or (K / shared, T) contiguous; fp32.
        weight: (N,) fp32.
        y: (N / BLOCK_N, T) fp32, to be written where the result is rounded; else None.
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
    """The matrix with contiguous columns, as the kernels read it."""
    return t if t.stride(1) == 1 else t.contiguous()


def dense(vector: Tensor | None) -> Tensor | None:
    """The vector without gaps, as the kernels read it."""
    return None if vector is None else vector.contiguous()
