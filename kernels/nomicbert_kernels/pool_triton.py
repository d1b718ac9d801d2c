"""One vector per text: pooling, LayerNorm, slice and L2 norm in one kernel, sums in fp32.

Each text has one program. A text of more than CHUNK tokens is split at every CHUNK-th token from
its own start. A first kernel pools these pieces, and the text's program adds them up in order. So a
text's bits depend only on the text.

The pieces are found on the device, because the host does not know cu_seqlens. The tokens are
divided into stretches of CHUNK tokens, aligned to multiples of CHUNK. At most two pieces start in a
stretch: one of the text that continues from before, and one of a long text that starts in it. So
each stretch gets two programs.

With gradients on, the kernel only pools; torch does LayerNorm, slice and L2 norm of the B rows.

Pointers of the kernels (contiguous unless a row stride is passed):
    hidden         (T, WIDTH), fp32, fp16 or bf16; row stride `stride`; None in the backward pass
                   unless MODE is "max"
    cu_seqlens     (B + 1,) int32
    partial        (2 per stretch, WIDTH) fp32, the pooled pieces; None without pieces
    largest, ties  (B, WIDTH) fp32: the maxima, and how many tokens attain them; else None
    y              pool: (B, DIM) fp32; backward: (T, WIDTH), dtype of hidden
    dy             (B, WIDTH) fp32

Source: see `nomicbert_kernels.pool`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nomicbert_kernels import launch
from nomicbert_kernels import pool as reference
from nomicbert_kernels.custom_ops import on_its_device, watched
from nomicbert_kernels.gemm_triton import after_previous, by_rows
from nomicbert_kernels.layer_norm_triton import refuse_double, refuse_wide
from nomicbert_kernels.tensors import ONE_TOKEN_MODES, Plan, PoolMode

# Maximum tokens per piece.
CHUNK = 128
# Values that a program reads at once, and the maximum number of tokens they belong to.
BLOCK = 8192
MOST_TOKENS = 32
WARPS = 4
# Internal mode that counts the tokens which attain the maximum of a column.
TIES = "ties"


@triton.jit
def text_of(cu_seqlens, texts, token, steps):
    """The text of each token, by binary search: the last that starts at or before it."""
    low = token * 0
    high = low + texts
    for _ in range(steps):
        middle = (low + high) // 2
        before = tl.load(cu_seqlens + middle) <= token
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit
def identity(MODE: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    """The neutral element of a sum or a maximum."""
    start: tl.constexpr = float("-inf") if MODE == "max" else 0.0
    return tl.full((TOKENS, COLUMNS), start, tl.float32)


@triton.jit
def add(pooled, block, mask, MODE: tl.constexpr):
    """Add a block to a sum or a maximum; a maximum propagates NaN, as in torch."""
    if MODE == "max":
        block = tl.where(mask, block, float("-inf"))
        pooled = tl.maximum(pooled, block, propagate_nan=tl.PropagateNan.ALL)
    else:
        pooled += tl.where(mask, block, 0.0)
    return pooled


@triton.jit
def reduce_tokens(pooled, MODE: tl.constexpr):
    """Reduce the rows of a block, (COLUMNS,)."""
    if MODE == "max":
        # tl.max drops NaN
        broken = tl.max((pooled != pooled).to(tl.int32), 0) > 0
        total = tl.where(broken, float("nan"), tl.max(pooled, 0))
    else:
        total = tl.sum(pooled, 0)
    return total


@triton.jit
def pool_rows(
    pooled,
    hidden,
    largest,
    text,
    stride,
    start,
    count,
    rank,
    c,
    MODE: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Add `count` rows from `start` on; `rank` is the position of the first in its text, from 1."""
    if MODE == "ties":
        place = largest + text.to(tl.int64) * WIDTH + c
        top = tl.load(place, mask=c < WIDTH, other=0.0)[None, :]
    for i in range(0, count, TOKENS):
        t = i + tl.arange(0, TOKENS)
        mask = (t < count)[:, None] & (c < WIDTH)[None, :]
        places = hidden + (start + t).to(tl.int64)[:, None] * stride + c[None, :]
        block = tl.load(places, mask=mask, other=0.0).to(tl.float32)
        if MODE == "ties":
            block = (block == top).to(tl.float32)
        if MODE == "weightedmean":
            block *= (rank + t).to(tl.float32)[:, None]
        pooled = add(pooled, block, mask, MODE)
    return pooled


