"""The first hidden states in one kernel: three gathers, their sum and its LayerNorm, in fp32.

A program takes one token, as in `layer_norm_triton`. The backward pass gathers again instead of
saving the sum. The gradient of a table is summed per table row: tokens are stably sorted by id, so
the tokens of a row are contiguous and in order, and no two programs write to the same address.

An id outside its table fails a device assertion, as in torch, which the next synchronising call
raises. On a CPU it is a ValueError.

Pointers of the kernels (float is fp32, fp16 or bf16; contiguous unless a row stride is passed):
    ids, types, positions  (T,) int32 or int64, or None
    word, type_table, position_table  (words, type_rows, position_rows; WIDTH) float, or None; row
                           strides stride_w, stride_t, stride_p
    embeds                 (T, WIDTH) float, or None; row stride stride_e
    weight, bias           (WIDTH,) float
    y, dz                  (T, WIDTH) float
    dy                     (T, WIDTH) float; row stride stride_dy
    dweight, dbias         (programs, WIDTH) fp32, or None

Source: Devlin et al. 2018, arXiv:1810.04805, figure 2.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from nomicbert_kernels import embed as reference
from nomicbert_kernels import launch
from nomicbert_kernels.custom_ops import on_its_device, watched
from nomicbert_kernels.gemm_triton import after_previous, by_rows
from nomicbert_kernels.layer_norm_triton import (
    affine,
    input_gradient,
    load_row,
    partial_sums,
    refuse_double,
    result_dtype,
    second_sum,
    shares,
    standardise,
    tiling,
)
from nomicbert_kernels.tensors import EmbeddingTables

# Table gradient: tokens and columns that a program reads at once.
TOKENS = 16
COLUMNS = 128
# Table gradient: programs per block of columns that a small table is split into, and the maximum
# number of parts that the tokens of one table row are split into.
PROGRAMS = 1024
MOST_PARTS = 128


@triton.jit
def load_id(ids, r, table_rows):
    """Load the id of token r, int64; one outside the table fails a device assertion."""
    row = tl.load(ids + r)
    tl.device_assert((row >= 0) & (row < table_rows), "an id is outside its table")
    return row.to(tl.int64)


@triton.jit
def gather(
    ids,
    types,
    positions,
    word,
    type_table,
    position_table,
    embeds,
    words,
    type_rows,
    position_rows,
    stride_w,
    stride_t,
    stride_p,
    stride_e,
    r,
    c,
    mask,
):
    """The sum of the embedding rows of token r, fp32."""
    if embeds is None:
        z = load_row(word + load_id(ids, r, words) * stride_w + c, mask)
    else:
        z = load_row(embeds + r * stride_e + c, mask)
    if type_table is not None:
        # without types every token has type 0
        if types is not None:
            type_table += load_id(types, r, type_rows) * stride_t
        z += load_row(type_table + c, mask)
    if position_table is not None:
        z += load_row(position_table + load_id(positions, r, position_rows) * stride_p + c, mask)
    return z


@triton.jit(debug=True)
def embed_kernel(
    ids,
    types,
    positions,
    word,
    type_table,
    position_table,
    embeds,
    words,
    type_rows,
    position_rows,
    stride_w,
    stride_t,
    stride_p,
    stride_e,
    weight,
    bias,
    y,
    eps,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """y = LayerNorm of the gathered sum, for one token."""
    after_previous(launch_pdl)
    r = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, COLUMNS)
    mask = c < WIDTH
    z = gather(
        ids,
        types,
        positions,
        word,
        type_table,
        position_table,
        embeds,
        words,
        type_rows,
        position_rows,
        stride_w,
        stride_t,
        stride_p,
        stride_e,
        r,
        c,
        mask,
    )
    standard, _ = standardise(z, mask, eps, WIDTH)
    h = affine(standard, weight, bias, c, mask)
    tl.store(y + r * WIDTH + c, h.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "share"])
def embed_backward_kernel(
    dy,
    ids,
    types,
    positions,
    word,
    type_table,
    position_table,
    embeds,
    words,
    type_rows,
    position_rows,
    stride_w,
    stride_t,
    stride_p,
    stride_e,
    weight,
    stride_dy,
    dz,
    dweight,
    dbias,
    rows,
    share,
    eps,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """Write dz, and one row of dweight and dbias per program, which takes `share` tokens."""
    after_previous(launch_pdl)
    program = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, COLUMNS)
    mask = c < WIDTH
    along = tl.zeros((COLUMNS,), tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for r in range(program * share, tl.minimum(program * share + share, rows)):
        z = gather(
            ids,
            types,
            positions,
            word,
            type_table,
            position_table,
            embeds,
            words,
            type_rows,
            position_rows,
            stride_w,
            stride_t,
            stride_p,
            stride_e,
            r,
            c,
            mask,
        )
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


@triton.jit
def table_gradient_kernel(
    dz,
    order,
    offsets,
    y,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """Sum dz over one part of the tokens of one table row; grid (table rows, columns, parts).

    dz (T, WIDTH) float; order (T,) int64, tokens sorted by id; offsets (table rows + 1,) int64,
    where the tokens of each table row start in `order`; y (parts, table rows, WIDTH) float.
    """
    after_previous(launch_pdl)
    row, part, parts = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start = tl.load(offsets + row)
    count = tl.load(offsets + row + 1) - start
    first = start + count * part // parts
    last = start + count * (part + 1) // parts
    total = tl.zeros((COLUMNS,), tl.float32)
    for place in range(first, last, TOKENS):
        p = place + tl.arange(0, TOKENS)
        token = tl.load(order + p, mask=p < last, other=0)
        mask = (p < last)[:, None] & (c < WIDTH)[None, :]
        block = tl.load(dz + token[:, None] * WIDTH + c[None, :], mask=mask, other=0.0)
        total += tl.sum(block.to(tl.float32), 0)
    out = y + (part.to(tl.int64) * tl.num_programs(0) + row) * WIDTH + c
    tl.store(out, total.to(y.dtype.element_ty), mask=c < WIDTH)


def operands(
    ids: Tensor | None,
    types: Tensor | None,
    positions: Tensor | None,
    word: Tensor,
    type_table: Tensor | None,
    position_table: Tensor | None,
    embeds: Tensor | None,
) -> tuple[Tensor | int | None, ...]:
    """Return the kernel arguments: ids, tables, row counts of the tables, strides."""
    tables = [t if t is None else by_rows(t) for t in (word, type_table, position_table, embeds)]
    return (
        *(i if i is None else i.contiguous() for i in (ids, types, positions)),
        *tables,
        *(0 if t is None else t.shape[0] for t in tables[:3]),
        *(0 if t is None else t.stride(0) for t in tables),
    )


@on_its_device
def forward(
    ids: Tensor | None,
    types: Tensor | None,
    positions: Tensor | None,
    word: Tensor,
    type_table: Tensor | None,
    position_table: Tensor | None,
    embeds: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Launch: ids (T,) or embeds (T, H), the tables, weight and bias (H,) -> (T, H) in `dtype`."""
    rows = tokens(ids, embeds)
    y = word.new_empty(rows, word.shape[1], dtype=dtype)
    if y.numel():
        gathered = operands(ids, types, positions, word, type_table, position_table, embeds)
        embed_kernel[(rows,)](
            *gathered,
            weight.contiguous(),
            bias.contiguous(),
            y,
            eps,
            **tiling(word.shape[1], word.device),
            sanitize_overflow=False,  # debug=True is for the assertion only
        )
    return y


