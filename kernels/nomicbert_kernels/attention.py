"""Bidirectional attention within each text: softmax(q kᵀ * scale) v, over packed texts.

Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
"""

from itertools import pairwise

import torch
from torch import Tensor

from nomicbert_kernels import checks
from nomicbert_kernels.tensors import Plan, accumulator


def check(qkv: Tensor, cu_seqlens: Tensor, dropout_p: float, rows: Tensor | None) -> None:
    """Refuse arguments that do not fit."""
    if qkv.dim() != 4 or qkv.shape[1] != 3 or qkv.dtype not in checks.FLOATS:
        raise ValueError(
            f"qkv must be floating point (tokens, 3, heads, head size), not {qkv.dtype} "
            f"{tuple(qkv.shape)}"
        )
    checks.is_offsets(cu_seqlens, qkv.shape[0])
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be at least 0 and below 1, not {dropout_p}")
    if rows is not None:
        checks.is_rows(rows, cu_seqlens)


def attention_weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """softmax(q kᵀ * scale): (..., queries, d), (..., keys, d) -> (..., queries, keys)."""
    return torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1)


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    plan: Plan,
    scale: float,
    dropout_p: float = 0.0,
    seed: int = 0,
    rows: Tensor | None = None,
) -> Tensor:
    """Attend within each text.

    >>> import torch
    >>> from nomicbert_kernels import select_ops
    >>> ops = select_ops("cpu", torch.float32)
    >>> lengths, heads, size = [1, 2], 1, 2
    >>> qkv = torch.tensor([[0.0, 0, 0, 0, 5, 6], [0, 0, 0, 0, 1, 2], [0, 0, 0, 0, 3, 4]])
    >>> plan = ops.plan(lengths, heads, size, qkv.dtype)
    >>> cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32)
    >>> ops.attention(qkv.view(3, 3, heads, size), cu_seqlens, plan, scale=size**-0.5)
    tensor([[5., 6.],
            [2., 3.],
            [2., 3.]])

    Args:
        qkv: (T, 3, h, d), queries and keys already rotated; fp32, fp16 or bf16.
        cu_seqlens: (B + 1,) int32, text b owns tokens cu_seqlens[b] to cu_seqlens[b + 1] - 1.
        plan: result of `Ops.plan` for the same lengths.
        scale: factor of the logits, usually d ** -0.5.
        dropout_p: probability of zeroing a weight; the others are scaled by 1 / (1 - dropout_p).
        seed: of the dropout; the same seed gives the same mask.
        rows: (B,) int, the one token of each text whose output is wanted, or None for all.

    Returns: (T, h d), or (B, h d) with `rows`; dtype of qkv; softmax and sums in fp32.
    Raises: ValueError: shape or dtype mismatch; offsets that decrease or do not end at T.
    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """
    check(qkv, cu_seqlens, dropout_p, rows)
    generator = torch.Generator(qkv.device).manual_seed(seed)
    out = []
    bounds = cu_seqlens.tolist()
    for text, (start, end) in enumerate(pairwise(bounds)):
        q, k, v = qkv[start:end].to(accumulator(qkv)).permute(1, 2, 0, 3)  # each (h, length, d)
        if rows is not None:
            q = q[:, rows[text] - start].unsqueeze(1)
        weights = attention_weights(q, k, scale)
        if dropout_p > 0.0:
            keep = torch.rand(weights.shape, generator=generator, device=qkv.device) >= dropout_p
            weights = weights * keep / (1.0 - dropout_p)
        out.append((weights @ v).transpose(0, 1).flatten(1).to(qkv.dtype))
    return torch.cat(out) if out else qkv.new_empty(0, qkv.shape[2] * qkv.shape[3])


def of_equal_lengths(
    qkv: Tensor,
    cu_seqlens: Tensor,
    plan: Plan,
    scale: float,
    dropout_p: float = 0.0,
    seed: int = 0,
    rows: Tensor | None = None,
) -> Tensor:
    """`attention` of texts of one length, by the same formula on a dense block.

    It reads no values, so torch.export can record it with a symbolic number of texts and tokens.

    Args:
        qkv: as for `attention`, like all others below.
        cu_seqlens: not read.
        plan: one run of all texts.
        scale: of the logits.
        dropout_p: 0.
        seed: unused.
        rows: the one token of each text that is wanted, or None.

    Returns: as `attention`.
    Raises: ValueError: shape or dtype mismatch; more than one run; dropout.
    """
    check(qkv, cu_seqlens, dropout_p, rows)
    if dropout_p > 0.0:
        raise ValueError(f"texts of one length are computed without dropout, not {dropout_p}")
    run, heads, size = plan.only_run(), *qkv.shape[2:]
    exact = qkv.to(accumulator(qkv))
    block = exact.view(run.texts, run.length, 3, heads, size)
    q, k, v = block.permute(2, 0, 3, 1, 4)  # each (texts, h, length, d)
    if rows is not None:
        q = exact[rows, 0].unsqueeze(2)
    o: Tensor = attention_weights(q, k, scale) @ v
    return o.transpose(1, 2).reshape(-1, heads * size).to(qkv.dtype)