@triton.jit(do_not_specialize=["texts", "rows", "steps"])
def pieces_kernel(
    hidden,
    largest,
    cu_seqlens,
    partial,
    texts,
    rows,
    steps,
    stride,
    MODE: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """Pool the pieces of long texts that start in a stretch of CHUNK tokens into rows of partial.

    Even programs handle the text of the stretch's first token. Odd programs handle the text of the
    next stretch's first token, if it starts within this stretch (but not at its first token).
    """
    after_previous(launch_pdl)
    side = tl.program_id(0) % 2
    stretch = tl.program_id(0) // 2 * CHUNK
    token = tl.minimum(stretch + side * CHUNK, rows - 1)
    text = text_of(cu_seqlens, texts, token, steps)
    start = tl.load(cu_seqlens + text)
    end = tl.load(cu_seqlens + text + 1)
    # tokens of the text before its first piece that starts in this stretch
    done = tl.cdiv(tl.maximum(stretch - start, 0), CHUNK) * CHUNK
    begins_here = (start > stretch) & (start < stretch + CHUNK)
    mine = (end - start > CHUNK) & ((side == 0) | begins_here)
    count = tl.where(mine, tl.maximum(tl.minimum(end - start - done, CHUNK), 0), 0)
    c = tl.arange(0, COLUMNS)
    pooled = identity(MODE, TOKENS, COLUMNS)
    pooled = pool_rows(
        pooled,
        hidden,
        largest,
        text,
        stride,
        start + done,
        count,
        done + 1,
        c,
        MODE,
        WIDTH,
        TOKENS,
    )
    place = partial + tl.program_id(0).to(tl.int64) * WIDTH + c
    # a row without a piece is never read, so it stays unwritten
    tl.store(place, reduce_tokens(pooled, MODE), mask=c < tl.where(count > 0, WIDTH, 0))


@triton.jit
def finish(pooled, c, LAYER_NORM: tl.constexpr, DIM: tl.constexpr, NORMALIZE: tl.constexpr,
           WIDTH: tl.constexpr, LN_EPS: tl.constexpr, L2_EPS: tl.constexpr):  # fmt: skip
    """Apply the requested of: LayerNorm over the full width without affine, slice, L2 norm."""
    if LAYER_NORM:
        centred = tl.where(c < WIDTH, pooled - tl.sum(pooled, 0) / WIDTH, 0.0)
        pooled = centred * tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + LN_EPS)
    if NORMALIZE:
        kept = tl.where(c < DIM, pooled, 0.0)
        pooled = kept / tl.maximum(tl.sqrt(tl.sum(kept * kept, 0)), L2_EPS)
    return pooled