def tokens(ids: Tensor | None, embeds: Tensor | None) -> int:
    """T, from whichever of the two is given."""
    found = embeds if ids is None else ids
    assert found is not None  # guaranteed by reference.check
    return found.shape[0]


@torch.library.custom_op("nomicbert::embed", mutates_args=())
def embed_op(
    ids: Tensor | None,
    types: Tensor | None,
    positions: Tensor | None,
    word: Tensor,
    type_table: Tensor | None,
    position_table: Tensor | None,
    embeds: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """`forward` as a custom op."""
    return forward(
        ids, types, positions, word, type_table, position_table, embeds, weight, bias, eps, dtype
    )


@embed_op.register_fake
def _(
    ids: Tensor | None,
    types: Tensor | None,
    positions: Tensor | None,
    word: Tensor,
    type_table: Tensor | None,
    position_table: Tensor | None,
    embeds: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    return word.new_empty(tokens(ids, embeds), word.shape[1], dtype=dtype)


@torch.library.custom_op("nomicbert::embed_backward", mutates_args=())
@on_its_device
def embed_backward_op(
    dy: Tensor,
    ids: Tensor | None,
    types: Tensor | None,
    positions: Tensor | None,
    word: Tensor,
    type_table: Tensor | None,
    position_table: Tensor | None,
    embeds: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the gathered sum (T, H), and of weight and bias (H,) if wanted, else (0,)."""
    dy = by_rows(dy)
    rows, width = dy.shape
    dz = dy.new_empty(rows, width)
    programs, share = shares(rows) if dz.numel() else (0, 0)
    dweight = partial_sums(programs, weight, wanted[0])
    dbias = partial_sums(programs, bias, wanted[1])
    if programs:
        embed_backward_kernel[(programs,)](
            dy,
            *operands(ids, types, positions, word, type_table, position_table, embeds),
            weight.contiguous(),
            dy.stride(0),
            dz,
            dweight,
            dbias,
            rows,
            share,
            eps,
            **tiling(width, dy.device),
        )
    return dz, second_sum(dweight, weight, dy), second_sum(dbias, bias, dy)


@embed_backward_op.register_fake
def _(
    dy: Tensor,
    ids: Tensor | None,
    types: Tensor | None,
    positions: Tensor | None,
    word: Tensor,
    type_table: Tensor | None,
    position_table: Tensor | None,
    embeds: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    dweight, dbias = (
        parameter.new_empty(parameter.shape) if want else dy.new_empty(0)
        for parameter, want in zip((weight, bias), wanted, strict=True)
    )
    return dy.new_empty(dy.shape), dweight, dbias


@torch.library.custom_op("nomicbert::table_gradient", mutates_args=())
@on_its_device
def table_gradient_op(dz: Tensor, ids: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Gradient (rows, H) of a table, from dz (T, H), that of the rows gathered by ids (T,)."""
    dz = dz.contiguous()
    count, width = dz.shape
    # split the tokens of a small table's rows among programs, unless each would get too few
    parts = max(1, min(MOST_PARTS, PROGRAMS // max(1, rows), count // (4 * TOKENS)))
    y = dz.new_empty(parts, rows, width, dtype=dtype if parts == 1 else torch.float32)
    if y.numel():
        ordered, order = torch.sort(ids, stable=True)
        ends = torch.arange(rows + 1, device=ids.device, dtype=ids.dtype)
        offsets = torch.searchsorted(ordered, ends)
        table_gradient_kernel[(rows, triton.cdiv(width, COLUMNS), parts)](
            dz, order, offsets, y, width, TOKENS, COLUMNS, num_warps=1, **launch.common(dz.device)
        )
    return y.sum(0).to(dtype) if parts > 1 else y.view(rows, width)


@table_gradient_op.register_fake
def _(dz: Tensor, ids: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    return dz.new_empty(rows, dz.shape[1], dtype=dtype)


def table_gradient(dz: Tensor, ids: Tensor | None, table: Tensor) -> Tensor:
    """Gradient of a table; without ids, every token used row 0."""
    if ids is not None:
        gradient: Tensor = table_gradient_op(dz, ids, table.shape[0], table.dtype)
        return gradient
    first = dz.sum(0, keepdim=True, dtype=torch.float32).to(table.dtype)
    return F.pad(first, (0, 0, 0, table.shape[0] - 1))


def save(ctx, inputs, output) -> None:
    """Save only the inputs; the backward pass gathers again."""
    *tensors, ctx.eps, _ = inputs
    ctx.save_for_backward(*tensors)


def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients in the order of the inputs."""
    tensors = ctx.saved_tensors
    needed = ctx.needs_input_grad
    ids, types, positions, word, type_table, position_table, embeds, _, _ = tensors
    dz, dweight, dbias = embed_backward_op(dy, *tensors, ctx.eps, list(needed[7:9]))
    gathered = (ids, word), (types, type_table), (positions, position_table)
    # without token types every token has type 0; without input ids no word row was used
    from_tables = needed[3] and ids is not None, *needed[4:6]
    return (
        *(None, None, None),
        *(
            table_gradient(dz, rows, table) if need else None
            for (rows, table), need in zip(gathered, from_tables, strict=True)
        ),
        dz.to(embeds.dtype) if needed[6] else None,
        dweight if needed[7] else None,
        dbias if needed[8] else None,
        *(None, None),
    )


embed_op.register_autograd(backward, setup_context=save)


def embed(
    input_ids: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    tables: EmbeddingTables,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    inputs_embeds: Tensor | None = None,
) -> Tensor:
    """See `nomicbert_kernels.embed`; at most 8192 columns."""
    reference.check(input_ids, token_type_ids, position_ids, tables, inputs_embeds)
    refuse_double("weight", weight)
    typed, placed = tables.token_type is not None, tables.position is not None
    arguments = (
        input_ids,
        token_type_ids if typed else None,
        position_ids if placed else None,
        tables.word,
        tables.token_type,
        tables.position,
        inputs_embeds,
        weight,
        bias,
    )
    run = embed_op if watched(*arguments) else forward
    return run(*arguments, eps, result_dtype(weight, None))
