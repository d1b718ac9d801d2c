"""Mixture of experts in four kernels, without host-device synchronisation; gradients by torch.

1. route: logits, softmax and the top k of each token in one pass over x.
2. up: torch sorts the (token, expert) pairs by expert. Each GEMM tile has pairs of one expert only,
   gathers their rows from x, and applies the activation.
3. down: the second GEMM of each pair, scattered back to token order.
4. combine: the weighted sum of a token's k outputs.

The number of pairs per expert is known only on the device. So the grid has the largest number of
tiles possible, and surplus tiles do nothing.

Source: Gale et al. 2022, arXiv:2211.15841, for grouping by sorting.
"""

import functools
import logging

import torch
import triton
import triton.language as tl
from torch import Tensor

from nomicbert_kernels import launch, moe_torch
from nomicbert_kernels import moe as reference
from nomicbert_kernels.custom_ops import on_its_device, recorded, watched
from nomicbert_kernels.gemm_triton import after_previous, by_rows, dense, gemm, load_block, tile_at
from nomicbert_kernels.linear_triton import finish
from nomicbert_kernels.tensors import Activation, Weight

logger = logging.getLogger(__name__)

# Minimum experts in a tile of the router's GEMM: the smallest tile of the tensor cores.
LEAST_EXPERTS = 16
# Columns per program of combine_kernel.
BLOCK = 1024


