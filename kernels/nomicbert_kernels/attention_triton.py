"""Attention over packed texts, tile by tile, forward and backward.

A program holds the queries of one tile and loops over the keys of the tile's texts with an online
softmax, so the matrix of attention weights is never stored. A text with tiles of its own is read in
full blocks. The last block ends with the text: it repeats keys of the block before, and masks them.
So all blocks are loaded ahead, without masks, and contain no other text. Tiles of several texts, or
of one text shorter than a block, are masked by the text of each token. There, non-finite values are
replaced by zeros, because 0 * NaN would carry them from one text to its neighbour. A text keeps its
own NaN. The backward kernels mask the remainder of a text as they mask shared tiles.

Exponentials are base 2; log2 e is part of the scale. The backward pass keeps only the logarithm of
each query's sum of exponentials (lse), and recomputes the weights P from it:
    dV = Pᵀ dO,  dS = P (dO Vᵀ - rowsum(dO O)),  dQ = scale dS K,  dK = scale dSᵀ Q.
One kernel loops over keys for dQ, another over queries for dK and dV. So there are no atomic adds,
and results are bit-identical in every run. A text's last bits may depend on its batch: the order
of a sum depends on the text's position in a shared tile, and the tile size on the longest text.

Pointers of all kernels (queries = T, or B with `rows`; contiguous unless strides are passed):
    qkv         (T, 3, h, D), fp32, fp16 or bf16; strides stride_t, stride_3, stride_h, 1
    cu_seqlens  (B + 1,) int32
    table       (n, 4) int32, see `tensors.Tiles`
    text        (T,) int32, the text of each token
    rows        (B,) int32 or int64, the one query token of each text; None for all tokens
    out, d_out  (queries, h D), dtype of qkv
    lse, delta  (h, queries) fp32: base-2 lse (or None in the forward pass), and rowsum(dO O)
    d_qkv       (T, 3, h, D), dtype of qkv

Source: Dao 2023, arXiv:2307.08691, algorithms 1 and 2; Milakov and Gimelshein 2018,
arXiv:1805.02867.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from nomicbert_kernels import attention as reference
from nomicbert_kernels import launch
from nomicbert_kernels.attention_torch import say_dropout_is_slow
from nomicbert_kernels.custom_ops import on_its_device, watched
from nomicbert_kernels.gemm_triton import after_previous
from nomicbert_kernels.tensors import Plan
from nomicbert_kernels.tiling import check_head_dim, settings_of

# Head sizes that a tensor descriptor can address within a row of qkv.
DESCRIBABLE = (16, 32, 64, 128)


@triton.jit
def tile_of(table, one_each: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return this program's part of a tile: first row, row count, first text, last text + 1.

    With one query per text, each program's tile is one text. Otherwise PARTS programs share a tile
    of the table, because the tile may have more rows than BLOCK_M.
    """
    index = tl.program_id(0)
    if one_each:
        return index, 1, index, index + 1
    else:
        tile = table + index // PARTS * 4
        skipped = index % PARTS * BLOCK_M
        return (
            tl.load(tile) + skipped,
            tl.load(tile + 1) - skipped,
            tl.load(tile + 2),
            tl.load(tile + 3),
        )


