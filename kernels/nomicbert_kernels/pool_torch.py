"""Pooling by runs of texts of equal length: one reduction per run instead of one per text.

Torch divides the columns of one text among threads, 32 at a time, and sums the remaining columns
in another order. So a width that is not a multiple of 32 is padded with zeros.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import pool as reference
from nomicbert_kernels.tensors import Plan, PoolMode, accumulator

COLUMNS = 32


def pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    plan: Plan,
    mode: PoolMode,
    layer_norm: bool = False,
    dim: int | None = None,
    normalize: bool = False,
) -> Tensor:
    """See `nomicbert_kernels.pool`."""
    reference.check(hidden, cu_seqlens, mode, dim)
    texts, width = cu_seqlens.numel() - 1, hidden.shape[1]
    dtype = accumulator(hidden)
    parts = []
    if width % COLUMNS:
        hidden = F.pad(hidden, (0, -width % COLUMNS))
    for run in plan.runs:
        block = hidden[run.token : run.token + run.texts * run.length]
        parts.append(reference.reduce(block.view(-1, run.length, hidden.shape[1]).to(dtype), mode))
    pooled = torch.cat(parts) if parts else hidden.new_zeros(0, width, dtype=dtype)
    pooled = pooled[:, :width]
    if pooled.shape[0] < texts:  # empty texts are in no run: their rows stay zero
        filled = [run.text + i for run in plan.runs for i in range(run.texts)]
        rows = torch.tensor(filled, dtype=torch.int64, device=hidden.device)
        pooled = hidden.new_zeros(texts, width, dtype=dtype).index_copy(0, rows, pooled)
    if layer_norm:
        pooled = F.layer_norm(pooled, (width,), eps=reference.LAYER_NORM_EPS)
    return reference.finish(pooled, False, dim, normalize)