@triton.jit
def pool_kernel(
    hidden,
    largest,
    cu_seqlens,
    partial,
    y,
    stride,
    MODE: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    DIM: tl.constexpr,
    NORMALIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LN_EPS: tl.constexpr,
    L2_EPS: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """Pool one text per program: its pieces from partial if it is long, else its rows of hidden."""
    after_previous(launch_pdl)
    text = tl.program_id(0)
    start = tl.load(cu_seqlens + text)
    length = tl.load(cu_seqlens + text + 1) - start
    c = tl.arange(0, COLUMNS)
    pooled = identity(MODE, TOKENS, COLUMNS)
    whole = length
    if MODE == "cls":
        first, whole = start, tl.minimum(length, 1)
    elif MODE == "lasttoken":
        first, whole = start + tl.maximum(length - 1, 0), tl.minimum(length, 1)
    else:
        first = start
    if partial is not None:
        is_long = length > CHUNK
        whole = tl.where(is_long, 0, length)
        pieces = tl.where(is_long, tl.cdiv(length, CHUNK), 0)
        for i in range(0, pieces, TOKENS):
            k = i + tl.arange(0, TOKENS)
            stretch = (start + k * CHUNK) // CHUNK
            # the odd program wrote the first piece of a text that starts within its stretch
            slot = 2 * stretch + (start > stretch * CHUNK).to(tl.int32)
            mask = (k < pieces)[:, None] & (c < WIDTH)[None, :]
            places = partial + slot.to(tl.int64)[:, None] * WIDTH + c[None, :]
            pooled = add(pooled, tl.load(places, mask=mask, other=0.0), mask, MODE)
    pooled = pool_rows(
        pooled, hidden, largest, text, stride, first, whole, 1, c, MODE, WIDTH, TOKENS
    )
    row = tl.where((length > 0) & (c < WIDTH), reduce_tokens(pooled, MODE), 0.0)
    n = tl.maximum(length, 1).to(tl.float32)
    if MODE == "mean":
        row /= n
    if MODE == "mean_sqrt_len":
        row /= tl.sqrt(n)
    if MODE == "weightedmean":
        row /= n * (n + 1.0) * 0.5
    row = finish(row, c, LAYER_NORM, DIM, NORMALIZE, WIDTH, LN_EPS, L2_EPS)
    tl.store(y + text.to(tl.int64) * DIM + c, row, mask=c < DIM)


@triton.jit(do_not_specialize=["texts", "rows", "steps"])
def pool_backward_kernel(
    dy,
    hidden,
    largest,
    ties,
    cu_seqlens,
    y,
    texts,
    rows,
    steps,
    stride,
    MODE: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """Write the gradient of each token: dy of its text times the token's share in the pooling."""
    after_previous(launch_pdl)
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    c = tl.arange(0, COLUMNS)
    token = tl.minimum(t, rows - 1)
    text = text_of(cu_seqlens, texts, token, steps)
    start = tl.load(cu_seqlens + text)
    length = tl.load(cu_seqlens + text + 1) - start
    n = length.to(tl.float32)
    place = token - start
    mask = (t < rows)[:, None] & (c < WIDTH)[None, :]
    of_text = text.to(tl.int64)[:, None] * WIDTH + c[None, :]
    d = tl.load(dy + of_text, mask=mask, other=0.0).to(tl.float32)
    if MODE == "mean":
        d /= n[:, None]
    if MODE == "mean_sqrt_len":
        d /= tl.sqrt(n)[:, None]
    if MODE == "weightedmean":
        d *= ((place + 1).to(tl.float32) / (n * (n + 1.0) * 0.5))[:, None]
    if MODE == "cls":
        d = tl.where((place == 0)[:, None], d, 0.0)
    if MODE == "lasttoken":
        d = tl.where((place == length - 1)[:, None], d, 0.0)
    if MODE == "max":
        h = tl.load(
            hidden + token.to(tl.int64)[:, None] * stride + c[None, :], mask=mask, other=0.0
        )
        top = tl.load(largest + of_text, mask=mask, other=0.0)
        among = tl.load(ties + of_text, mask=mask, other=1.0)
        d = tl.where(h.to(tl.float32) == top, d / among, 0.0)
    out = y + t.to(tl.int64)[:, None] * WIDTH + c[None, :]
    tl.store(out, d.to(y.dtype.element_ty), mask=mask)


def tiling(width: int, device: torch.device, block: int = BLOCK) -> dict[str, int]:
    """Launch keywords for rows of this width; a program reads `block` values at once."""
    refuse_wide(width)
    columns = triton.next_power_of_2(width)
    tokens = min(MOST_TOKENS, max(1, block // columns))
    sizes = {"WIDTH": width, "TOKENS": tokens, "COLUMNS": columns}
    return {**sizes, "num_warps": WARPS, **launch.common(device)}


@on_its_device
def forward(
    hidden: Tensor,
    cu_seqlens: Tensor,
    mode: str,
    layer_norm: bool = False,
    dim: int | None = None,
    normalize: bool = False,
    largest: Tensor | None = None,
) -> Tensor:
    """Launch: hidden (T, H), cu_seqlens (B + 1,) -> (B, dim) fp32.

    Mode "ties" counts the tokens of each text that equal `largest`, (B, H) fp32.
    """
    hidden, cu_seqlens = by_rows(hidden), cu_seqlens.contiguous()
    (rows, width), texts = hidden.shape, cu_seqlens.numel() - 1
    dim = width if dim is None else dim
    y = hidden.new_empty(texts, dim, dtype=torch.float32)
    if not y.numel():
        return y
    keywords = tiling(width, hidden.device)
    partial = None
    if rows > CHUNK and mode not in ONE_TOKEN_MODES:
        programs = 2 * triton.cdiv(rows, CHUNK)
        partial = hidden.new_empty(programs, width, dtype=torch.float32)
        pieces_kernel[(programs,)](
            hidden,
            largest,
            cu_seqlens,
            partial,
            texts,
            rows,
            texts.bit_length(),
            hidden.stride(0),
            MODE=mode,
            CHUNK=CHUNK,
            **keywords,
        )
    pool_kernel[(texts,)](
        hidden,
        largest,
        cu_seqlens,
        partial,
        y,
        hidden.stride(0),
        MODE=mode,
        LAYER_NORM=layer_norm,
        DIM=dim,
        NORMALIZE=normalize,
        CHUNK=CHUNK,
        LN_EPS=reference.LAYER_NORM_EPS,
        L2_EPS=reference.NORMALIZE_EPS,
        **keywords,
    )
    return y


@torch.library.custom_op("nomicbert::pool", mutates_args=())
def pool_op(hidden: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    """`forward` as a custom op, without LayerNorm, slice and L2 norm: (B, H) fp32."""
    return forward(hidden, cu_seqlens, mode)


@pool_op.register_fake
def _(hidden: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    return hidden.new_empty(cu_seqlens.shape[0] - 1, hidden.shape[1], dtype=torch.float32)


@torch.library.custom_op("nomicbert::pool_backward", mutates_args=())
@on_its_device
def pool_backward_op(
    dy: Tensor,
    cu_seqlens: Tensor,
    mode: str,
    rows: int,
    dtype: torch.dtype,
    hidden: Tensor | None,
    largest: Tensor | None,
) -> Tensor:
    """Gradient of the hidden states (rows, H) in `dtype`; equal maxima share theirs evenly."""
    dy, cu_seqlens = dy.contiguous(), cu_seqlens.contiguous()
    texts, width = dy.shape
    y = dy.new_empty(rows, width, dtype=dtype)
    if not y.numel():
        return y
    # half blocks: the kernel holds addresses of dy and y, and full blocks spill on sm_120
    keywords = tiling(width, dy.device, BLOCK // 2)
    ties = None
    if hidden is not None:
        hidden = by_rows(hidden)
        ties = forward(hidden, cu_seqlens, TIES, largest=largest)
    pool_backward_kernel[(triton.cdiv(rows, keywords["TOKENS"]),)](
        dy,
        hidden,
        largest,
        ties,
        cu_seqlens,
        y,
        texts,
        rows,
        texts.bit_length(),
        0 if hidden is None else hidden.stride(0),
        MODE=mode,
        **keywords,
    )
    return y


@pool_backward_op.register_fake
def _(
    dy: Tensor,
    cu_seqlens: Tensor,
    mode: str,
    rows: int,
    dtype: torch.dtype,
    hidden: Tensor | None,
    largest: Tensor | None,
) -> Tensor:
    return dy.new_empty(rows, dy.shape[1], dtype=dtype)


def save(ctx, inputs, output) -> None:
    """Save the tensors that locate a maximum; the other modes need only the lengths."""
    hidden, cu_seqlens, ctx.mode = inputs
    ctx.rows, ctx.dtype = hidden.shape[0], hidden.dtype
    kept = (hidden, output) if ctx.mode == "max" else (None, None)
    ctx.save_for_backward(cu_seqlens, *kept)


def backward(ctx, dy: Tensor) -> tuple[Tensor, None, None]:
    """Gradients in the order of the inputs."""
    cu_seqlens, hidden, largest = ctx.saved_tensors
    d = pool_backward_op(dy, cu_seqlens, ctx.mode, ctx.rows, ctx.dtype, hidden, largest)
    return d, None, None


pool_op.register_autograd(backward, setup_context=save)


def pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    plan: Plan,
    mode: PoolMode,
    layer_norm: bool = False,
    dim: int | None = None,
    normalize: bool = False,
) -> Tensor:
    """See `nomicbert_kernels.pool`; at most 8192 columns."""
    reference.check(hidden, cu_seqlens, mode, dim)
    refuse_double("hidden", hidden)
    if watched(hidden, cu_seqlens):
        rows = pool_op(hidden, cu_seqlens, mode)
        return reference.finish(rows, layer_norm, dim, normalize)
    return forward(hidden, cu_seqlens, mode, layer_norm, dim, normalize)