@triton.jit
def unmasked_end(start, stop, texts, BLOCK_N: tl.constexpr):
    """Return the end of the keys that need no mask: full blocks, if the tile has one text."""
    return tl.where(texts == 1, start + (stop - start) // BLOCK_N * BLOCK_N, start)


@triton.jit
def load_rows(
    part, row, stride, inside, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr
):
    """Load rows of one head, (rows, BLOCK_D); zeros beyond D and, if MASKED, where not inside."""
    c = tl.arange(0, BLOCK_D)
    places = part + row.to(tl.int64)[:, None] * stride + c[None, :]
    if MASKED and D != BLOCK_D:
        block = tl.load(places, mask=inside[:, None] & (c < D)[None, :], other=0.0)
    elif MASKED:
        block = tl.load(places, mask=inside[:, None], other=0.0)
    elif D != BLOCK_D:
        block = tl.load(places, mask=(c < D)[None, :], other=0.0)
    else:
        block = tl.load(places)
    return block


@triton.jit
def store_rows(part, row, stride, block, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store rows of one head, rounded to the pointer's dtype, where inside."""
    c = tl.arange(0, BLOCK_D)
    places = part + row.to(tl.int64)[:, None] * stride + c[None, :]
    mask = inside[:, None] & (c < D)[None, :]
    tl.store(places, block.to(part.dtype.element_ty), mask=mask)


@triton.jit
def finite(block):
    """Elementwise: neither infinite nor NaN."""
    return tl.abs(block.to(tl.float32)) < float("inf")


@triton.jit
def zero_nonfinite(block):
    """Replace non-finite elements by zeros."""
    return tl.where(finite(block), block, 0.0).to(block.dtype)


@triton.jit
def mark_nonfinite(block, other):
    """Replace elements by NaN where `other`, of the same shape, is not finite."""
    return tl.where(finite(other), block, float("nan")).to(block.dtype)


@triton.jit
def update_softmax(s, v, largest, weight, total, scale, PRECISION: tl.constexpr):
    """Update the online softmax by one block of keys: logits s (M, N) and values v (N, D).

    largest, weight, total: per query the maximum scaled logit, the sum of exponentials and the
    weighted sum of values so far, both relative to that maximum.
    """
    new = tl.maximum(largest, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - new[:, None])
    shrunk = tl.exp2(largest - new)
    total = tl.dot(p.to(v.dtype), v, total * shrunk[:, None], input_precision=PRECISION)
    return new, weight * shrunk + tl.sum(p, 1), total


@triton.jit(do_not_specialize=["queries"])
def attention_kernel(
    qkv,
    described,
    cu_seqlens,
    table,
    text,
    rows,
    out,
    lse,
    queries,
    scale,
    stride_t,
    stride_3,
    stride_h,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """out = softmax(q kᵀ scale) v, and lse unless None; grid (parts of tiles, h).

    described: qkv as a descriptor of (T, 3 h D) if DESCRIPTORS, else unused. scale includes log2 e.
    """
    after_previous(launch_pdl)
    head, heads = tl.program_id(1), tl.num_programs(1)
    first, count, text_0, text_1 = tile_of(table, rows is not None, PARTS, BLOCK_M)
    if count > 0:
        start, stop = tl.load(cu_seqlens + text_0), tl.load(cu_seqlens + text_1)
        m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
        # rows beyond the end repeat the last one, so that loads need no mask; they are not stored
        query = first + tl.minimum(m, count - 1)
        token = query
        if rows is not None:
            token = tl.load(rows + query)
        q_part = qkv + head.to(tl.int64) * stride_h
        k_part = q_part + stride_3
        v_part = k_part + stride_3
        q = load_rows(q_part, token, stride_t, None, D, BLOCK_D, False)
        # finite: with -inf, a row whose keys are all masked so far would compute -inf - -inf = NaN
        largest = tl.full((BLOCK_M,), -3.4028234663852886e38, tl.float32)
        weight = tl.zeros((BLOCK_M,), tl.float32)
        total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        # two branches, so that neither loop holds registers of the other
        if (text_1 - text_0 == 1) & (stop - start >= BLOCK_N):
            for key in range(start, stop, BLOCK_N):
                # the last block ends with the text and masks the keys that it repeats
                at = tl.minimum(key, stop - BLOCK_N)
                if DESCRIPTORS:
                    k = described.load([at, (heads + head) * D])
                    v = described.load([at, (2 * heads + head) * D])
                else:
                    k = load_rows(k_part, at + n, stride_t, None, D, BLOCK_D, False)
                    v = load_rows(v_part, at + n, stride_t, None, D, BLOCK_D, False)
                s = tl.dot(q, k.T, input_precision=PRECISION)
                if at < key:
                    s = tl.where((at + n >= key)[None, :], s, float("-inf"))
                largest, weight, total = update_softmax(
                    s, v, largest, weight, total, scale, PRECISION
                )
        else:
            text_q = tl.load(text + token)
            for key in tl.range(start, stop, BLOCK_N, num_stages=1):
                inside = key + n < stop
                k = load_rows(k_part, key + n, stride_t, inside, D, BLOCK_D, True)
                v = load_rows(v_part, key + n, stride_t, inside, D, BLOCK_D, True)
                text_k = tl.load(text + key + n, mask=inside, other=-1)
                # a non-finite v is zeroed below; NaN in its key reaches only its own text's queries
                s = tl.dot(q, mark_nonfinite(k, v).T, input_precision=PRECISION)
                s = tl.where(text_q[:, None] == text_k[None, :], s, float("-inf"))
                largest, weight, total = update_softmax(
                    s, zero_nonfinite(v), largest, weight, total, scale, PRECISION
                )
        o_part = out + head * D
        store_rows(o_part, query, heads * D, total / weight[:, None], m < count, D, BLOCK_D)
        if lse is not None:
            places = lse + head.to(tl.int64) * queries + query
            tl.store(places, largest + tl.log2(weight), mask=m < count)


@triton.jit
def recompute_weights(s, lse, own, scale, MASKED: tl.constexpr):
    """Recompute attention weights from logits s and lse; if MASKED, 0 where `own` is false."""
    exponent = s * scale - lse
    if MASKED:
        exponent = tl.where(own, exponent, float("-inf"))
    return tl.exp2(exponent)


@triton.jit(do_not_specialize=["queries"])
def query_gradient_kernel(
    qkv,
    cu_seqlens,
    table,
    text,
    rows,
    out,
    d_out,
    lse,
    delta,
    d_qkv,
    queries,
    scale,
    factor,
    stride_t,
    stride_3,
    stride_h,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """Write the queries' part of d_qkv, and delta = rowsum(dO O).

    factor is the scale of the logits; scale is factor times log2 e.
    """
    after_previous(launch_pdl)
    head, heads = tl.program_id(1), tl.num_programs(1)
    first, count, text_0, text_1 = tile_of(table, rows is not None, PARTS, BLOCK_M)
    if count > 0:
        start, stop = tl.load(cu_seqlens + text_0), tl.load(cu_seqlens + text_1)
        whole = unmasked_end(start, stop, text_1 - text_0, BLOCK_N)
        m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
        query = first + tl.minimum(m, count - 1)
        token = query
        if rows is not None:
            token = tl.load(rows + query)
        text_q = tl.load(text + token)
        q_part = qkv + head.to(tl.int64) * stride_h
        k_part = q_part + stride_3
        v_part = k_part + stride_3
        q = load_rows(q_part, token, stride_t, None, D, BLOCK_D, False)
        do = load_rows(d_out + head * D, query, heads * D, None, D, BLOCK_D, False)
        o = load_rows(out + head * D, query, heads * D, None, D, BLOCK_D, False)
        statistics = head.to(tl.int64) * queries + query
        sums = tl.load(lse + statistics)[:, None]
        d_sum = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
        tl.store(delta + statistics, d_sum, mask=m < count)
        dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for key in range(start, whole, BLOCK_N):
            k = load_rows(k_part, key + n, stride_t, None, D, BLOCK_D, False)
            v = load_rows(v_part, key + n, stride_t, None, D, BLOCK_D, False)
            s = tl.dot(q, k.T, input_precision=PRECISION)
            p = recompute_weights(s, sums, None, scale, False)
            ds = p * (tl.dot(do, v.T, input_precision=PRECISION) - d_sum[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        for key in tl.range(whole, stop, BLOCK_N, num_stages=1):
            inside = key + n < stop
            k = load_rows(k_part, key + n, stride_t, inside, D, BLOCK_D, True)
            v = load_rows(v_part, key + n, stride_t, inside, D, BLOCK_D, True)
            text_k = tl.load(text + key + n, mask=inside, other=-1)
            own = text_q[:, None] == text_k[None, :]
            s = tl.dot(q, k.T, input_precision=PRECISION)
            p = recompute_weights(s, sums, own, scale, True)
            ds = p * (tl.dot(do, v.T, input_precision=PRECISION) - d_sum[:, None])
            # p is 0 outside the text, but 0 * NaN of another text's values is NaN
            ds = tl.where(own, ds, 0.0)
            dq = tl.dot(ds.to(k.dtype), zero_nonfinite(k), dq, input_precision=PRECISION)
        store_rows(d_qkv + head * D, token, 3 * heads * D, dq * factor, m < count, D, BLOCK_D)


@triton.jit(do_not_specialize=["queries"])
def key_gradient_kernel(
    qkv,
    cu_seqlens,
    table,
    text,
    rows,
    d_out,
    lse,
    delta,
    d_qkv,
    queries,
    scale,
    factor,
    stride_t,
    stride_3,
    stride_h,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """Write the keys' and values' parts of d_qkv; here a tile holds keys, and the loop queries.

    Needs delta of `query_gradient_kernel`. Logits are computed as (keys, queries), so that no
    matrix has to be transposed in registers. factor and scale are as in that kernel.
    """
    after_previous(launch_pdl)
    head, heads = tl.program_id(1), tl.num_programs(1)
    first, count, text_0, text_1 = tile_of(table, False, PARTS, BLOCK_M)
    if count > 0:
        # the queries of these texts: one per text with rows, else all their tokens
        start, stop = text_0, text_1
        if rows is None:
            start, stop = tl.load(cu_seqlens + text_0), tl.load(cu_seqlens + text_1)
        whole = unmasked_end(start, stop, text_1 - text_0, BLOCK_N)
        m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
        key = first + tl.minimum(m, count - 1)
        text_k = tl.load(text + key)
        q_part = qkv + head.to(tl.int64) * stride_h
        k = load_rows(q_part + stride_3, key, stride_t, None, D, BLOCK_D, False)
        v = load_rows(q_part + stride_3 + stride_3, key, stride_t, None, D, BLOCK_D, False)
        do_part = d_out + head * D
        lse_part = lse + head.to(tl.int64) * queries
        delta_part = delta + head.to(tl.int64) * queries
        dk = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        dv = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for query in range(start, whole, BLOCK_N):
            token = query + n
            if rows is not None:
                token = tl.load(rows + query + n)
            q = load_rows(q_part, token, stride_t, None, D, BLOCK_D, False)
            do = load_rows(do_part, query + n, heads * D, None, D, BLOCK_D, False)
            s = tl.dot(k, q.T, input_precision=PRECISION)
            p = recompute_weights(s, tl.load(lse_part + query + n)[None, :], None, scale, False)
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
            d_sum = tl.load(delta_part + query + n)
            ds = p * (tl.dot(v, do.T, input_precision=PRECISION) - d_sum[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
        for query in tl.range(whole, stop, BLOCK_N, num_stages=1):
            inside = query + n < stop
            token = query + n
            if rows is not None:
                token = tl.load(rows + query + n, mask=inside, other=0)
            q = load_rows(q_part, token, stride_t, inside, D, BLOCK_D, True)
            do = load_rows(do_part, query + n, heads * D, inside, D, BLOCK_D, True)
            text_q = tl.load(text + token, mask=inside, other=-1)
            own = text_k[:, None] == text_q[None, :]
            # as in attention_kernel: a non-finite do is zeroed, and NaN in its query stands for it
            s = tl.dot(k, mark_nonfinite(q, do).T, input_precision=PRECISION)
            sums = tl.load(lse_part + query + n, mask=inside, other=0.0)
            p = recompute_weights(s, sums[None, :], own, scale, True)
            dv = tl.dot(p.to(do.dtype), zero_nonfinite(do), dv, input_precision=PRECISION)
            d_sum = tl.load(delta_part + query + n, mask=inside, other=0.0)
            ds = p * (tl.dot(v, do.T, input_precision=PRECISION) - d_sum[None, :])
            # as in query_gradient_kernel: p = 0 does not remove NaN of another text
            ds = tl.where(own, ds, 0.0)
            dk = tl.dot(ds.to(q.dtype), zero_nonfinite(q), dk, input_precision=PRECISION)
        d_part = d_qkv + heads * D + head * D
        store_rows(d_part, key, 3 * heads * D, dk * factor, m < count, D, BLOCK_D)
        store_rows(d_part + heads * D, key, 3 * heads * D, dv, m < count, D, BLOCK_D)


def blocks(qkv: Tensor) -> dict[str, int]:
    """Constants for the head size, and the power of two that holds it (16 at least, for tl.dot)."""
    size = qkv.shape[3]
    return {"D": size, "BLOCK_D": max(16, triton.next_power_of_2(size))}


def describable(qkv: Tensor) -> bool:
    """Whether a descriptor can address a head: 16-byte aligned rows, and heads without gaps."""
    heads, size = qkv.shape[2:]
    width = qkv.element_size()
    return (
        size in DESCRIBABLE
        and qkv.stride()[1:] == (heads * size, size, 1)
        and qkv.stride(0) >= 3 * heads * size
        and qkv.stride(0) * width % 16 == 0
        and qkv.data_ptr() % 16 == 0
    )


@on_its_device
def forward(
    qkv: Tensor,
    cu_seqlens: Tensor,
    table: Tensor,
    text: Tensor,
    rows: Tensor | None,
    tile_rows: int,
    scale: float,
    lse: Tensor | None = None,
) -> Tensor:
    """Launch: qkv (T, 3, h, d) -> (T, h d), or (B, h d) with rows (B,).

    Args:
        qkv: any strides.
        cu_seqlens: (B + 1,) int32.
        table: (n, 4) int32; this, text and tile_rows are those of `tensors.Tiles`.
        text: (T,) int32.
        rows: (B,) int or None.
        tile_rows: maximum tokens per tile.
        scale: above 0.
        lse: (h, T), or (h, B) with rows, fp32: output for the backward pass, or None.
    """
    if qkv.stride(3) != 1:
        qkv = qkv.contiguous()
    cu_seqlens, rows = cu_seqlens.contiguous(), None if rows is None else rows.contiguous()
    heads, size = qkv.shape[2:]
    check_head_dim(size)
    queries = qkv.shape[0] if rows is None else rows.shape[0]
    out = qkv.new_empty(queries, heads * size)
    if not out.numel():
        return out
    if rows is None:
        s = settings_of(tile_rows, size, qkv.device, qkv.dtype)
        parts = triton.cdiv(tile_rows, s["BLOCK_M"])
        grid = (table.shape[0] * parts, heads)
    else:
        s = launch.settings("attention_rows", qkv.device, qkv.dtype, head_dim=size)
        parts, grid = 1, (queries, heads)
    keywords = {**s.keywords(qkv.device), **blocks(qkv), "PARTS": parts}
    described: Any = qkv
    keywords["DESCRIPTORS"] = s["DESCRIPTORS"] and describable(qkv)
    if keywords["DESCRIPTORS"]:
        described = TensorDescriptor.from_tensor(qkv.flatten(1), [s["BLOCK_N"], size])
    attention_kernel[grid](
        qkv,
        described,
        cu_seqlens,
        table,
        text,
        rows,
        out,
        lse,
        queries,
        scale * math.log2(math.e),
        *qkv.stride()[:3],
        **keywords,
    )
    return out


@torch.library.custom_op("nomicbert::attention", mutates_args=())
def attention_op(
    qkv: Tensor,
    cu_seqlens: Tensor,
    table: Tensor,
    text: Tensor,
    rows: Tensor | None,
    tile_rows: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`forward` as a custom op: the result, and lse for the backward pass."""
    queries = qkv.shape[0] if rows is None else rows.shape[0]
    lse = qkv.new_empty(qkv.shape[2], queries, dtype=torch.float32)
    return forward(qkv, cu_seqlens, table, text, rows, tile_rows, scale, lse), lse


@attention_op.register_fake
def _(
    qkv: Tensor,
    cu_seqlens: Tensor,
    table: Tensor,
    text: Tensor,
    rows: Tensor | None,
    tile_rows: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    heads, size = qkv.shape[2:]
    queries = qkv.shape[0] if rows is None else rows.shape[0]
    return (
        qkv.new_empty(queries, heads * size),
        qkv.new_empty(heads, queries, dtype=torch.float32),
    )


@torch.library.custom_op("nomicbert::attention_backward", mutates_args=())
@on_its_device
def attention_backward_op(
    d_out: Tensor,
    qkv: Tensor,
    cu_seqlens: Tensor,
    table: Tensor,
    text: Tensor,
    rows: Tensor | None,
    out: Tensor,
    lse: Tensor,
    tile_rows: int,
    scale: float,
) -> Tensor:
    """Gradient (T, 3, h, d) of qkv from d_out, the gradient of the result."""
    if qkv.stride(3) != 1:
        qkv = qkv.contiguous()
    cu_seqlens, rows = cu_seqlens.contiguous(), None if rows is None else rows.contiguous()
    d_out, out = d_out.contiguous(), out.contiguous()
    tokens, _, heads, size = qkv.shape
    # with rows, only one query per text gets a gradient: the others stay zero
    fill = torch.empty if rows is None else torch.zeros
    d_qkv = fill((tokens, 3, heads, size), dtype=qkv.dtype, device=qkv.device)
    if not d_qkv.numel():
        return d_qkv
    queries, delta = lse.shape[1], torch.empty_like(lse)
    s = launch.settings("attention_backward", qkv.device, qkv.dtype, head_dim=size)
    parts = triton.cdiv(tile_rows, s["BLOCK_M"])
    grid = (table.shape[0] * parts, heads)
    scales = (scale * math.log2(math.e), scale)
    keywords = {**s.keywords(qkv.device), **blocks(qkv), "PARTS": parts}
    tiles = (qkv, cu_seqlens, table, text, rows)
    query_gradient_kernel[grid if rows is None else (queries, heads)](
        *tiles, out, d_out, lse, delta, d_qkv, queries, *scales, *qkv.stride()[:3], **keywords
    )
    key_gradient_kernel[grid](
        *tiles, d_out, lse, delta, d_qkv, queries, *scales, *qkv.stride()[:3], **keywords
    )
    return d_qkv


@attention_backward_op.register_fake
def _(
    d_out: Tensor,
    qkv: Tensor,
    cu_seqlens: Tensor,
    table: Tensor,
    text: Tensor,
    rows: Tensor | None,
    out: Tensor,
    lse: Tensor,
    tile_rows: int,
    scale: float,
) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def save(ctx, inputs, output) -> None:
    """Save the inputs, the result and lse: their sizes are linear in T."""
    *tensors, ctx.tile_rows, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def backward(ctx, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    """Gradient of qkv; the other inputs have none."""
    d_qkv = attention_backward_op(d_out, *ctx.saved_tensors, ctx.tile_rows, ctx.scale)
    return d_qkv, None, None, None, None, None, None


attention_op.register_autograd(backward, setup_context=save)


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    plan: Plan,
    scale: float,
    dropout_p: float = 0.0,
    seed: int = 0,
    rows: Tensor | None = None,
) -> Tensor:
    """See `nomicbert_kernels.attention`.

    Raises: ValueError: also for a head size above 256, or a plan of another backend.
    """
    if dropout_p > 0.0:
        # the kernels have no dropout mask; the reference does
        say_dropout_is_slow()
        return reference.attention(qkv, cu_seqlens, plan, scale, dropout_p, seed, rows)
    reference.check(qkv, cu_seqlens, dropout_p, rows)
    check_head_dim(qkv.shape[3])
    tiles = plan.tiles
    if tiles is None:
        raise ValueError("the plan has no tiles: make it with the `plan` of backend 'triton'")
    if tiles.text.shape[0] != qkv.shape[0]:
        raise ValueError(
            f"the plan is for {tiles.text.shape[0]} tokens, but qkv has {qkv.shape[0]}: make it "
            "for the same lengths"
        )
    if scale <= 0.0:
        # the kernels scale the maximum logit, which is the maximum scaled logit only if scale > 0
        qkv = torch.cat((qkv[:, :1] * (-1.0 if scale < 0.0 else 0.0), qkv[:, 1:]), 1)
        scale = -scale or 1.0
    arguments = (qkv, cu_seqlens, tiles.table, tiles.text, rows, tiles.rows, scale)
    return attention_op(*arguments)[0] if watched(qkv) else forward(*arguments)