@triton.jit(do_not_specialize=["rows"])
def route_kernel(
    x,
    weight,
    probabilities,
    chosen,
    rows,
    E: tl.constexpr,
    K: tl.constexpr,
    stride_x,
    stride_w,
    TOP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """Write the TOP largest probabilities of each token and their experts, largest first.

    x (rows, K), weight (E, K): fp32, fp16 or bf16; row strides stride_x, stride_w
    probabilities, chosen: (rows, TOP) fp32 and int32, contiguous
    """
    after_previous(launch_pdl)
    m = tl.program_id(0) * BLOCK_M
    logits = gemm(
        x,
        weight,
        None,
        m,
        0,
        rows,
        E,
        K,
        stride_x,
        stride_w,
        BLOCK_M,
        BLOCK_E,
        BLOCK_K,
        False,
        PRECISION,
        K,
    )
    expert = tl.arange(0, BLOCK_E)
    logits = tl.where((expert < E)[None, :], logits, float("-inf"))
    exponentials = tl.exp(logits - tl.max(logits, 1)[:, None])
    p = exponentials / tl.sum(exponentials, 1)[:, None]
    # -1 excludes padding experts here, and chosen ones below
    p = tl.where((expert < E)[None, :], p, -1.0)
    # a token with NaN has no maximum: choose the first experts, with probability NaN
    broken = tl.max((p != p).to(tl.int32), 1) > 0
    r = m + tl.arange(0, BLOCK_M)
    for place in tl.static_range(TOP):
        best = tl.where(broken, place, tl.argmax(p, 1))
        largest = tl.where(broken, float("nan"), tl.max(p, 1))
        at = r.to(tl.int64) * TOP + place
        tl.store(probabilities + at, largest, mask=r < rows)
        tl.store(chosen + at, best, mask=r < rows)
        p = tl.where(expert[None, :] == best[:, None], -1.0, p)


@triton.jit(do_not_specialize=["tiles_m"])
def experts_kernel(
    x,
    weight,
    pair,
    offsets,
    y,
    tiles_m,
    E: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    stride_x,
    TOP: tl.constexpr,
    UP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """One GEMM of all experts: UP: y[i] = gelu(x[pair[i] // TOP] Wᵀ), else y[pair[i]] = x[i] Wᵀ.

    x: (T, K) if UP, else (pairs, K); fp32, fp16 or bf16, row stride stride_x
    weight, y: (E, N, K) and (pairs, N), contiguous, dtype of x
    pair: (pairs,) int32, token * TOP + place, sorted by expert
    offsets: (E + 1,) int32, where the pairs of each expert start in `pair`
    """
    after_previous(launch_pdl)
    tile_m, tile_n = tile_at(tl.program_id(0), tiles_m, (N + BLOCK_N - 1) // BLOCK_N, GROUP)
    # Find the expert of tile_m: experts have consecutive tiles, and each starts with a new tile.
    # Scanning E offsets here avoids a table that the host, or another kernel, would have to build.
    seen = tl.zeros((), tl.int32)
    expert = tl.zeros((), tl.int32)
    first = tl.zeros((), tl.int32)
    end = tl.zeros((), tl.int32)
    for e in tl.static_range(E):
        start = tl.load(offsets + e)
        stop = tl.load(offsets + e + 1)
        tiles = tl.cdiv(stop - start, BLOCK_M)
        # the last expert whose tiles start at or before tile_m owns it
        here = tile_m >= seen
        expert = tl.where(here, e, expert)
        first = tl.where(here, start + (tile_m - seen) * BLOCK_M, first)
        end = tl.where(here, stop, end)
        seen += tiles
    # false for surplus tiles, which lie behind the last expert's pairs
    if first < end:
        n = tile_n * BLOCK_N
        i = first + tl.arange(0, BLOCK_M)
        inside = i < end
        at = tl.load(pair + i, mask=inside, other=0).to(tl.int64)
        from_row = at // TOP if UP else i.to(tl.int64)
        k = tl.arange(0, BLOCK_K)
        own = weight + expert.to(tl.int64) * N * K
        even: tl.constexpr = K % BLOCK_K == 0
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start_k in range(0, K, BLOCK_K):
            mask = inside[:, None] & (start_k + k < K)[None, :]
            places = x + from_row[:, None] * stride_x + start_k + k[None, :]
            a = tl.load(places, mask=mask, other=0.0)
            b = load_block(own, n, start_k, N, K, K, BLOCK_N, BLOCK_K, even, False)
            total = tl.dot(a, b.T, total, input_precision=PRECISION)
        if UP:
            total = finish(total, total, "gelu")
        to_row = i.to(tl.int64) if UP else at
        c = n + tl.arange(0, BLOCK_N)
        mask = inside[:, None] & (c < N)[None, :]
        tl.store(y + to_row[:, None] * N + c[None, :], total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def combine_kernel(
    outputs,
    probabilities,
    bias,
    y,
    N: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
    launch_pdl: tl.constexpr,
):
    """y[t] = sum over j of probabilities[t, j] * outputs[t * TOP + j], + bias.

    outputs (T * TOP, N), y (T, N): contiguous, of one dtype; probabilities (T, TOP) fp32; bias (N,)
    or None. A program takes one token and BLOCK columns.
    """
    after_previous(launch_pdl)
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for place in tl.static_range(TOP):
        p = tl.load(probabilities + row * TOP + place)
        out = tl.load(outputs + (row * TOP + place) * N + c, mask=c < N, other=0.0)
        total += p * out.to(tl.float32)
    if bias is not None:
        total += tl.load(bias + c, mask=c < N, other=0.0).to(tl.float32)
    tl.store(y + row * N + c, total.to(y.dtype.element_ty), mask=c < N)


def route(x: Tensor, router: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Launch: x (T, H), router (E, H) -> probabilities (T, k) fp32 and experts (T, k) int32."""
    tokens, width = x.shape
    experts = router.shape[0]
    s = launch.settings("route", x.device, x.dtype, rows=tokens, n=experts, k=width)
    probabilities = x.new_empty(tokens, top_k, dtype=torch.float32)
    chosen = x.new_empty(tokens, top_k, dtype=torch.int32)
    route_kernel[(triton.cdiv(tokens, s["BLOCK_M"]),)](
        x,
        router,
        probabilities,
        chosen,
        tokens,
        experts,
        width,
        x.stride(0),
        router.stride(0),
        top_k,
        BLOCK_E=max(LEAST_EXPERTS, triton.next_power_of_2(experts)),
        **s.keywords(x.device),
    )
    return probabilities, chosen


def experts_gemm(
    x: Tensor, weight: Tensor, pair: Tensor, offsets: Tensor, top_k: int, up: bool
) -> Tensor:
    """Launch: multiply each pair's row by its expert's weight, of (E, N, K) -> (pairs, N)."""
    experts, inner, width = weight.shape
    y = x.new_empty(pair.shape[0], inner)
    s = launch.settings("experts", x.device, x.dtype, rows=pair.shape[0], n=inner, k=width)
    # upper bound: every expert may have one partly filled tile
    tiles_m = triton.cdiv(pair.shape[0], s["BLOCK_M"]) + experts
    tiles_n = triton.cdiv(inner, s["BLOCK_N"])
    experts_kernel[(tiles_m * tiles_n,)](
        x,
        weight,
        pair,
        offsets,
        y,
        tiles_m,
        experts,
        inner,
        width,
        x.stride(0),
        top_k,
        up,
        **s.keywords(x.device),
    )
    return y


@on_its_device
def forward(
    x: Tensor, router: Tensor, up: Tensor, down: Tensor, bias: Tensor | None, top_k: int
) -> Tensor:
    """x (T, H), router (E, H), up (E, F, H), down (E, H, F), bias (H,) or None -> (T, H)."""
    x, router, up, down = by_rows(x), by_rows(router), up.contiguous(), down.contiguous()
    tokens, width = x.shape
    y = x.new_empty(tokens, width)
    if not y.numel():
        return y
    probabilities, chosen = route(x, router, top_k)
    # stable, so that the order of pairs is deterministic; the sorted indices are the pairs
    by_expert, pair = torch.sort(chosen.flatten(), stable=True)
    pair = pair.to(torch.int32)
    bounds = torch.arange(router.shape[0] + 1, dtype=torch.int32, device=x.device)
    offsets = torch.searchsorted(by_expert, bounds, out_int32=True)
    inner = experts_gemm(x, up, pair, offsets, top_k, up=True)
    outputs = experts_gemm(inner, down, pair, offsets, top_k, up=False)
    combine_kernel[(tokens, triton.cdiv(width, BLOCK))](
        outputs, probabilities, dense(bias), y, width, top_k, BLOCK, **launch.common(x.device)
    )
    return y


@torch.library.custom_op("nomicbert::moe", mutates_args=())
def moe_op(
    x: Tensor, router: Tensor, up: Tensor, down: Tensor, bias: Tensor | None, top_k: int
) -> Tensor:
    """`forward` as a custom op."""
    return forward(x, router, up, down, bias, top_k)


@moe_op.register_fake
def _(
    x: Tensor, router: Tensor, up: Tensor, down: Tensor, bias: Tensor | None, top_k: int
) -> Tensor:
    return x.new_empty(x.shape)


@functools.cache
def say_training_is_slow() -> None:
    """Log once that gradients of experts are slow."""
    logger.info("gradients of a mixture of experts are computed by torch, expert by expert")


def moe(x: Tensor | Activation, router: Weight, up: Weight, down: Weight, top_k: int) -> Tensor:
    """See `nomicbert_kernels.moe`."""
    data = reference.check(x, router, up, down, top_k)
    r, u, d = (w.source.to(w.dtype) for w in (router, up, down))
    if recorded(data, r, u, d, down.bias) or torch.is_autocast_enabled(data.device.type):
        if not torch.compiler.is_compiling():
            say_training_is_slow()
        return moe_torch.moe(data, router, up, down, top_k)
    run = moe_op if watched(data, r, u, d) else forward
    return run(data, r, u, d, down.bias, top_k)
