"""One vector per text: pool its hidden states, then optionally LayerNorm, slice and L2-normalise.

mean: sum / n · mean_sqrt_len: sum / sqrt n · weightedmean: sum of i h_i / sum of i, i from 1 ·
max: maximum of each column · cls, lasttoken: first, last token.
Source: Reimers and Gurevych 2019, arXiv:1908.10084; weightedmean: Muennighoff 2022,
arXiv:2202.08904; layer_norm before the slice: the card of nomic-embed-text-v1.5.
"""

from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor

from nomicbert_kernels import checks
from nomicbert_kernels.layer_norm import normalise
from nomicbert_kernels.tensors import Plan, PoolMode, accumulator

# torch.nn.functional's defaults, which the model card's recipe relies on
LAYER_NORM_EPS = 1e-5
NORMALIZE_EPS = 1e-12


def check(hidden: Tensor, cu_seqlens: Tensor, mode: str, dim: int | None) -> None:
    """Refuse arguments that do not fit."""
    checks.is_matrix("hidden", hidden)
    checks.is_offsets(cu_seqlens, hidden.shape[0])
    if mode not in get_args(PoolMode):
        raise ValueError(f"mode must be one of {', '.join(get_args(PoolMode))}, not {mode!r}")
    if dim is not None and not 1 <= dim <= hidden.shape[1]:
        raise ValueError(f"dim must be 1 to {hidden.shape[1]}, not {dim}")


def reduce(block: Tensor, mode: PoolMode) -> Tensor:
    """Pool (texts, length, H), length at least 1, to (texts, H); dtype of `block`."""
    length = block.shape[1]
    if mode == "cls":
        return block[:, 0]
    if mode == "lasttoken":
        return block[:, -1]
    if mode == "max":
        return block.amax(1)
    if mode == "weightedmean":
        rank = torch.arange(1, length + 1, dtype=block.dtype, device=block.device)
        return (block * rank[:, None]).sum(1) / rank.sum()
    return block.sum(1) / (length if mode == "mean" else length**0.5)


def finish(pooled: Tensor, layer_norm: bool, dim: int | None, normalize: bool) -> Tensor:
    """Apply the requested of: LayerNorm over the full width without affine, slice, L2 norm."""
    if layer_norm:
        pooled = normalise(pooled, None, None, LAYER_NORM_EPS)
    pooled = pooled[:, :dim]
    if normalize:
        pooled = pooled / pooled.norm(dim=1, keepdim=True).clamp_min(NORMALIZE_EPS)
    return pooled


def pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    plan: Plan,
    mode: PoolMode,
    layer_norm: bool = False,
    dim: int | None = None,
    normalize: bool = False,
) -> Tensor:
    """Pool each text's hidden states.

    >>> import torch
    >>> from nomicbert_kernels import select_ops
    >>> ops = select_ops("cpu", torch.float32)
    >>> hidden = torch.tensor([[3.0, 0.0], [3.0, 8.0], [0.0, 7.0]])
    >>> plan = ops.plan([2, 1], 1, 2, hidden.dtype)
    >>> cu_seqlens = torch.tensor([0, 2, 3], dtype=torch.int32)
    >>> ops.pool(hidden, cu_seqlens, plan, "mean", normalize=True)
    tensor([[0.6000, 0.8000],
            [0.0000, 1.0000]])

    Args:
        hidden: (T, H), fp32, fp16 or bf16, last dim contiguous.
        cu_seqlens: (B + 1,) int32, text b owns rows cu_seqlens[b] to cu_seqlens[b + 1] - 1.
        plan: result of `Ops.plan` for the same lengths.
        mode: one of `PoolMode`.
        layer_norm: normalise over the full width, without weight and bias, eps 1e-5.
        dim: leading columns to keep, or None for all.
        normalize: divide by the L2 norm.

    Returns: (B, dim) fp32 (fp64 for fp64 input); a text without tokens gives zeros.
    Raises: ValueError: unknown mode, dim outside 1 to H, offsets that do not fit.
    """
    check(hidden, cu_seqlens, mode, dim)
    pooled = hidden.new_zeros(cu_seqlens.numel() - 1, hidden.shape[1], dtype=accumulator(hidden))
    bounds = cu_seqlens.tolist()
    rows = [
        reduce(hidden[None, start:end].to(pooled.dtype), mode)[0] if end > start else pooled[text]
        for text, (start, end) in enumerate(pairwise(bounds))
    ]
    return finish(torch.stack(rows) if rows else pooled, layer_norm, dim, normalize)


def of_equal_lengths(
    hidden: Tensor,
    cu_seqlens: Tensor,
    plan: Plan,
    mode: PoolMode,
    layer_norm: bool = False,
    dim: int | None = None,
    normalize: bool = False,
) -> Tensor:
    """`pool` for texts of one length, by the same formulas on a dense block.

    It reads no values, so torch.export can record it with a symbolic number of texts and tokens.

    Args:
        hidden: as for `pool`, like all others below.
        cu_seqlens: not read.
        plan: one run of all texts.
        mode: how a text's hidden states become one row.
        layer_norm: normalise over the full width.
        dim: leading columns to keep, or None.
        normalize: divide by the L2 norm.

    Returns: as `pool`.
    Raises: ValueError: as `pool`; more than one run.
    """
    check(hidden, cu_seqlens, mode, dim)
    run = plan.only_run()
    block = hidden.view(run.texts, run.length, hidden.shape[1])
    return finish(reduce(block.to(accumulator(hidden)), mode), layer_norm, dim, normalize)
